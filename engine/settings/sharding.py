"""What a full fine-tune takes of each worker, with the weights whole or divided among them, and whether to divide them.

    weights, gradients    4 + 4 bytes a number, by n workers
    moments               8 bytes a number, 2 in eight bits, by n
    copies                2 bytes a number in bfloat16, whole on each worker, from the forward to the backward pass
    gathered              of divided weights: two layers whole and the gradient of one; embedding and head with theirs

All in float32 but the copies, for n workers among which weights are divided, and n = 1 if each has all. The figures are upper
estimates, as in raysift.settings.memory.
"""

from __future__ import annotations

from dataclasses import replace

from raysift.settings.memory import Need, Shape, training
from raysift.settings.training import TrainConfig

BYTES_OF_MOMENTS = {"adamw": 8.0, "adamw8bit": 2.0 + 2 * 4 / 256}
"""Both moments of a number; in eight bits each block of 256 has a size in float32."""


def state_of(shape: Shape, config: TrainConfig, ranks: int = 1) -> dict[str, int]:
    """Bytes that each worker holds whatever its passes, part by part."""
    numbers = shape.parameters
    parts = {
        "weights": 4 * numbers // ranks,
        "gradients": 4 * numbers // ranks,
        "moments": int(BYTES_OF_MOMENTS[config.optimizer] * numbers) // ranks,
        "copies in bfloat16": 2 * numbers if config.dtype == "bf16" else 0,
    }
    if ranks > 1:
        ends = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
        layer = (numbers - ends) // shape.layers
        parts["gathered layers"] = 4 * (3 * layer + 2 * ends)
    return parts


def full_training(shape: Shape, config: TrainConfig, longest: int, ranks: int = 1, recomputed: bool = False) -> Need:
    """A worker of a full fine-tune; `recomputed`: layers keep their inputs alone until the backward pass."""
    parts = state_of(shape, config, ranks)
    held = parts["weights"] + parts["gradients"] + parts["moments"]
    need = training(shape, config.dtype, longest, shape.parameters, whole=True)
    layer = need.activations // shape.layers
    return replace(
        need,
        trained=held,
        accumulators=sum(parts.values()) - held,
        activations=layer + 4 * shape.hidden * shape.layers if recomputed else need.activations,
    )


def is_divided(shard: str, config: TrainConfig, workers: int, need: Need | None, room: int | None) -> bool:
    """Whether a training divides its weights among its workers, by `resources.shard`.

    `need` is that of a worker with all weights, `room` the memory of its GPU; None if unknown.
    """
    if config.method != "full" or workers < 2 or shard == "none":
        return False
    # A worker with all weights must hold a pass of the longest row at least.
    return shard == "full" or (need is not None and room is not None and need.bytes(need.longest) > room)
