"""Target gradients at each checkpoint, with which rows are matched; one actor computes them once into safetensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysift.actors.checkpointed import Checkpoint, CheckpointedModel
from raysift.errors import DataError, ModelError
from raysift.evaluation.examples import reference_answer
from raysift.records import Example, Pair
from raysift.settings.gradients import AdamSettings, PreferenceSettings, ProjectionSettings, TargetSettings
from raysift.storage import Location
from raysift.tensors import save_tensors

if TYPE_CHECKING:
    from raysift.gradients.preference import TokenExample
    from raysift.gradients.rows import TokenRow

PLAIN = AdamSettings(form="none")
CHECKED_ROWS = 3
CHECKED_NUMBERS = 2**29  # in their gradients together: 2 GiB; for larger adapters fewer rows are checked, or none
EXAMPLES = pa.schema(
    [
        ("key", pa.int64()),  # of the texts (see `content_key`)
        ("checkpoint", pa.string()),
        ("subtask", pa.string()),
        ("loss", pa.float64()),
        ("margin", pa.float64()),  # pairs only, as is `between`
        ("norm", pa.float64()),
        ("between", pa.float64()),
        ("cosine", pa.float64()),  # with its subtask's target
        ("truncated", pa.bool_()),
    ]
)
"""A line per pair or example and checkpoint; `sketch` follows, lists of float32 of one length."""
TOLERANCES = {4: 0.01, 2: 0.2}  # relative, by bytes of the narrowest weight


class TargetGradients:
    """Turns preference pairs (ROSE) or examples (LESS) into one vector per subtask and checkpoint.

    Targets' gradients are plain: the optimizer's moments (`adam`) apply only to the direction of a training row.
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
        self.deviation: float | None = None
        """How far the gradients last computed deviate from autograd's (see `check`)."""
        self.project(projection)

    def project(self, projection: ProjectionSettings) -> None:
        """Project gradients with another projection from now on."""
        from raysift.store.projection import Projection

        self.sinks = self.model.projections(projection)
        self.hash = Projection(projection, self.model.layout).hash

    def check(self, rows: Sequence[TokenRow]) -> float | None:
        """How far gradients at the first checkpoint are from autograd's; raises if the hooks misread the model.

        The shortest rows share a batch, as in a run. Among those padded in it the smallest deviation counts, because
        rounding decides the gradient of a loss that is almost zero. None if no row has a gradient, or if memory is too
        small to check one.
        """
        gradients = self.model.at(0, self.sinks[0])
        count = min(CHECKED_ROWS, CHECKED_NUMBERS // self.model.layout.total)
        shortest = sorted((row for row in rows if row.n_labels), key=lambda row: (len(row), row.id))[:count]
        deviations = gradients.deviations(shortest) if shortest else {}
        if not deviations:
            return None
        padded = [row.id for row in shortest if len(row) < len(shortest[-1]) and row.id in deviations]
        found = min(deviations[number] for number in padded or deviations)
        narrowest = min(weight.element_size() for weight in gradients.model.parameters() if weight.is_floating_point())
        if not found <= TOLERANCES.get(narrowest, TOLERANCES[4]):
            raise ModelError(
                f"gradients: those of {len(deviations)} target rows deviate by {found:.2g} at least, relative to autograd's: this "
                "model uses its adapter's layers in a way that row gradients do not follow. Train other modules "
                "(train.lora_targets), or take another model."
            )
        return found

    def from_pairs(
        self,
        pairs: Sequence[Pair],
        preference: PreferenceSettings,
        targets: TargetSettings,
        end_prompt: bool,
        keep_units: bool = False,
    ) -> list[Any]:
        """The `raysift.gradients.preference.Targets` at each checkpoint, from preference pairs."""
        from raysift.gradients.preference import preference_targets

        tokens = [self.model.encode_pair(number, pair, end_prompt) for number, pair in enumerate(pairs)]
        self.deviation = self.check([pair.chosen for pair in tokens])
        return [
            preference_targets(self.model.at(index, self.sinks[index]), tokens, preference, targets, keep_units)
            for index in range(len(self.model.checkpoints))
        ]

    def from_examples(
        self, examples: Sequence[Example], targets: TargetSettings, keep_units: bool = False
    ) -> list[Any]:
        """The `Targets` at each checkpoint from the cross-entropy of the examples' reference answers."""
        from raysift.gradients.preference import cross_entropy_targets

        tokens = [self._encode(number, example) for number, example in enumerate(examples)]
        self.deviation = self.check([example.row for example in tokens])
        return [
            cross_entropy_targets(self.model.at(index, self.sinks[index]), tokens, targets, keep_units)
            for index in range(len(self.model.checkpoints))
        ]

    def pulls(self, messages: Sequence[dict[str, str]], targets: Sequence[Any]) -> list[dict[int, float]]:
        """Per checkpoint, the cosine of one row's direction with each pair or example; `targets` need their `units`."""
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
        from raysift.gradients.preference import TokenExample

        answer = reference_answer(example)
        if answer is None:
            raise DataError(f"targets: example '{example.id}' has no right answer, so it has no loss to lower.")
        row, cut = self.model.encode_answer(number, example, answer)
        return TokenExample(row, example.subset or example.task, cut)


def save_targets(folder: Location, checkpoints: Sequence[Checkpoint], targets: Sequence[Any], hash_: str) -> list[str]:
    """Write a file `CHECKPOINT.safetensors` per checkpoint, with subtasks and the projection's hash in the header."""
    names = []
    for checkpoint, target in zip(checkpoints, targets, strict=True):
        metadata = {"subtasks": json.dumps(list(target.subtasks)), "projection": hash_}
        names.append(f"{checkpoint.name}.safetensors")
        save_tensors(folder / names[-1], {"targets": np.asarray(target.vectors, np.float32)}, metadata)
    return names


def save_examples(
    place: Location, checkpoints: Sequence[Checkpoint], targets: Sequence[Any], keys: Sequence[int]
) -> None:
    """Write a line per pair or example and checkpoint: its figures, and its sketch (see raysift.gradients.sketches).

    `keys` are the members' content keys, so that a line is found again for the same text.
    """
    tables = []
    for checkpoint, target in zip(checkpoints, targets, strict=True):
        lines = [{"key": keys[member.id], "checkpoint": checkpoint.name, **vars(member)} for member in target.members]
        numbers = np.ascontiguousarray(target.sketches, np.float32)
        sketches = pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), numbers.shape[1])
        table = pa.Table.from_pylist([{name: line[name] for name in EXAMPLES.names} for line in lines], schema=EXAMPLES)
        tables.append(table.append_column("sketch", sketches))
    with place.open_output() as stream:
        pq.write_table(pa.concat_tables(tables), stream, compression="zstd")


def load_targets(folder: Location, checkpoints: Sequence[Checkpoint]) -> list[Any]:
    """The target matrices (subtasks, width) of these checkpoints, in their order."""
    from safetensors.torch import load

    return [load((folder / f"{checkpoint.name}.safetensors").read_bytes())["targets"] for checkpoint in checkpoints]
