"""Settings that decide where and how fast, never what: they are in no fingerprint, and changing one changes no result."""

from __future__ import annotations

import os
from typing import Any, Literal

from pydantic import Field, PrivateAttr, field_validator

from raysift.settings.base import Settings
from raysift.settings.cluster import Cluster
from raysift.settings.roles import ON_CPUS, TRAIN, Role, TrainRole, WorkerRole, resolve

ENGINE_ARGUMENTS = frozenset(
    {
        "async_scheduling",
        "attention_backend",
        "block_size",
        "compilation_config",
        "cpu_offload_gb",
        "cudagraph_capture_sizes",
        "disable_custom_all_reduce",
        "distributed_executor_backend",
        "download_dir",
        "enable_chunked_prefill",
        "enable_expert_parallel",
        "enforce_eager",
        "kv_offloading_backend",
        "kv_offloading_size",
        "long_prefill_token_threshold",
        "max_num_batched_tokens",
        "max_num_seqs",
        "max_parallel_loading_workers",
        "moe_backend",
        "num_gpu_blocks_override",
        "numa_bind",
        "optimization_level",
        "performance_mode",
        "safetensors_load_strategy",
        "shutdown_timeout",
    }
)
"""Those of vLLM's EngineArgs that decide only where and how fast. The others decide what is answered, or are set by us.
Fingerprints leave out resources, so a new argument is refused until it is known to be of the first kind."""


