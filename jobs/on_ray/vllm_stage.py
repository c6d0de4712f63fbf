"""The one module that knows `ray.data.llm`: an engine as a stage of a dataset, its requests, replies and failures.

Workarounds for Ray 2.60 with vLLM 0.29 to 0.32:
- Rows travel as one struct column whose blocks are merged through pandas. An integer missing in one block comes out as
  a float, so no field of a request is ever null.
- A row that failed before the engine skips it if `__inference_error__` is set, and comes out with all internal columns.
- A crashed engine takes its actor along, and Ray restarts that actor for ever. `max_restarts` is set on the stage, the
  only place where it can be set.
- Requests may wait for ever on a dead engine: see `our_engine`.
- A remote adapter can be named only as s3:// or gs://, so the engine's actor copies it to a local disk first.
- Building a processor initialises Ray again, which resets the levels of its loggers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import ray
from ray.data import ActorPoolStrategy, Dataset

from raysift.actors.contract import RowActor
from raysift.actors.language_model import local_copy, source_of
from raysift.actors.prompts import row_seed
from raysift.actors.responder import ENGINE_ERROR, GENERATED, LOGPROBS, NOT_ASKED, PROMPT
from raysift.actors.vllm_engine import engine_arguments, engine_environment, offline_batching
from raysift.errors import ModelError, RaysiftError, StageError
from raysift.jobs.cluster.machines import actor_cpus, first_workers, pool_size
from raysift.jobs.cluster.session import start_session
from raysift.jobs.on_ray.lives import Watch, watched
from raysift.jobs.on_ray.peaks import own_peak, peaks_name, tell
from raysift.records import ERROR, ID
from raysift.settings.generation import GenerationSettings
from raysift.settings.resources import Resources
from raysift.storage import Location

if TYPE_CHECKING:
    from ray.data.llm import Processor

Answer = TypeVar("Answer")

ENGINE_STAGE = "vLLMEngineStage"
HELPER_CPUS = 0.05  # reserved by each stage beside the engine
MOST_TOKENS = 128  # most tokens for which vLLM returns log-probabilities at once
MOST_SEED = 2**63 - 1  # vLLM reads -1 as no seed
GUARD_S = 1.0
LEAST_WAIT_S = 60

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_CAUSE = re.compile(r"[\w.]*(Error|Exception): ")


def engine_count(resources: Resources) -> int:
    """Maximum engines: as many as fit on the GPUs, or on CPUs by default one per machine, since each uses all cores."""
    room = pool_size(resources)
    if resources.gpus_per_worker:
        return room
    machines = sum(bool(node["Alive"]) for node in ray.nodes())
    return min(room, resources.workers or machines)


def ask_where_engines_run(question: Callable[[], Answer], resources: Resources) -> Answer:
    """The answer of a machine that the engines may run on: on a cluster, the driver's has another image, or no GPU."""
    if not ray.is_initialized() and os.environ.get("RAY_ADDRESS", "local") != "local":
        start_session()
    if not ray.is_initialized() or sum(bool(node["Alive"]) for node in ray.nodes()) == 1:
        return question()
    gpus, limit = min(1.0, resources.gpus_per_worker or 0.0), max(resources.wait_s, LEAST_WAIT_S)
    task = ray.remote(question).options(num_cpus=HELPER_CPUS, num_gpus=gpus, max_retries=resources.restarts)
    asked = task.remote()
    if not ray.wait([asked], timeout=limit)[0]:
        ray.cancel(asked, force=True)
        raise StageError(
            f"generate: no machine with {gpus:g} GPUs said within {limit} s whether it has vLLM. Raise resources.wait_s if "
            "machines take longer to start, or set backend=transformers."
        )
    found: Answer = ray.get(asked)
    return found


class Request(NamedTuple):
    """What an engine is asked for every row, and what it returns for each."""

    sampling: dict[str, Any]
    """Arguments of `SamplingParams`."""
    reply: str = GENERATED
    """`GENERATED`: the tokens of the reply. `LOGPROBS`: instead, the log-probability of each token in
    `logprob_token_ids` as the first token of the reply, in that order."""
    beside: Mapping[str, Any] = MappingProxyType({})
    """Columns that bypass the engine, from the asking actor to the reading actor, each with its value for rows that
    failed."""
    seed: int | None = None
    """Seeds the sampling, together with the row's id."""


