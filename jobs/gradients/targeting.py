"""The target of a run: files of preference pairs or examples, and their gradients at each checkpoint.

All files form one target, unless `match.target_weights` makes each file a target of its own.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from raysift.actors.checkpointed import Checkpoint
from raysift.config import CommonConfig
from raysift.errors import ConfigError, DataError
from raysift.evaluation.examples import reference_answer
from raysift.gradients.null import without_null
from raysift.gradients.null_columns import NO_KIND, NO_ROOM, ROWS
from raysift.jobs.gradients.agreement import agreement_of, require_agreement
from raysift.jobs.gradients.null import NULL, NULL_ROWS, null_values, plan_null, save_null_rows
from raysift.jobs.gradients.room import exact_room, null_fits, require_exact_room, targets_room, warmup_recipe
from raysift.jobs.gradients.stages import WHOLE, checkpoints_of, gradient_loading
from raysift.jobs.pool.target_check import compare_with_pool
from raysift.jobs.runs.models import find_model
from raysift.jobs.runs.run import Run, StageResult
from raysift.manifest import Manifest
from raysift.methods.gradient import GradientSelector
from raysift.methods.rds import Rds
from raysift.pool.few_shot import draw_few
from raysift.pool.files import SourceFile, find_files, fingerprint_files
from raysift.pool.id_text import exact
from raysift.pool.likeness import evenly
from raysift.pool.longest import most_tokens_of
from raysift.pool.row_ids import row_id
from raysift.reasons.agreement import AGREEMENT
from raysift.records import Example, Message, Pair
from raysift.settings.gradients import ProjectionSettings
from raysift.storage import Location

if TYPE_CHECKING:
    from raysift.gradients.null_columns import NullPlan
    from raysift.gradients.preference import Targets

EXAMPLES_FILE = "examples.parquet"


class TargetMembers(NamedTuple):
    """The pairs or examples of all target files."""

    members: list[Any]
    places: list[tuple[str, int | str]]
    """Place of each member (see `TargetFile`)."""
    target_of: dict[str, int]
    """Number of the target that a subtask belongs to."""
    problems: Counter[str]
    """Number of records that give no member, by reason."""
    notes: list[str]
    """The problems in words, with the first records of each file."""
    by_file: list[tuple[str, list[Any]]]
    """The members, grouped by the path they were read from."""
    left_out: int = 0
    """Members of the files that were not drawn (`targets.limit`)."""
    drawn: Mapping[str, Any] = MappingProxyType({})
    """Limit and seed, for fingerprints, if members were left out."""


def read_targets(config: CommonConfig, selector: GradientSelector | Rds) -> TargetMembers:
    """Read all target files, once per run and before any training; refuses files that are missing, unusable, of the
    wrong kind or not as many as their weights."""
    _check_settings(config, selector)
    names = _names(config.target) if selector.config.match.target_weights else None
    found = TargetMembers([], [], {}, Counter(), [], [])
    for number, path in enumerate(config.target):
        try:
            file = selector.read_target(path)
        except (ConfigError, DataError) as error:
            reason = str(error).partition(": ")[2]  # without the reader's own name
            kind = ConfigError if isinstance(error, ConfigError) else DataError
            raise kind(f"targets: {reason} {selector.name} takes {selector.target_kind}.") from error
        members = file.members
        if names:
            members = [_of_target(member, names[number]) for member in members]
            if not members:
                raise DataError(f"targets: {path} is to be a target of its own but holds no usable pair.")
            found.target_of.update(dict.fromkeys(map(subtask_of, members), number))
        found.members.extend(members)
        found.places.extend(file.places)
        found.problems.update(file.problems)
        found.notes.extend(file.notes)
        found.by_file.append((path, members))
    if not found.members:
        raise DataError(
            f"targets: no usable pair. {' '.join(found.notes)} {selector.name} takes {selector.target_kind}."
        )
    limit = selector.config.targets.limit
    return found if limit == "none" else _few_of(found, limit, config.seed)


def _few_of(found: TargetMembers, limit: int, seed: int) -> TargetMembers:
    subtasks = [subtask_of(member) for member in found.members]
    kept = draw_few([content_key(member) for member in found.members], subtasks, limit, seed)
    left_out = len(found.members) - len(kept)
    if not left_out:
        return found
    drawn = {id(found.members[place]) for place in kept}
    return found._replace(
        members=[found.members[place] for place in kept],
        places=[found.places[place] for place in kept],
        by_file=[(path, [member for member in members if id(member) in drawn]) for path, members in found.by_file],
        left_out=left_out,
        drawn={"limit": limit, "seed": seed},
    )


def content_key(member: Pair | Example) -> int:
    """A number that depends on the texts alone."""
    answers = [member.chosen, member.rejected] if isinstance(member, Pair) else [reference_answer(member) or ""]
    return row_id([*member.prompt, *(Message("assistant", answer) for answer in answers)])


def tell_drawn(found: TargetMembers, selector: GradientSelector | Rds) -> str:
    """How many of the target's members were drawn, and how to take all; empty if none was left out."""
    if not found.left_out:
        return ""
    kind = "pairs" if isinstance(found.members[0], Pair) else "examples"
    of = ", ".join(path for path, _ in found.by_file)
    return (
        f"targets: {len(found.members):,} of {len(found.members) + found.left_out:,} {kind} of {of}, drawn by seed "
        f"{found.drawn['seed']}; {selector.name}.targets.limit=none takes all"
    )


