"""vLLM: the arguments that an engine is started with, and an `Engine` for an actor to hold.

Answers and ratings go through `ray.data.llm` (raysift.jobs.on_ray.vllm_stage); an actor that computes rewards has an
`Engine` of its own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from raysift.actors.language_model import source_of
from raysift.actors.loaded import NO_LIMIT, longest_input
from raysift.actors.prompts import load_card
from raysift.errors import ModelError, StageError
from raysift.settings.resources import EngineResources
from raysift.storage import Location

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the ranks for which vLLM has kernels
GUARD_S = 1.0  # how often a waiting call checks that its engine is alive
ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1"}  # nothing is reported to anyone

log = logging.getLogger(__name__)


def engine_arguments(
    model: str,
    *,
    max_length: int | None = None,
    dtype: str = "auto",
    adapter: Location | None = None,
    gpus: float = 0.0,
    trust_remote_code: bool = False,
    engine: EngineResources | None = None,
) -> dict[str, Any]:
    """Arguments of an engine that computes what transformers would: the same dtype (`auto` is the checkpoint's), no defaults.

    A fraction of a GPU means that fraction of its memory; two or more GPUs form one engine by tensor parallelism. The
    number of GPUs in `engine` is ignored: the caller has decided it, and passes `gpus`.
    """
    engine = engine or EngineResources()
    card = load_card(model, trust_remote_code)
    stored = str(getattr(card.config, "dtype", None) or "auto").removeprefix("torch.")
    arguments: dict[str, Any] = {
        "dtype": {"auto": stored, "bf16": "bfloat16", "fp32": "float32"}.get(dtype, dtype),
        "generation_config": "vllm",
        "enable_prefix_caching": engine.prefix_caching,
        "disable_log_stats": True,
        "trust_remote_code": trust_remote_code,
    }
    source, revision = source_of(model, "tokenizer")
    if not os.path.isdir(source):
        arguments |= {"revision": revision, "tokenizer_revision": revision}
    longest = longest_input(card, max_length)
    if longest < NO_LIMIT:
        arguments["max_model_len"] = longest
    if adapter is not None:
        arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": lora_rank(adapter)}
    if gpus:
        arguments["gpu_memory_utilization"] = engine.memory_share * min(1.0, gpus)
        arguments["tensor_parallel_size"] = max(1, int(gpus))
    else:
        arguments |= {"kv_cache_memory_bytes": int(engine.cache_gib * 2**30), "enforce_eager": True}
    return arguments | engine.arguments


def offline_batching(workers: int) -> dict[str, int]:
    """Rows and tokens per step as `LLM` uses on this device; Ray's engines use fewer, the defaults for a server."""
    from vllm import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    tokens, rows = EngineArgs.get_batch_defaults(workers)
    return {"max_num_batched_tokens": tokens[UsageContext.LLM_CLASS], "max_num_seqs": rows[UsageContext.LLM_CLASS]}


def lora_rank(adapter: Location) -> int:
    """The smallest rank that vLLM can reserve and that holds the adapter's rank."""
    place = adapter / "adapter_config.json"
    if not place.exists():
        raise ModelError(
            f"model: '{adapter}' holds no adapter_config.json, so it is no PEFT adapter. A fine-tune writes "
            "epoch-N/adapter after each epoch."
        )
    config = json.loads(place.read_text())
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    if rank > LORA_RANKS[-1]:
        raise ModelError(
            f"model: the adapter '{adapter}' has rank {rank}; vLLM serves up to {LORA_RANKS[-1]}. Set "
            "backend=transformers, or train an adapter of a lower rank."
        )
    return next(known for known in LORA_RANKS if known >= rank)


def engine_environment() -> dict[str, str]:
    """The VLLM_* variables for processes on other machines: the caller's own, with ours as defaults."""
    return ENVIRONMENT | {name: value for name, value in os.environ.items() if name.startswith("VLLM_")}


class Engine:
    """An engine in a child process; `classify` restarts it after a crash, at most `restarts` times, then raises."""

    def __init__(
        self,
        model: str,
        *,
        max_length: int | None = None,
        dtype: str = "auto",
        gpus: float = 0.0,
        trust_remote_code: bool = False,
        engine: EngineResources | None = None,
        restarts: int = 3,
        **arguments: Any,
    ) -> None:
        engine = engine or EngineResources()
        placed = engine_arguments(
            model, max_length=max_length, dtype=dtype, gpus=gpus, trust_remote_code=trust_remote_code, engine=engine
        )
        self.arguments = {"model": source_of(model)[0], **placed, **arguments}
        self.restarts = restarts
        self.start()

    def start(self) -> None:
        """Load the model into a new engine."""
        os.environ |= engine_environment()
        from vllm import LLM

        self.llm = LLM(**self.arguments)

    def classify(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """A classifier's logits for tokenised texts in their order; the engine must run as one (`runner="pooling"`)."""
        from vllm import PoolingParams

        logits = PoolingParams(use_activation=False)
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._ask(lambda: self.llm.classify(requests, pooling_params=logits, use_tqdm=False))
        return [output.outputs.probs for output in outputs]

    def _ask(self, call: Callable[[], Iterable[Any]]) -> list[Any]:
        from vllm.v1.engine.exceptions import EngineDeadError

        while True:
            try:
                with self._guard():
                    return list(call())
            except EngineDeadError as error:
                self._restart(error)

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Wake a call that waits for a killed engine: vLLM 0.32 notices, but does not tell the call, which waits for ever."""
        from vllm.v1.engine.exceptions import EngineDeadError

        core, over = self.llm.llm_engine.engine_core, threading.Event()

        def watch() -> None:
            while not over.wait(GUARD_S):
                if core.resources.engine_dead:
                    core.outputs_queue.put_nowait(EngineDeadError())
                    return

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def close(self) -> None:
        """End the engine's process."""
        self.llm.llm_engine.engine_core.shutdown()

    def _restart(self, error: Exception) -> None:
        if not self.restarts:
            raise StageError(
                "vllm: the engine died again and again. Its last words are in Ray's session folder (logs/worker-*.err). "
                "Mend the cause and start the run again, it will continue; or do without vLLM."
            ) from error
        self.restarts -= 1
        log.warning("vllm: the engine died; starting another, which may be done %d more times", self.restarts)
        self.llm.llm_engine.engine_core.shutdown()
        self.start()
