"""LESS (Xia et al. 2024, arXiv 2402.04333): rows whose training step lowers the cross-entropy of a few target examples.

The official code departs from the paper and is the default here: epsilon is inside the root of Adam's step, without bias
correction, and a subtask's target is the mean of its examples' unit gradients. `preset: paper` does both as in the paper.
Both presets train with the recipe that paper and code share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from raysift.errors import DataError
from raysift.evaluation.examples import read_examples, reference_answer
from raysift.gradients.null_columns import ROWS, Kind
from raysift.methods.gradient import GradientConfig, GradientSelector, TargetFile

if TYPE_CHECKING:
    from raysift.gradients.null_columns import NullPlan
    from raysift.gradients.preference import Targets

PAPER: dict[str, Any] = {
    "adam": {"form": "textbook"},
    "targets": {"aggregation": "unit_of_mean"},
    "train": {"recipe": "less"},
}


class LessConfig(GradientConfig):
    """Settings of LESS: only those that all gradient methods share."""


class Less(GradientSelector):
    """Targets are examples with a reference answer."""

    name = "less"
    summary = "Select rows whose gradient lowers the loss on target examples (LESS)."
    needs = "a pool, and --target: examples with a right answer, in any layout that a pool may have"
    main_settings = ("warmup_share", "checkpoints", "matching", "match.subtasks")
    Config = LessConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "official": {"train": {"recipe": "less"}},
        "paper": PAPER,
    }
    target_kind = (
        "examples with a right answer: prompt and reference, or choices and answer_index, or records of a pool's layout"
    )
    unread = ("columns", "subtask")
    config: LessConfig

    @property
    def null_kind(self) -> Kind:
        return ROWS

    def read_target(self, path: str) -> TargetFile:
        return read_answered(path, self.config.targets.split)

    def target_gradients(
        self, actor: Any, members: Sequence[Any], keep_units: bool = False, null: NullPlan | None = None
    ) -> list[Targets]:
        found: list[Targets] = actor.from_examples(members, self.config.targets, keep_units, null)
        return found


def read_answered(path: str, split: str | None) -> TargetFile:
    """The examples of a target path; refuses a file in which one has no right answer."""
    examples = read_examples(path, split=split)
    mute = [example.id for example in examples if not (reference_answer(example) or "").strip()]
    if mute:
        raise DataError(
            f"examples: {path}: {len(mute)} of {len(examples)} examples have no right answer, so there is nothing to "
            f"learn; the first is '{mute[0]}'."
        )
    return TargetFile(list(examples), [(path, example.id) for example in examples])
