"""What a run is to get better at: target files as preference pairs or examples, and their gradients at each checkpoint.

All files together are one target, unless `match.target_weights` makes each of them a target of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from raysift.actors.checkpointed import Checkpoint
from raysift.config import CommonConfig
from raysift.errors import ConfigError, DataError
from raysift.examples import read_examples
from raysift.fingerprint import file_fingerprint
from raysift.formats import read_pairs
from raysift.gradient_settings import ProjectionSettings
from raysift.jobs.gradients import WHOLE, checkpoints_of, loading, warmup_recipe
from raysift.jobs.run import Run, StageResult
from raysift.manifest import Manifest
from raysift.methods import Selector
from raysift.methods.gradient import GradientConfig
from raysift.methods.rose import Rose
from raysift.records import Example, Pair
from raysift.storage import Location, open_location

if TYPE_CHECKING:
    from raysift.actors.target_gradients import TargetGradients


class TargetMembers(NamedTuple):
    """The pairs or examples of all target files."""

    members: list[Any]
    target_of: dict[str, int]
    """Which target a subtask belongs to."""
    problems: dict[str, int]
    """Records that give no pair, by reason."""


def check_targets(config: CommonConfig, settings: GradientConfig) -> None:
    """Refuses target files that are missing or do not fit their weights, before anything is trained."""
    if not config.target:
        what = "preference pairs" if config.method == Rose.name else "examples with a reference answer"
        raise ConfigError(f"config: 'target' is missing. {config.method} needs {what}: --target FILE...")
    weights = settings.match.target_weights
    if weights and len(weights) != len(config.target):
        raise ConfigError(
            f"config: '{config.method}.match.target_weights' has {len(weights)} numbers for {len(config.target)} target "
            f"files ({', '.join(config.target)}). Give each file one, in their order."
        )


def read_targets(run: Run, config: CommonConfig, settings: GradientConfig) -> TargetMembers:
    """Preference pairs for ROSE, examples for LESS, with what was wrong with the others counted."""
    check_targets(config, settings)
    names = _names(config.target) if settings.match.target_weights else None
    found = TargetMembers([], {}, {})
    for number, path in enumerate(config.target):
        members = _read_file(run, config, path, found.problems)
        if names:
            members = [_of_target(member, names[number]) for member in members]
            if not members:
                raise DataError(f"targets: {path} is to be a target of its own but holds no usable pair.")
            found.target_of.update(dict.fromkeys(map(subtask_of, members), number))
        found.members.extend(members)
    if not found.members:
        raise DataError(f"targets: {', '.join(config.target)} hold no usable pair ({found.problems}).")
    return found


def _read_file(run: Run, config: CommonConfig, path: str, problems: dict[str, int]) -> list[Any]:
    if config.method != Rose.name:
        return list(read_examples(path, split=config.evaluate.split))
    reader = read_pairs(path, keep_identical=True)  # they count as zeros, and are reported
    pairs = list(reader)
    for reason, count in reader.problems.items():
        problems[reason] = problems.get(reason, 0) + count
        run.console.note(f"targets: {path}: {count} records give no pair: {reason}")
    return pairs


def subtask_of(member: Pair | Example) -> str:
    """The subtask under which a pair or an example is matched."""
    return member.subtask if isinstance(member, Pair) else member.subset or member.task


def _names(paths: Sequence[str]) -> list[str]:
    """Names of files without folder and endings, told apart by number where they are the same."""
    stems = [PurePosixPath(path).name.split(".")[0] for path in paths]
    return [f"{stem} {i + 1}" if stems.count(stem) > 1 else stem for i, stem in enumerate(stems)]


def _of_target(member: Any, name: str) -> Any:
    """The member under a subtask that no other target has."""
    subtask = subtask_of(member)
    label = name if subtask in ("all", name) else f"{name}: {subtask}"
    return replace(member, **{"subtask" if isinstance(member, Pair) else "subset": label})


def targets(
    run: Run, config: CommonConfig, settings: GradientConfig, selector: Selector, trained: Manifest
) -> Manifest:
    """The gradient of the target loss at each checkpoint, one vector per subtask."""
    points = checkpoints_of(run, trained, settings.checkpoints)
    projection = settings.projection if settings.matching == "store" else WHOLE
    train = warmup_recipe(config, settings)

    def body(folder: Location) -> StageResult:
        import ray

        members, target_of, problems = read_targets(run, config, settings)
        task = ray.remote(
            num_cpus=min(1.0, config.resources.cpus_per_worker),
            num_gpus=config.resources.gpus_per_worker,
            max_retries=2,
        )(_compute_targets)
        values = ray.get(task.remote(members, points, config, settings, projection, folder))
        values["target_of"] = [target_of.get(subtask, 0) for subtask in values["subtasks"]]
        for reason, count in values["set_aside"].items():
            run.console.note(f"targets: {count} of {len(members)}: {reason}")
        files = {"targets": [f"{point.name}.safetensors" for point in points], "members": ["members.json"]}
        counts = {"rows_in": len(members) + sum(problems.values()), "kept": len(members), "unreadable": problems}
        return StageResult(files=files, counts=counts | {"set_aside": values["set_aside"]}, values=values)

    files = [open_location(path) for path in config.target]
    inputs = {"target": [[place.name, file_fingerprint(place)] for place in files], "warmup": trained.fingerprint}
    decides: dict[str, Any] = {
        "projection": projection,
        "targets": settings.targets,
        "checkpoints": settings.checkpoints,
        "template": train.template,
        "max_length": train.max_length,
        "split": config.evaluate.split,
        "apart": settings.match.target_weights is not None,
    }
    if isinstance(selector, Rose):
        decides |= {"preference": selector.config.preference, "end_prompt": selector.config.end_prompt}
    return run.stage("targets", decides, inputs, body)


def _compute_targets(
    members: Sequence[Any],
    points: Sequence[Checkpoint],
    config: CommonConfig,
    settings: GradientConfig,
    projection: ProjectionSettings,
    folder: Location,
) -> dict[str, Any]:
    """In a task of its own, for it needs the model: writes the vectors, gives what the manifest keeps."""
    from raysift.actors.target_gradients import TargetGradients, save_targets

    actor = TargetGradients(config.model, points, projection, **loading(config, settings))
    found = targets_by(actor, members, config, settings)
    save_targets(folder, points, found, actor.hash)
    account = {
        point.name: [vars(member) for member in target.members] for point, target in zip(points, found, strict=True)
    }
    (folder / "members.json").write(json.dumps(account))
    set_aside: dict[str, int] = {}
    for why in found[0].set_aside:
        set_aside[why.reason] = set_aside.get(why.reason, 0) + 1
    return {
        "subtasks": list(found[0].subtasks),
        "projection": actor.hash,
        "layout": actor.model.layout.hash,
        "parameters": actor.model.layout.total,
        "set_aside": set_aside,
        "mean_losses": [float(np.mean([member.loss for member in target.members])) for target in found],
    }


def targets_by(
    actor: TargetGradients,
    members: Sequence[Any],
    config: CommonConfig,
    settings: GradientConfig,
    keep_units: bool = False,
) -> list[Any]:
    """`raysift.preference.Targets` of each checkpoint, from pairs or from examples."""
    if not isinstance(members[0], Pair):
        return actor.from_examples(members, settings.targets, keep_units)
    rose = getattr(config, "rose")  # noqa: B009 - a section made by the registry of methods
    return actor.from_pairs(members, rose.preference, settings.targets, rose.end_prompt, keep_units)