def answer_through_engine(
    dataset: Dataset,
    asker: type[RowActor],
    engine: Processor,
    reader: type[RowActor],
    arguments: dict[str, Any],
    resources: Resources,
    watch: Watch,
) -> Dataset:
    """Prompt with `asker`, answer with `build_engine`'s engine, parse with `reader`; both actors take `arguments`.

    The reader counts the answers.
    """
    helper = {
        "fn_constructor_kwargs": arguments,
        "batch_format": "pyarrow",
        "batch_size": resources.batch_rows,
        "compute": ActorPoolStrategy(min_size=1, max_size=engine_count(resources)),
        "num_cpus": HELPER_CPUS,
        "zero_copy_batch": True,
    }
    asked = engine(dataset.map_batches(watched(asker, replace(watch, counts=None)), **helper))
    return asked.map_batches(watched(reader, watch), **helper)


def build_engine(
    model: str,
    adapter: Location | None,
    request: Request,
    resources: Resources,
    max_length: int | None,
    trust_remote_code: bool,
    dtype: str = "auto",
) -> Processor:
    """Build `ray.data.llm`'s processor for rows of an asking actor; Ray must be running."""
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    gpus = resources.gpus_per_worker or 0.0
    cpus = resources.cpus if gpus else max(0.01, round(actor_cpus(resources) - 4 * HELPER_CPUS, 2))
    config = vLLMEngineProcessorConfig(
        model_source=source_of(model, "tokenizer")[0],
        engine_kwargs=engine_arguments(
            model,
            max_length=max_length,
            dtype=dtype,
            adapter=adapter,
            gpus=gpus,
            trust_remote_code=trust_remote_code,
            engine=resources.engine,
        )
        # Only the finished reply is needed: without this, each token is a message to the event loop.
        | {"stream_interval": request.sampling["max_tokens"]},
        concurrency=(min(first_workers(resources), engine_count(resources)), engine_count(resources)),
        batch_size=resources.batch_rows,
        max_concurrent_batches=resources.engine.concurrent_blocks,
        placement_group_config={"bundle_per_worker": {"CPU": cpus, **({"GPU": min(1.0, gpus)} if gpus else {})}},
        runtime_env={"env_vars": engine_environment()},
        should_continue_on_error=True,
        log_engine_metrics=False,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )
    name = None
    if adapter is not None:
        name = adapter.path if adapter.is_local else str(adapter)
    few = {"num_cpus": HELPER_CPUS}
    with _as_told():
        processor = build_processor(
            config,
            preprocess=partial(_to_engine, reply=request.reply, beside=dict(request.beside)),
            postprocess=partial(_from_engine, kept=(request.reply, *request.beside)),
            preprocess_map_kwargs=few,
            postprocess_map_kwargs=few,
        )
    stage = processor.get_stage_by_name(ENGINE_STAGE)
    stage.map_batches_kwargs["max_restarts"] = resources.restarts
    replace_engine(
        stage,
        our_engine(stage.fn),
        weights=model,
        served=name,
        sampling=request.sampling,
        reply=request.reply,
        seed=request.seed,
        adapters={name: adapter} if name and adapter is not None and not adapter.is_local else {},
    )
    return processor


def replace_engine(stage: Any, engine: type, **arguments: Any) -> None:
    """Make the stage run another class. Assigning `fn` makes the stage ask for a GPU, so its options are restored."""
    placed = dict(stage.map_batches_kwargs)
    stage.fn = engine
    stage.fn_constructor_kwargs |= arguments
    stage.map_batches_kwargs.clear()
    stage.map_batches_kwargs.update(placed)


