"""The one module that knows `ray.data.llm`: an engine as a stage of a dataset, its requests, its replies, its end.

What it works around, in Ray 2.60 with vLLM 0.29 to 0.32:
- rows travel as one struct column whose blocks are merged by way of pandas: an integer that is missing in one of them
  comes out as a float, so no field of a request is ever null;
- a row that failed before the engine is passed by it when `__inference_error__` is set, and comes out with all internal
  columns;
- an engine that dies takes its actor along, which Ray restarts for ever: `max_restarts` is set on the stage, the only
  door there is;
- requests may wait for ever on a dead engine: see `our_engine`;
- an adapter that is not on a local disk can be named for s3:// and gs:// alone: the engine's actor copies it first;
- building a processor initialises Ray once more, which resets the levels of its loggers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import ray

from raysift.actors.language_model import local_copy, resolve_model
from raysift.actors.prompts import load_prompts, row_seed
from raysift.actors.responder import ENGINE_ERROR, GENERATED, PROMPT
from raysift.actors.vllm_engine import MAX_RESTARTS, engine_arguments, engine_environment, offline_batching
from raysift.errors import RaysiftError, StageError
from raysift.generation_settings import GenerationSettings
from raysift.jobs.raydata import actor_cpus, pool_size
from raysift.records import ERROR, ID
from raysift.resources import Resources
from raysift.storage import Location

if TYPE_CHECKING:
    from ray.data.llm import Processor

ENGINE_STAGE = "vLLMEngineStage"
HELPER_CPUS = 0.05  # what each stage beside the engine books
CONCURRENT_BLOCKS = 16  # in an engine at a time, four batches of each
MOST_SEED = 2**63 - 1  # vLLM takes -1 for no seed
GUARD_S = 1.0

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_CAUSE = re.compile(r"[\w.]*(Error|Exception): ")


def engine_count(resources: Resources) -> int:
    """Engines at a time: by GPUs, or one a machine, since an engine on CPUs takes all of its machine's cores."""
    room = pool_size(resources)
    if resources.gpus_per_worker:
        return room
    machines = sum(bool(node["Alive"]) for node in ray.nodes())
    return min(room, resources.workers or machines)


def build_engine(
    model: str,
    adapter: Location | None,
    settings: GenerationSettings,
    resources: Resources,
    engines: int,
    rules: dict[str, Any],
) -> Processor:
    """`ray.data.llm`'s processor for rows of an `Asker`; Ray must be running."""
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    ends = load_prompts(model, **rules).ends
    gpus = resources.gpus_per_worker
    cpus = resources.cpus_per_worker if gpus else max(0.01, round(actor_cpus(resources) - 4 * HELPER_CPUS, 2))
    config = vLLMEngineProcessorConfig(
        model_source=resolve_model(model),
        engine_kwargs=engine_arguments(
            model,
            max_length=settings.max_length,
            adapter=adapter,
            gpus=gpus,
            trust_remote_code=rules["trust_remote_code"],
        )
        # Tokens are wanted once, at the end: without this each of them is a message to the event loop.
        | {"stream_interval": settings.max_new_tokens},
        concurrency=(1, engines),
        batch_size=resources.batch_rows,
        max_concurrent_batches=CONCURRENT_BLOCKS,
        placement_group_config={"bundle_per_worker": {"CPU": cpus, **({"GPU": min(1.0, gpus)} if gpus else {})}},
        runtime_env={"env_vars": engine_environment()},
        should_continue_on_error=True,
        log_engine_metrics=False,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )
    name = resolve_model(model)
    if adapter is not None:
        name = adapter.path if adapter.is_local else str(adapter)
    few = {"num_cpus": HELPER_CPUS}
    with _as_told():
        processor = build_processor(
            config, preprocess=_request, postprocess=_reply, preprocess_map_kwargs=few, postprocess_map_kwargs=few
        )
    stage = processor.get_stage_by_name(ENGINE_STAGE)
    stage.map_batches_kwargs["max_restarts"] = MAX_RESTARTS
    replace_engine(
        stage,
        our_engine(stage.fn),
        served=name,
        sampling=sampling_of(settings, ends),
        seed=settings.seed if settings.temperature > 0 else None,
        adapters={name: adapter} if adapter is not None and not adapter.is_local else {},
    )
    return processor