def _check_settings(config: CommonConfig, selector: GradientSelector | Rds) -> None:
    name, wanted = selector.name, selector.target_kind
    if not config.target:
        raise ConfigError(f"config: 'target' is missing. {name} needs {wanted.partition(':')[0]}: --target FILE...")
    weights = selector.config.match.target_weights
    if weights and len(weights) != len(config.target):
        raise ConfigError(
            f"config: '{name}.match.target_weights' has {len(weights)} numbers for {len(config.target)} target files "
            f"({', '.join(config.target)}). Give each file one, in their order; {name}.match.target_weights=null takes them off."
        )
    for unread in selector.unread:
        if getattr(selector.config.targets, unread) is not None:
            raise ConfigError(f"config: '{name}.targets.{unread}' is set, but {name} takes {wanted}. Leave it out.")


def like_pool(
    run: Run, config: CommonConfig, selector: GradientSelector | Rds, found: TargetMembers, rows: Manifest
) -> Manifest:
    """How similar each target file is to the pool, reported before any training."""

    def texts() -> dict[str, list[str]]:
        return {path: [_text_of(member) for member in evenly(members)] for path, members in found.by_file}

    if told := tell_drawn(found, selector):
        run.console.note(told)
    decides = selector.config.targets.model_dump(exclude_none=True, exclude={"limit", "least_agreement"})
    decides |= dict(found.drawn)
    return compare_with_pool(run, rows, target_files(config), decides, texts)


def _text_of(member: Pair | Example) -> str:
    answer = member.chosen if isinstance(member, Pair) else reference_answer(member) or ""
    return "\n".join([*(message.content for message in member.prompt), answer])


def target_files(config: CommonConfig) -> list[SourceFile]:
    """All files of the targets, with folders and globs expanded."""
    return find_files(config.target)


def subtask_of(member: Pair | Example) -> str:
    """The subtask under which a pair or an example is matched."""
    return member.subtask if isinstance(member, Pair) else member.subset or member.task


def _names(paths: Sequence[str]) -> list[str]:
    """File names without folder and extensions; equal names are numbered."""
    stems = [PurePosixPath(path).name.split(".")[0] for path in paths]
    return [f"{stem} {i + 1}" if stems.count(stem) > 1 else stem for i, stem in enumerate(stems)]


def _of_target(member: Any, name: str) -> Any:
    """The member, with a subtask name that no other target uses."""
    subtask = subtask_of(member)
    label = name if subtask in ("all", name) else f"{name}: {subtask}"
    return replace(member, **{"subtask" if isinstance(member, Pair) else "subset": label})