class EngineResources(Settings):
    """vLLM engines, and how they are kept busy; `generate` has their number and GPUs."""

    memory_share: float = Field(default=0.9, gt=0, le=1)
    """Share of the engine's GPU (or of its fraction of one) that vLLM may use; other libraries need the rest."""
    cache_gib: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Key-value cache of an engine on CPUs. By default vLLM would take nine tenths of the machine's memory."""
    prefix_caching: bool = True
    """Compute the common beginning of prompts only once."""
    concurrent_blocks: int = Field(default=16, ge=1)
    """Blocks in an engine at a time, four batches of each. With too few, it waits for rows; many take memory."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Further vLLM EngineArgs, such as `max_num_seqs: 64`. They replace ours; only those that change no result are allowed."""

    @field_validator("arguments")
    @classmethod
    def _decide_no_result(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        others = sorted(arguments.keys() - ENGINE_ARGUMENTS)
        if others:
            raise ValueError(
                f"{', '.join(others)} may decide what the engine answers or is set elsewhere, and resources decide no "
                f"result; expected some of {', '.join(sorted(ENGINE_ARGUMENTS))}"
            )
        return arguments


class Resources(Settings):
    """How much of the machine or cluster a run may use.

    Stages ask by role for workers and what each holds. What is not set follows from the cluster, when the stage starts.
    """

    workers: int | None = Field(default=None, ge=1)
    """Maximum actors (or tasks) of one stage at a time. None: as many as the cluster has GPUs, or memory and cores, for."""
    cpus_per_worker: float | None = Field(default=None, gt=0)
    """CPUs per worker that loads a model. None: 1, and more for larger models on CPUs, whose actors share out all cores. Small
    values (0.25) leave room for readers when actors hold GPUs."""
    worker_gib: float | None = Field(default=None, ge=0)
    """Memory in GiB that Ray reserves for a worker that loads a model. None: what the model is expected to take; 0: none."""
    gpus_per_worker: float | None = Field(default=None, ge=0)
    """GPUs per worker that loads a model. None: one if the cluster has GPUs, none for the models that ship with raysift. A
    fraction lets actors share a GPU; more than one is for `device: spread`. 0 runs on the CPU."""
    gpus: int | None = Field(default=None, ge=0)
    """GPUs that the run may count on: a stage waits for them (`wait_s`). None: those of the cluster, with those that its
    autoscaler may start; 0: none."""
    wait_s: int = Field(default=900, ge=0)
    """Seconds that a stage waits for a machine that may still join."""
    restarts: int = Field(default=10, ge=0)
    """Restarts of one worker after crashes, before the run ends. Workers lost with their machine do not count."""
    tokenise: WorkerRole = Field(default_factory=WorkerRole)
    """Counts tokens and encodes rows; never on GPUs."""
    score: WorkerRole = Field(default_factory=WorkerRole)
    """Scores rows with a reward model, a judge or by likelihood."""
    embed: WorkerRole = Field(default_factory=WorkerRole)
    """Embeds rows, and compares embeddings."""
    generate: WorkerRole = Field(default_factory=WorkerRole)
    """Answers, with vLLM's engines or transformers. By default one engine per machine on CPUs; several `gpus` use tensor
    parallelism."""
    gradients: WorkerRole = Field(default_factory=WorkerRole)
    """Takes the gradients of rows and targets."""
    train: TrainRole = Field(default_factory=TrainRole)
    """Trains, on all GPUs by default."""
    reduce: WorkerRole = Field(default_factory=WorkerRole)
    """Reads, reduces and merges files; never on GPUs."""
    driver: Role = Field(default_factory=Role)
    """What a job that `raysift submit` starts reserves for the driver itself."""
    batch_rows: int = Field(default=64, ge=1)
    """Rows handed to an actor at once; the actor splits them into its own batches by length. Gradients take more at once, and on
    GPUs all stages take a block."""
    block_rows: int = Field(default=2000, ge=1)
    """Rows in a block, the unit that is retried, checkpointed or lost. Aim at one to five minutes of work."""
    tokens_per_pass: int | None = Field(default=None, ge=1)
    """Maximum tokens of a batch in one forward and backward pass. None: 4096, and fewer for larger models on CPUs, as memory
    allows. The gradient pass halves it when memory runs out."""
    gradient_checkpointing: bool = False
    """Recompute activations in training instead of keeping them: a third slower, with much less memory."""
    threads: int | None = Field(default=None, ge=1)
    """Torch threads per worker. None: 1 for small models, else its share of the machine's cores."""
    device: str = "auto"
    """`auto`: the GPU that Ray grants a worker, else the CPU. Or `cpu`, `cuda`, or `spread`, which distributes a language
    model's layers over all GPUs that its process sees: by default those of a machine."""
    store: str | None = None
    """Folder or URI of the gradient store (`matching: store`), which runs may share. None: `store` in the run's folder."""
    no_progress_timeout_s: int = Field(default=1800, ge=5)
    """A stage without progress for this many seconds ends with an error."""
    engine: EngineResources = Field(default_factory=EngineResources)
    """vLLM engines, for stages that answer through vLLM."""
    shard: Literal["auto", "none", "full"] = "auto"
    """Whether the workers of a full fine-tune share out its weights, gradients and moments (`full`) or hold all of them each
    (`none`). `auto`: shared out if they do not fit on one GPU."""

    _asked: Resources | None = PrivateAttr(default=None)
    _role: str = PrivateAttr(default="")

    @field_validator("store")
    @classmethod
    def _from_anywhere(cls, store: str | None) -> str | None:
        """Makes the path absolute, because runs in other working directories read it from this run's `run.yaml`."""
        return store if store is None or "://" in store else os.path.abspath(os.path.expanduser(store))

    @property
    def placed_on(self) -> str:
        """The device for workers. Ray leaves all GPUs visible to a worker that was granted none; there `auto` means the CPU."""
        idle = self._role in ON_CPUS or (self.device == "auto" and not self.gpus_per_worker)
        return "cpu" if idle else self.device

    @property
    def cpus(self) -> float:
        """CPUs that a worker reserves."""
        return self.cpus_per_worker or 1.0

    @property
    def tokens(self) -> int:
        """Maximum tokens of a pass."""
        return self.tokens_per_pass or 4096

    @property
    def memory(self) -> int | None:
        """Bytes that a worker reserves; None reserves none."""
        return int(self.worker_gib * 2**30) if self.worker_gib else None

    @property
    def on_gpu(self) -> bool:
        """Whether workers compute on GPUs."""
        return self.placed_on != "cpu"

    def of(self, role: str, cluster: Cluster, small: bool = False) -> Resources:
        """The resources of a role on this cluster: `workers` and what each asks for are settled, everything else is as set."""
        asked = self._asked or self
        found = asked.model_copy(update=resolve(asked, role, cluster, small))
        found._asked, found._role = asked, role
        return found

    def in_this_process(self) -> Resources:
        """These resources for a training in the calling process, which has what a worker would have."""
        found = self.model_copy(update={"workers": 0})
        found._asked, found._role = self.asked, TRAIN
        return found

    @property
    def role(self) -> str:
        """The role that these resources were settled for, or nothing."""
        return self._role

    @property
    def asked(self) -> Resources:
        """The resources as the user set them."""
        return self._asked or self