def our_engine(stage: Any) -> Any:
    """Subclass the engine to carry less data, guard each batch, and keep copies of remote adapters while it runs.

    Fields that all rows share are added here instead of travelling with each row. Only the wanted part of a reply is
    passed on: log-probabilities come as a dict of dicts for each of its tokens. The guard is needed because vLLM 0.32
    forgets requests sent just before it notices that its engine has died.
    """
    peaks = peaks_name()

    class OurEngine(stage):  # type: ignore[misc]
        def __init__(
            self,
            *,
            engine_kwargs: dict[str, Any],
            expected_input_keys: list[str],
            weights: str,
            served: str | None,
            sampling: dict[str, Any],
            reply: str,
            seed: int | None,
            adapters: Mapping[str, Location],
            **others: Any,
        ) -> None:
            own_peak(peaks)
            batching = offline_batching(engine_kwargs.get("tensor_parallel_size", 1))
            others["model"] = source_of(weights)[0]  # on this machine, where the driver's copy may not be
            super().__init__(engine_kwargs=batching | engine_kwargs, expected_input_keys=[PROMPT], **others)
            from vllm.lora.request import LoRARequest

            self.served, self.sampling, self.reply, self.seed = served or self.model, sampling, reply, seed
            self.copies = contextlib.ExitStack()
            for number, (name, place) in enumerate(adapters.items(), start=1):
                folder = self.copies.enter_context(local_copy(place))
                self.llm.lora_name_to_request[name] = LoRARequest(name, number, folder)

        async def udf(self, batch: list[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
            for row in batch:
                drawn = {} if self.seed is None else {"seed": row_seed(self.seed, row[ID]) & MOST_SEED}
                row |= {"model": self.served, "sampling_params": self.sampling | drawn}
            guard = asyncio.create_task(self._guard())
            try:
                async for found in super().udf(batch):
                    passed = {name: found[name] for name in (self.IDX_IN_BATCH_COLUMN, ENGINE_ERROR)}
                    yield passed | {self.reply: _wanted_part(found, self.reply, self.sampling)}
            finally:
                guard.cancel()
                tell(peaks)
                for row in batch:
                    row.pop("model")

        async def _guard(self) -> None:
            while not self.llm.engine.errored:
                await asyncio.sleep(GUARD_S)
            os._exit(1)  # as the class itself does: only after this exit does Ray retry the batch elsewhere

    return OurEngine


def sampling_of(settings: GenerationSettings, ends: frozenset[int]) -> dict[str, Any]:
    """The arguments of `SamplingParams` shared by all rows."""
    return {
        "max_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p if settings.temperature > 0 else 1.0,
        "stop_token_ids": sorted(ends),
        "detokenize": False,
    }


def logprobs_of(tokens: Sequence[int]) -> dict[str, Any]:
    """`SamplingParams` arguments for only the log-probabilities of these first tokens; greedy, as any reply will do."""
    if len(tokens) > MOST_TOKENS:
        raise ModelError(
            f"vllm: log-probabilities of {len(tokens)} tokens are wanted; vLLM gives those of {MOST_TOKENS}. Judge on a "
            "smaller scale (judge.low, judge.high), or set backend=transformers."
        )
    return {"max_tokens": 1, "temperature": 0.0, "detokenize": False, "logprob_token_ids": list(tokens)}


def _wanted_part(found: Mapping[str, Any], reply: str, sampling: Mapping[str, Any]) -> list[Any]:
    """The part of the engine's output for a row that is needed; empty if the row failed in the engine."""
    if reply == GENERATED:
        return list(found[GENERATED])
    first = found[LOGPROBS][0] if found[LOGPROBS] else {}
    return [first[token]["logprob"] for token in sampling["logprob_token_ids"]] if first else []


def _to_engine(row: dict[str, Any], reply: str, beside: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a row of an asking actor to the engine's input; a row with an error skips the engine."""
    prompt = [] if row[PROMPT] is None else row[PROMPT]
    filled = {name: otherwise if row[name] is None else row[name] for name, otherwise in beside.items()}
    failed = row.pop(ERROR)
    return {PROMPT: prompt, reply: [], ENGINE_ERROR: NOT_ASKED + failed if failed else "", **filled}


def _from_engine(row: dict[str, Any], kept: Sequence[str]) -> dict[str, Any]:
    return {name: row[name] for name in (ID, *kept)}


@contextlib.contextmanager
def _as_told() -> Iterator[None]:
    """Keeps Ray's logger as the caller set it: building a processor calls `ray.init`, which resets it and logs."""
    logger, disabled = logging.getLogger("ray"), logging.root.manager.disable
    level, handlers = logger.level, list(logger.handlers)
    logging.disable(max(disabled, logging.INFO))
    try:
        yield
    finally:
        logging.disable(disabled)
        logger.setLevel(level)
        logger.handlers[:] = handlers


@contextlib.contextmanager
def explained(stage: str) -> Iterator[None]:
    """Turns an error that ended a stage through vLLM into a readable message."""
    try:
        yield
    except RaysiftError:
        raise
    except Exception as error:
        # Ray has several families of errors; all hold the traceback as text, with the cause on the last lines.
        lines = [line.strip() for line in _COLOURS.sub("", str(error)).splitlines()]
        said = [line for line in lines if _CAUSE.match(line)] or [line for line in lines if line] or ["no message"]
        raise StageError(
            f"{stage}: could not go on through vLLM ({type(error).__name__}; {said[-1]}). An engine that dies is "
            "started again as often as resources.restarts says; its log is in Ray's session folder "
            "(logs/worker-*.err). Mend the cause and start the run again, it will continue; or set backend=transformers."
        ) from error