def targets(
    run: Run,
    config: CommonConfig,
    selector: GradientSelector,
    found: TargetMembers,
    rows: Manifest,
    trained: Manifest,
) -> Manifest:
    """The gradient of the target loss at each checkpoint, one vector per subtask, and null ones beside it."""
    settings = selector.config
    model, points = find_model(run, config), checkpoints_of(run, trained, settings.checkpoints)
    projection = settings.projection if settings.matching == "store" else WHOLE
    train = warmup_recipe(config, settings)

    def body(folder: Location) -> StageResult:
        import ray

        from raysift.jobs.cluster.machines import for_role, room_for_one
        from raysift.jobs.on_ray.fitting import fit_cluster, with_room
        from raysift.jobs.on_ray.peaks import telling

        for note in found.notes:
            run.console.note(f"targets: {note}")
        members, problems = found.members, found.problems
        names = [subtask_of(member) for member in members]
        subtasks = len(set(names))
        null, why = plan_null(run, selector, [content_key(member) for member in members], names, rows)
        tries = 0

        def room_for_null(columns: int) -> bool:
            """Not after a kill, nor where it takes room that the run needs: a null never ends a run that works without it."""
            wanted = (subtasks, subtasks * (1 + columns))
            without, whole = (exact_room(config, settings, model.name, len(points), count) for count in wanted)
            if tries > 1 or projection is not WHOLE or without is None or whole is None:
                return tries == 1
            there = for_role(config, "gradients").resources
            return null_fits(without, whole, partial(fit_cluster, there), len(points), folder)

        def compute(own: CommonConfig) -> dict[str, Any]:
            nonlocal null, why, tries
            tries += 1
            asked = exact_room(config, settings, model.name, 1, subtasks) if projection is WHOLE else None
            if asked:
                there = for_role(config, "gradients").resources
                room = fit_cluster(there, asked, most=1)
                require_exact_room(selector.name, asked, room, there.on_gpu, subtasks, len(points), folder)
            if null and not room_for_null(null.columns):
                null, why = None, NO_ROOM
            with room_for_one("targets", own.resources, run.console.note) as placed:
                task = ray.remote(**placed, max_retries=own.resources.restarts)(telling(_compute_targets))
                values: dict[str, Any] = ray.get(
                    task.remote(members, found.places, points, own, selector, projection, model.name, folder, null, why)
                )
            return values

        width = None if projection.kind == "none" else projection.dimension
        longest = max(map(most_tokens_of, members))
        need = targets_room(config, settings, model.name, len(points), width, longest, null)
        values = with_room(run, "targets", config, need, compute, "gradients", most=1)
        values[AGREEMENT]["left_out"] = found.left_out
        if (missing := values["null"]["why"]) and missing != NO_KIND:
            run.console.note(f"targets: {without_null(missing)}")
        values["target_of"] = [found.target_of.get(subtask, 0) for subtask in values["subtasks"]]
        for reason, count in values["set_aside"].items():
            run.console.note(f"targets: {count} of {len(members)}: {reason}")
        files = {"targets": [f"{point.name}.safetensors" for point in points], "members": ["members.json"]}
        files["examples"] = [EXAMPLES_FILE]
        files |= {NULL: [NULL_ROWS]} if null and null.kind == ROWS else {}
        aside, truncated = values["set_aside"], values.pop("truncated")
        if truncated:
            run.console.note(
                f"targets: {truncated} of {len(members)} have an answer of which a part is cut off: the longest input is "
                f"{values['longest_input']} tokens."
            )
        counts = {
            "rows_in": len(members) + found.left_out + sum(problems.values()),
            "kept": len(members) - sum(aside.values()),
            "unreadable": problems,
            "set_aside": aside,
            "not_drawn": found.left_out,
            "truncated": truncated,
        }
        return StageResult(files=files, counts=counts, values=values)

    inputs = {
        "target": fingerprint_files(target_files(config)),
        "warmup": trained.fingerprint,
        "model": model.identity,
    }
    decides: dict[str, Any] = {
        "projection": projection,
        "targets": settings.targets.model_dump(exclude_none=True, exclude={"split", "limit", "least_agreement"})
        | dict(found.drawn),
        "checkpoints": settings.checkpoints,
        "template": train.template,
        "max_length": train.max_length,
        "split": settings.targets.split,
        "dtype": train.dtype,
        "quantization": train.quantization,
        "apart": settings.match.target_weights is not None,
        "null": selector.null_kind,
    }
    if selector.null_kind == ROWS:
        inputs["rows"] = rows.fingerprint
    decides |= {name: getattr(settings, name) for name in selector.of_target}
    # 2: shows inputs apart, as rows do; 3: tells how far its members agree, and has a null; 4: null rows have their direction
    manifest = run.stage("targets", decides, inputs, body, version=4 if selector.null_kind == ROWS else 3)
    require_agreement(run, selector, manifest)
    return manifest


def _compute_targets(
    members: Sequence[Any],
    places: Sequence[tuple[str, int | str]],
    points: Sequence[Checkpoint],
    config: CommonConfig,
    selector: GradientSelector,
    projection: ProjectionSettings,
    model: str,
    folder: Location,
    null: NullPlan | None,
    why: str,
) -> dict[str, Any]:
    """Runs in its own task because it needs the model: writes the vectors, returns the manifest's values."""
    from raysift.actors.target_files import TargetFiles, save_examples
    from raysift.actors.target_gradients import PLAIN, TargetGradients

    settings = selector.config
    adam = settings.adam if null and null.kind == ROWS else PLAIN
    actor = TargetGradients(model, points, projection, adam, files=folder, **gradient_loading(config, settings))
    more: dict[str, Any] = {"null": null} if null else {}
    found = selector.target_gradients(actor, members, **more)
    account = {
        point.name: [vars(member) for member in target.members] for point, target in zip(points, found, strict=True)
    }
    (folder / "members.json").write(json.dumps(exact(account)))
    keys = [content_key(member) for member in members]
    save_examples(folder / EXAMPLES_FILE, points, found, keys)
    if null and null.kind == ROWS:
        save_null_rows(folder / NULL_ROWS, actor.null_rows)
    TargetFiles(folder, actor.hash).tidy(points)
    set_aside, truncated = count_members(found)
    return {
        "subtasks": list(found[0].subtasks),
        "projection": actor.hash,
        "layout": actor.model.layout.hash,
        "parameters": actor.model.layout.total,
        "set_aside": set_aside,
        "truncated": truncated,
        "longest_input": actor.model.max_length,
        "deviation_from_autograd": actor.deviation,
        AGREEMENT: agreement_of(found, points, keys, places, selector),
        "null": null_values(selector.null_kind, null, why, found),
        "mean_losses": [float(np.mean([member.loss for member in target.members])) for target in found],
    }


def count_members(found: Sequence[Targets]) -> tuple[dict[str, int], int]:
    """Counts of members without a gradient at some checkpoint, by first reason, and of others with a cut answer."""
    reasons: dict[int, str] = {}
    for why in (why for target in found for why in target.set_aside):
        reasons.setdefault(why.id, why.reason)
    cut = {member.id for target in found for member in target.members if member.truncated}
    return dict(Counter(reasons.values())), len(cut - reasons.keys())
