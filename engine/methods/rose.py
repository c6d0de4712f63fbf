"""ROSE (arXiv 2412.00631): rows whose training step lowers a pairwise preference loss (DPO) on a few pairs per subtask.

Like LESS, except that the target is the gradient of the preference loss of the warmed-up model against its base. With pairs
normalised one by one (`mean_of_units`, the official code) beta and the reference cancel; they matter in `preset: paper`.
The preset of the official code keeps two of its departures: an end token between prompt and answer, and batches of 4.

`preset: anchored` departs from the paper: it adds the chosen answer's own gradient to the contrast. If both answers are of the
target's kind, the worse one, which the model finds less likely, has the larger gradient in the direction of that kind; so the
contrast alone points away from it, and ranks the rows that serve the target last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from raysift.gradients.null_columns import ROWS, SIGNS, Kind
from raysift.methods.gradient import GradientConfig, GradientSelector, TargetFile
from raysift.methods.less import PAPER
from raysift.pool.files import find_files
from raysift.pool.pairs import PAIR_PROBLEMS, PairReader
from raysift.settings.gradients import PreferenceSettings

if TYPE_CHECKING:
    from raysift.gradients.null_columns import NullPlan
    from raysift.gradients.preference import Targets

SHOWN = 3  # records listed in a note


class RoseConfig(GradientConfig):
    """Settings of ROSE."""

    preference: PreferenceSettings = Field(default_factory=PreferenceSettings)
    end_prompt: bool = False
    """Put an end-of-sequence token between prompt and answer, as the official code does with its plain-text prompts. Chat
    templates already end the turn."""


class Rose(GradientSelector):
    """Targets are preference pairs."""

    name = "rose"
    summary = "Select rows whose gradient lowers a preference loss on target pairs (ROSE)."
    needs = "a pool, and --target: preference pairs (prompt, chosen, rejected)"
    main_settings = ("warmup_share", "checkpoints", "matching", "match.subtasks", "preference.beta")
    Config = RoseConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "official": {"end_prompt": True, "train": {"recipe": "rose-official"}},
        "paper": PAPER,
        "anchored": {"preference": {"answer_weight": 1.0}},
    }
    target_kind = (
        "preference pairs: prompt, chosen and rejected (rose.targets.columns.chosen=NAME names another column)"
    )
    unread = ("split",)
    of_target = ("preference", "end_prompt")
    config: RoseConfig

    @property
    def turns_with_sides(self) -> bool:
        """Not where the chosen answer's own gradient is added: it stays as it is."""
        return self.config.preference.answer_weight == 0

    @property
    def null_kind(self) -> Kind:
        """Where the chosen answer counts by itself, random signs would cancel it and leave no target at all."""
        return SIGNS if self.turns_with_sides else ROWS

    def read_target(self, path: str) -> TargetFile:
        found, wanted, problems = TargetFile(), self.config.targets, []
        for file in find_files([path]):
            reader = PairReader([file], wanted.columns, wanted.subtask, keep_identical=True)  # they count as zeros
            for pair in reader:
                found.members.append(pair)
                found.places.append((file.name, reader.pairs + reader.problems.total()))
            found.problems += reader.problems
            problems += reader.places
        for reason, count in found.problems.items():
            places = [place.removeprefix(f"{path}, ") for place in problems if place.endswith(f": {reason}")]
            first = "; ".join(place.removesuffix(f": {reason}") for place in places[:SHOWN])
            where = f" First: {first}." if first else ""
            found.notes.append(
                f"{path}: {count} records give no pair ({reason}). {PAIR_PROBLEMS.get(reason, reason)}{where}"
            )
        return found

    def target_gradients(
        self, actor: Any, members: Sequence[Any], keep_units: bool = False, null: NullPlan | None = None
    ) -> list[Targets]:
        own = self.config
        found: list[Targets] = actor.from_pairs(members, own.preference, own.targets, own.end_prompt, keep_units, null)
        return found
