"""Target gradients at each checkpoint, computed once by one actor and kept in safetensors: what rows are matched with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raysift.actors.checkpointed import Checkpoint, CheckpointedModel
from raysift.errors import DataError
from raysift.examples import reference_answer
from raysift.gradient_settings import AdamSettings, PreferenceSettings, ProjectionSettings, TargetSettings
from raysift.records import Example, Pair
from raysift.storage import Location

if TYPE_CHECKING:
    from raysift.preference import TokenExample

PLAIN = AdamSettings(form="none")


class TargetGradients:
    """Turns preference pairs (ROSE) or examples (LESS) into one vector per subtask and checkpoint.

    Gradients of targets are plain: the optimizer's moments (`adam`) shape only what a row would do.
    """

    def __init__(
        self,
        model: Any,
        checkpoints: Sequence[Checkpoint],
        projection: ProjectionSettings,
        adam: AdamSettings = PLAIN,
        **loading: Any,
    ) -> None:
        self.model = CheckpointedModel(model, checkpoints, adam, **loading)
        self.project(projection)

    def project(self, projection: ProjectionSettings) -> None:
        """Let gradients flow through another projection."""
        from raysift.projection import Projection

        self.sinks = self.model.projections(projection)
        self.hash = Projection(projection, self.model.layout).hash

    def from_pairs(
        self,
        pairs: Sequence[Pair],
        preference: PreferenceSettings,
        targets: TargetSettings,
        end_prompt: bool,
        keep_units: bool = False,
    ) -> list[Any]:
        """`raysift.preference.Targets` of each checkpoint."""
        from raysift.preference import preference_targets

        tokens = [self.model.encode_pair(number, pair, end_prompt) for number, pair in enumerate(pairs)]
        return [
            preference_targets(self.model.at(index, self.sinks[index]), tokens, preference, targets, keep_units)
            for index in range(len(self.model.checkpoints))
        ]

    def from_examples(
        self, examples: Sequence[Example], targets: TargetSettings, keep_units: bool = False
    ) -> list[Any]:
        """The same from the reference answers of examples, by cross-entropy."""
        from raysift.preference import cross_entropy_targets

        tokens = [self._encode(number, example) for number, example in enumerate(examples)]
        return [
            cross_entropy_targets(self.model.at(index, self.sinks[index]), tokens, targets, keep_units)
            for index in range(len(self.model.checkpoints))
        ]

    def pulls(self, messages: Sequence[dict[str, str]], targets: Sequence[Any]) -> list[dict[int, float]]:
        """Per checkpoint, the cosine of one row's direction with each pair or example; `targets` keep their units."""
        import numpy as np

        row, found = self.model.encode(0, messages), []
        for index, target in enumerate(targets):
            result = self.model.at(index, self.sinks[index]).run([row])
            if result.set_aside:
                raise DataError(f"explain: the row has no gradient: {result.set_aside[0].message}.")
            direction = result.vectors[0] / np.linalg.norm(result.vectors[0])
            cosines = target.units @ direction
            found.append({member.id: float(c) for member, c in zip(target.members, cosines, strict=True)})
        return found

    def _encode(self, number: int, example: Example) -> TokenExample:
        from raysift.preference import TokenExample

        answer = reference_answer(example)
        if answer is None:
            raise DataError(f"targets: example '{example.id}' has no right answer, so it has no loss to lower.")
        row, cut = self.model.encode_answer(number, example.prompt, answer)
        return TokenExample(row, example.subset or example.task, cut)


def save_targets(folder: Location, checkpoints: Sequence[Checkpoint], targets: Sequence[Any], hash_: str) -> list[str]:
    """One file per checkpoint, `CHECKPOINT.safetensors`, with the subtasks and the projection's hash in its header."""
    import numpy as np
    from safetensors.numpy import save

    names = []
    for checkpoint, target in zip(checkpoints, targets, strict=True):
        metadata = {"subtasks": json.dumps(list(target.subtasks)), "projection": hash_}
        vectors = np.ascontiguousarray(target.vectors, dtype=np.float32)
        names.append(f"{checkpoint.name}.safetensors")
        (folder / names[-1]).write(save({"targets": vectors}, metadata=metadata))
    return names


def load_targets(folder: Location, checkpoints: Sequence[Checkpoint]) -> list[Any]:
    """The target matrices, (subtasks, width), of the named checkpoints in their order."""
    from safetensors.torch import load

    return [load((folder / f"{checkpoint.name}.safetensors").read_bytes())["targets"] for checkpoint in checkpoints]
