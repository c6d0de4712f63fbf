"""Memory and disk that row gradients and targets take, known from shapes before anything is computed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace

from raysift.config import CommonConfig
from raysift.errors import StageError
from raysift.gradients.null_columns import ROWS, NullPlan
from raysift.methods.gradient import GradientConfig
from raysift.settings.memory import GIB, Fit, Need, row_gradients
from raysift.settings.training import TrainConfig
from raysift.storage import Location

SIGNS = 0.25  # vectors of the size of the adapter: one byte per number of a gradient
LONG_PASS = 2048
"""Tokens of a pass that keep any device busy; longer ones hardly save time."""
MEMBER_VECTORS = (
    6  # a pair's two gradients, their difference and its unit; a subtask's sum and what rounding took from it
)


def warmup_recipe(config: CommonConfig, settings: GradientConfig) -> TrainConfig:
    """How the adapter is trained, and so how rows and targets are tokenized for their gradients."""
    return settings.warmup or config.train


def moments_of(settings: GradientConfig) -> int:
    """Number of moment vectors per checkpoint."""
    return 0 if settings.adam.form == "none" else 2


def room_needed(
    config: CommonConfig,
    settings: GradientConfig,
    model: str,
    points: int,
    per_checkpoint: float,
    width: int | None,
    longest: int | None = None,
) -> Need | None:
    """Memory an actor needs for row gradients, with accumulators of `width` numbers (None: a gradient's length) and rows of
    at most `longest` tokens."""
    from raysift.jobs.on_ray.fitting import model_shape

    train, shape = warmup_recipe(config, settings), model_shape(config, model)
    if shape is None:
        return None
    adapter = shape.adapter(train.lora_rank, train.lora_targets)
    longest = min(train.max_length, longest or train.max_length)
    return row_gradients(shape, train.dtype, longest, adapter, points, per_checkpoint, width or adapter)


def exact_room(
    config: CommonConfig,
    settings: GradientConfig,
    model: str,
    points: int,
    columns: int,
    longest: int | None = None,
) -> Need | None:
    """Memory an actor needs for exact matching: the targets of one checkpoint at a time, whatever the number of checkpoints.

    `columns` are the subtasks' own vectors and their null ones.
    """
    each = moments_of(settings)
    need = room_needed(config, settings, model, points, each, columns, longest)
    return need and replace(need, rows=columns * (need.trained // (points * (1 + each))))


def targets_room(
    config: CommonConfig,
    settings: GradientConfig,
    model: str,
    points: int,
    width: int | None,
    longest: int,
    null: NullPlan | None = None,
) -> Need | None:
    """Memory the task needs that computes targets: sums of one subtask and its null columns at a time, and the vectors of one of
    its members; for null columns of rows also the moments."""
    each = moments_of(settings) if null and null.kind == ROWS else 0
    need = room_needed(config, settings, model, points, each, width, longest)
    columns = null.columns if null else 0
    return need and replace(need, rows=(MEMBER_VECTORS + columns) * (need.accumulators // 3))


def null_fits(without: Need, whole: Need, fit: Callable[[Need], Fit | None], points: int, folder: Location) -> bool:
    """Whether exact matching has room for null targets, too: as many workers as without them, passes that are long enough, and
    disk.

    `fit` tells how a need fits the cluster. GPUs of unknown memory count as too small: a null must not end a run.
    """
    one, other = fit(without), fit(whole)
    if one is None or other is None:
        return False
    slower = other.workers < one.workers or other.tokens < min(one.tokens, LONG_PASS)
    if not other.small and (other.too_large or slower):
        return False
    return not folder.is_local or whole.rows * points <= shutil.disk_usage(folder.path).free


def require_exact_room(
    method: str, need: Need, found: Fit | None, on_gpu: bool, subtasks: int, points: int, folder: Location
) -> None:
    """Refuses exact matching that cannot fit: targets of one checkpoint beside the model, or those of all on disk.

    `need` is that of matching at one checkpoint. Memory that nobody knows (`found` is None) is not refused, nor are long rows:
    passes become shorter, and a row that does not fit alone is set aside.
    """
    each = need.rows // subtasks
    store = f"Set {method}.matching=store, whose targets are short"
    least = need.fixed if found is None else found.bytes - need.by_token * max(found.tokens, need.longest)
    if found and not found.small and least > found.room:
        fits = subtasks - -(-(least - found.room) // each)
        fewer = f", or give a target of at most {fits} subtasks" if fits > 0 else ""
        raise StageError(
            f"targets: exact matching holds {least / GIB:.1f} GiB without any row: {need.rows / GIB:.1f} for the targets of "
            f"{subtasks} subtasks at one checkpoint, {need.weights / GIB:.1f} for the model. {'A GPU' if on_gpu else 'A machine'} "
            f"has {found.room / GIB:.1f} GiB. {store}{fewer}."
        )
    disk = need.rows * points
    if folder.is_local and disk > (free := shutil.disk_usage(folder.path).free):
        raise StageError(
            f"targets: those for exact matching take {disk / GIB:.1f} GiB on disk ({subtasks} subtasks at {points} checkpoints, "
            f"{each / GIB:.2f} GiB each), and {folder} has {free / GIB:.1f} GiB free. {store}, give fewer subtasks, match fewer "
            f"checkpoints ({method}.checkpoints), or make room."
        )
