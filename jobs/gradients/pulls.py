"""What each pair or example of the target adds to one row's score: for `raysift explain`, which loads the model for it.

A pull is known only while the target files hold what the run read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from raysift.errors import DataError
from raysift.evaluation.examples import read_examples
from raysift.fingerprint import file_fingerprint
from raysift.jobs.gradients.targeting import read_targets, subtask_of, target_files
from raysift.jobs.runs.models import find_model
from raysift.jobs.runs.run import Run
from raysift.manifest import Manifest
from raysift.methods.gradient import GradientConfig
from raysift.methods.rose import Rose
from raysift.pool.files import find_files
from raysift.pool.pairs import PairReader
from raysift.settings.config import CommonConfig
from raysift.storage import open_location

HELD_NUMBERS = 2**27  # of the pairs' gradients at once; more are compared by their projections


@dataclass(frozen=True)
class Pull:
    """What one pair or example of the target adds: its cosine with the row per checkpoint, and their weighted sum."""

    file: str
    record: int | str
    """The record's number in the file, from 1, of a pair; the id of an example."""
    subtask: str
    pull: float
    cosines: list[float | None]


def changed_targets(run: Run, config: CommonConfig) -> str | None:
    """What is no longer as the run read it, if anything is: a target file that has another content, or is not there."""
    manifest = run.manifest("targets")
    if manifest is None:
        return None
    left = [content for *_, content in manifest.inputs["target"]]
    for path in config.target:
        try:
            files = target_files(config.model_copy(update={"target": [path]}))
        except DataError:
            return f"the target file {path} is not there any more (looked for {open_location(path).path})"
        for content in map(file_fingerprint, files):
            if content not in left:
                return f"the target file {path} has changed since the run"
            left.remove(content)
    return f"the target files {', '.join(config.target)} have changed since the run" if left else None


def compute_pulls(
    run: Run, config: CommonConfig, messages: Sequence[dict[str, str]], scores: Manifest
) -> list[Pull] | None:
    """The cosine of the row's direction with every pair's gradient, strongest first; loads the model for this one row."""
    import ray

    from raysift.jobs.gradients.stages import checkpoints_of
    from raysift.jobs.recipes import make_selector

    selector = make_selector(config)
    warm = run.manifest("warmup")
    if warm is None or not isinstance(selector.config, GradientConfig):
        return None
    points = checkpoints_of(run, warm, selector.config.checkpoints)
    pinned = config.model_copy(update={"model": find_model(run, config).name})
    members = read_targets(run, config, selector.config).members
    task = ray.remote(num_cpus=min(1.0, config.resources.cpus_per_worker), num_gpus=config.resources.gpus_per_worker)
    by_checkpoint = ray.get(task(_pulls_in_task).remote(list(messages), members, points, pinned, selector.config))
    weights = scores.values["checkpoint_weights"]
    pulls = []
    for number, (member, (file, record)) in enumerate(zip(members, places_of(config, selector.config), strict=True)):
        cosines = [found.get(number) for found in by_checkpoint]
        if any(cosine is not None for cosine in cosines):
            total = sum(w * c for w, c in zip(weights, cosines, strict=True) if c is not None)
            pulls.append(Pull(file, record, subtask_of(member), total, cosines))
    return sorted(pulls, key=lambda pull: -abs(pull.pull))


def places_of(config: CommonConfig, settings: GradientConfig) -> Iterator[tuple[str, int | str]]:
    """Where each pair or example stands, in the order in which `read_targets` gives them."""
    wanted = settings.targets
    for path in config.target:
        if config.method != Rose.name:
            yield from ((path, example.id) for example in read_examples(path, split=wanted.split))
            continue
        for file in find_files([path]):
            reader = PairReader([file], wanted.columns, wanted.subtask, keep_identical=True)
            for _ in reader:
                yield file.name, reader.pairs + reader.problems.total()


def _pulls_in_task(
    messages: Sequence[dict[str, str]],
    members: Sequence[Any],
    points: Sequence[Any],
    config: CommonConfig,
    settings: GradientConfig,
) -> list[dict[int, float]]:
    from raysift.actors.target_gradients import TargetGradients
    from raysift.jobs.gradients.stages import WHOLE, loading
    from raysift.jobs.gradients.targeting import targets_by

    actor = TargetGradients(config.model, points, settings.projection, settings.adam, **loading(config, settings))
    if len(members) * actor.model.layout.total <= HELD_NUMBERS:
        actor.project(WHOLE)
    return actor.pulls(messages, targets_by(actor, members, config, settings, keep_units=True))
