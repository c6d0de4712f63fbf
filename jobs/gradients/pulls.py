"""How much each pair or example of the target adds to one row's score, for `raysift explain`.

This loads the model, and needs the target files to be as the run read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raysift.config import CommonConfig, make_selector
from raysift.errors import DataError
from raysift.evaluation.examples import reference_answer
from raysift.jobs.cluster.machines import for_role, room_for_one, wait_for_room
from raysift.jobs.gradients.stages import WHOLE, checkpoints_of, gradient_loading
from raysift.jobs.gradients.targeting import content_key, read_targets, subtask_of
from raysift.jobs.runs.models import find_model
from raysift.jobs.runs.run import Run
from raysift.manifest import Manifest
from raysift.methods.gradient import GradientSelector
from raysift.methods.rds import Rds
from raysift.pool.files import find_files, fingerprint_files
from raysift.records import Example, Pair
from raysift.storage import open_location

HELD_NUMBERS = 2**27  # gradient numbers held at once; beyond that, projections are compared


@dataclass(frozen=True)
class Pull:
    """How much one target pair or example adds: its cosine with the row at each checkpoint, and their weighted sum."""

    file: str
    record: int | str
    """For a pair, its record's number in the file, from 1; for an example, its id."""
    text: str
    """What the pair or the example asks."""
    subtask: str
    pull: float
    cosines: list[float | None]
    answer: str = ""
    """The example's right answer, or the pair's better one."""
    rejected: str | None = None
    """The pair's worse answer."""


def changed_targets(run: Run, config: CommonConfig) -> str | None:
    """How the target files differ from what the run read: one has changed or is missing. None if they are the same."""
    manifest = run.manifest("targets", "similarity")
    if manifest is None:
        return None
    left = [content for *_, content in manifest.inputs["target"]]
    for path in config.target:
        try:
            files = find_files([path])
        except DataError:
            return f"the target file {path} is not there any more (looked for {open_location(path).path})"
        for _, content in fingerprint_files(files):
            if content not in left:
                return f"the target file {path} has changed since the run"
            left.remove(content)
    return f"the target files {', '.join(config.target)} have changed since the run" if left else None


def compute_pulls(
    run: Run, config: CommonConfig, messages: Sequence[dict[str, str]], scores: Manifest
) -> list[Pull] | None:
    """Cosines of one row's direction with each member's gradient, strongest pull first; loads the model for it."""
    import ray

    selector, warm = make_selector(config), run.manifest("warmup")
    if warm is None or not isinstance(selector, GradientSelector):
        return None
    points, found = checkpoints_of(run, warm, selector.config.checkpoints), read_targets(config, selector)
    for note in found.notes:
        run.console.note(f"targets: {note}")
    pinned = config.model_copy(update={"model": find_model(run, config).name})
    pinned = for_role(pinned, "gradients")
    wait_for_room("explain", pinned.resources, run.console.note)
    own = pinned.resources
    with room_for_one("explain", own, run.console.note) as placed:
        task = ray.remote(**placed)(_pulls_in_task)
        by_checkpoint = ray.get(task.remote(list(messages), found.members, points, pinned, selector))
    weights = scores.values["checkpoint_weights"]
    pulls = []
    for number, (member, (file, record)) in enumerate(zip(found.members, found.places, strict=True)):
        cosines = [at.get(number) for at in by_checkpoint]
        if any(cosine is not None for cosine in cosines):
            total = sum(w * c for w, c in zip(weights, cosines, strict=True) if c is not None)
            text, answer, rejected = quoted(member)
            pulls.append(Pull(file, record, text, subtask_of(member), total, cosines, answer, rejected))
    return sorted(pulls, key=lambda pull: -abs(pull.pull))


def pulls_by_example(config: CommonConfig, cosines: Sequence[float]) -> list[Pull]:
    """The same for RDS+, whose scores hold a cosine with every example; no model is needed."""
    selector = make_selector(config)
    assert isinstance(selector, Rds)
    found = read_targets(config, selector)
    order = sorted(range(len(found.members)), key=lambda number: content_key(found.members[number]))
    pulls = []
    for number, cosine in zip(order, cosines, strict=True):
        (file, record), member = found.places[number], found.members[number]
        text, answer, rejected = quoted(member)
        pulls.append(Pull(file, record, text, subtask_of(member), cosine, [cosine], answer, rejected))
    return sorted(pulls, key=lambda pull: -pull.pull)


def quoted(member: Pair | Example) -> tuple[str, str, str | None]:
    """What a pair or an example asks, its right or better answer, and the worse one if there is one."""
    asked = "\n".join(message.content for message in member.prompt)
    if isinstance(member, Pair):
        return asked, member.chosen, member.rejected
    return asked, reference_answer(member) or "", None


def _pulls_in_task(
    messages: Sequence[dict[str, str]],
    members: Sequence[Any],
    points: Sequence[Any],
    config: CommonConfig,
    selector: GradientSelector,
) -> list[dict[int, float]]:
    from raysift.actors.target_gradients import TargetGradients

    settings = selector.config
    actor = TargetGradients(
        config.model, points, settings.projection, settings.adam, **gradient_loading(config, settings)
    )
    if len(members) * actor.model.layout.total <= HELD_NUMBERS:
        actor.project(WHOLE)
    return actor.pulls(messages, selector.target_gradients(actor, members, keep_units=True))