def replace_engine(stage: Any, engine: type, **arguments: Any) -> None:
    """Let the stage run another class; assigning it alone makes the stage ask for a GPU again."""
    placed = dict(stage.map_batches_kwargs)
    stage.fn = engine
    stage.fn_constructor_kwargs |= arguments
    stage.map_batches_kwargs.clear()
    stage.map_batches_kwargs.update(placed)


def our_engine(stage: Any) -> Any:
    """The engine's class with less to carry, a guard beside each batch, and copies of remote adapters while it runs.

    What all rows have in common is put to them here instead of travelling with each, and of a reply only the tokens go
    on. The guard: vLLM 0.32 forgets requests that were sent just before it noticed that its engine had died.
    """

    class OurEngine(stage):  # type: ignore[misc]
        def __init__(
            self,
            *,
            engine_kwargs: dict[str, Any],
            expected_input_keys: list[str],
            served: str,
            sampling: dict[str, Any],
            seed: int | None,
            adapters: Mapping[str, Location],
            **others: Any,
        ) -> None:
            batching = offline_batching(engine_kwargs.get("tensor_parallel_size", 1))
            super().__init__(engine_kwargs=batching | engine_kwargs, expected_input_keys=[PROMPT], **others)
            from vllm.lora.request import LoRARequest

            self.served, self.sampling, self.seed = served, sampling, seed
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
                async for reply in super().udf(batch):
                    yield {name: reply[name] for name in (self.IDX_IN_BATCH_COLUMN, GENERATED, ENGINE_ERROR)}
            finally:
                guard.cancel()
                for row in batch:
                    row.pop("model")

        async def _guard(self) -> None:
            while not self.llm.engine.errored:
                await asyncio.sleep(GUARD_S)
            os._exit(1)  # as the class itself does: the one end after which Ray tries the batch again elsewhere

    return OurEngine


def sampling_of(settings: GenerationSettings, ends: frozenset[int]) -> dict[str, Any]:
    """What every row's `SamplingParams` has in common."""
    return {
        "max_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p if settings.temperature > 0 else 1.0,
        "stop_token_ids": sorted(ends),
        "detokenize": False,
    }


def _request(row: dict[str, Any]) -> dict[str, Any]:
    """A row of an `Asker` as the engine's stage takes it; one with an error is passed by the engine."""
    prompt = [] if row[PROMPT] is None else row[PROMPT]
    return {PROMPT: prompt, GENERATED: [], ENGINE_ERROR: row.pop(ERROR) or ""}


def _reply(row: dict[str, Any]) -> dict[str, Any]:
    return {ID: row[ID], GENERATED: row[GENERATED]}


@contextlib.contextmanager
def _as_told() -> Iterator[None]:
    """Keeps Ray's logger as the caller set it: building a processor calls `ray.init`, which sets it up anew and talks."""
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
def explained() -> Iterator[None]:
    """What ended a run through vLLM, in words."""
    try:
        yield
    except RaysiftError:
        raise
    except Exception as error:
        # Ray has several families of errors and all hold the traceback as text, the cause on its last lines.
        lines = [line.strip() for line in _COLOURS.sub("", str(error)).splitlines()]
        said = [line for line in lines if _CAUSE.match(line)] or [line for line in lines if line] or ["no message"]
        raise StageError(
            f"generate: could not go on through vLLM ({type(error).__name__}; {said[-1]}). An engine that dies is "
            f"started again {MAX_RESTARTS} times; its log is in Ray's session folder (logs/worker-*.err). Mend the "
            "cause and start the run again, it will continue; or set backend=transformers."
        ) from error
