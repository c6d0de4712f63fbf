"""The agreement of a target without a run: at a new adapter, as a warm-up starts from it. No row is read, nothing is kept."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from raysift.actors.checkpointed import Checkpoint
from raysift.actors.language_model import portable_name
from raysift.config import CommonConfig
from raysift.jobs.cluster.machines import for_role, room_for_one, wait_for_room
from raysift.jobs.gradients.agreement import agreement_of
from raysift.jobs.gradients.room import warmup_recipe
from raysift.jobs.gradients.stages import WHOLE, gradient_loading
from raysift.jobs.gradients.targeting import TargetMembers, content_key
from raysift.methods.gradient import GradientSelector
from raysift.storage import open_location


def fresh_agreement(
    config: CommonConfig, selector: GradientSelector, found: TargetMembers, tell: Callable[[str], None]
) -> dict[str, Any]:
    """The value that the stage `targets` would keep, at one checkpoint that has learnt nothing. Needs a running Ray."""
    import ray

    own = for_role(config, "gradients")
    named = {name: portable_name(given) for name in ("model", "adapter") if (given := getattr(own, name)) is not None}
    wait_for_room("look", own.resources, tell)
    with room_for_one("look", own.resources, tell) as placed:
        task = ray.remote(**placed, max_retries=own.resources.restarts)(_in_task)
        values: dict[str, Any] = ray.get(
            task.remote(found.members, found.places, own.model_copy(update=named), selector, found.left_out)
        )
    return values


def _in_task(
    members: Sequence[Any],
    places: Sequence[tuple[str, int | str]],
    config: CommonConfig,
    selector: GradientSelector,
    left_out: int,
) -> dict[str, Any]:
    from raysift.actors.target_gradients import TargetGradients
    from raysift.actors.trainee import build_model

    settings = selector.config
    # Adapters of a base in four bits have the same shapes.
    train = warmup_recipe(config, settings).model_copy(update={"quantization": "none"})
    with tempfile.TemporaryDirectory(prefix="raysift-look-") as scratch:
        folder = open_location(scratch)
        build_model(train, config.model, config.adapter, config.trust_remote_code).save_pretrained(
            (folder / "adapter").path
        )
        point = Checkpoint("new adapter", folder / "adapter", None, 1.0)
        projection = settings.projection if settings.matching == "store" else WHOLE
        loading = gradient_loading(config, settings)
        actor = TargetGradients(config.model, [point], projection, files=(folder / "t").make_folder(), **loading)
        found = selector.target_gradients(actor, members)
    return agreement_of(found, [point], [content_key(member) for member in members], places, selector, left_out)
