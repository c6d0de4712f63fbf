"""Settings that decide where and how fast, never what: they are in no fingerprint, and changing one changes no result."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Resources(BaseModel):
    """How much of the machine or cluster a run may use."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    workers: int | None = Field(default=None, ge=1)
    """Most actors (or tasks) of one stage at a time; none: as many as the cluster has room for."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """CPUs an actor or task asks for. Small values (0.25) leave room for readers when actors hold GPUs."""
    gpus_per_worker: float = Field(default=0.0, ge=0)
    """GPUs an actor asks for; a fraction lets several share one, several are for `device: spread`. 0 runs on the CPU."""
    batch_rows: int = Field(default=64, ge=1)
    """Rows handed to an actor at once; within it an actor makes its own batches by length."""
    block_rows: int = Field(default=2000, ge=1)
    """Rows in a block: the unit of retry, of checkpointing and of loss. Aim at one to five minutes of work."""
    tokens_per_pass: int = Field(default=4096, ge=1)
    """Most tokens of a batch in one forward and backward pass; the gradient pass halves it where memory does not suffice."""
    train_workers: int = Field(default=1, ge=0)
    """Ray Train workers of a fine-tune; 0 trains inside the calling process."""
    train_workers_min: int | None = Field(default=None, ge=1)
    """With it, training is elastic between this many and `train_workers`; the effective batch stays the same."""
    validation_workers: int = Field(default=0, ge=0)
    """Actors that share out the validation after each step of RAISE; 0 validates in the process that trains."""
    gradient_checkpointing: bool = False
    """In training, compute activations twice instead of keeping them: a third slower, for much less memory."""
    threads: int | None = Field(default=None, ge=1)
    """Torch threads in a worker; none: the CPUs it asked for."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, or `spread`: a language model lies layer by layer on all GPUs that its process sees."""
    store: str | None = None
    """Folder or URI of the gradient store (`matching: store`), which several runs may share; none: `store` in the run's folder."""
    no_progress_timeout_s: int = Field(default=1800, ge=5)
    """A stage in which nothing moves for so long is ended instead of hanging for ever."""
