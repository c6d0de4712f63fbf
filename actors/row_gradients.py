"""Row gradients as answers: cosines with targets known beforehand, or projected vectors for a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from raysift.actors.checkpointed import Checkpoint, CheckpointedModel
from raysift.actors.contract import Failed, Row, RowActor
from raysift.errors import DataError
from raysift.pool.given_input import conversation_of
from raysift.records import ID, MESSAGES
from raysift.settings.gradients import AdamSettings, ProjectionSettings
from raysift.storage import Location
from raysift.store.gradient_store import CUT
from raysift.store.vectors import VectorForm

MATCHES = "matches"
VECTORS = "vectors"
LOSSES = "losses"
NORMS = "gradient_norms"
_COMMON = [
    (LOSSES, pa.list_(pa.float32())),  # one per checkpoint
    (NORMS, pa.list_(pa.float32())),  # of the plain gradient, before Adam and projection
    (CUT, pa.bool_()),  # whether tokens that count were cut off at the longest input
]


class _RowGradients(RowActor):
    """Answers each row with one vector per checkpoint; a subclass sets the sinks that the gradients feed."""

    inputs = (MESSAGES,)
    renders_rows = True

    def __init__(self, model: Any, checkpoints: Sequence[Checkpoint], adam: AdamSettings, **loading: Any) -> None:
        self.model = CheckpointedModel(model, checkpoints, adam, **loading)
        self.sinks: list[Any] = []

    def answer(self, rows: list[Row]) -> list[Row | Failed]:
        from raysift.gradients.rows import NO_LABELS, TOO_LONG

        failed: dict[int, Failed] = {}
        encoded: dict[int, tuple[Any, bool]] = {}
        for row in rows:
            try:
                encoded[row[ID]] = self.model.encode_and_cut(row[ID], conversation_of(row))
            except DataError as error:  # the chat template refuses it
                failed[row[ID]] = Failed(str(error), of_the_row=True)
        tokens = [row for row, _ in encoded.values()]
        found: dict[int, list[tuple[Any, float, float]]] = {row.id: [] for row in tokens}
        self.tokens_read += len(self.sinks) * sum(map(len, tokens))
        for index, sink in enumerate(self.sinks):
            result = self.model.at(index, sink).run([row for row in tokens if row.id not in failed])
            for why in result.set_aside:
                own = why.reason in (NO_LABELS, TOO_LONG)
                failed[why.id] = Failed(f"{why.reason}: {why.message}", of_the_row=own)
            for entry in zip(result.ids, result.vectors, result.losses, result.gradient_norms, strict=True):
                found[int(entry[0])].append(entry[1:])
        return [
            failed.get(id_) or {**self._pack(found[id_]), **_common(found[id_]), CUT: encoded[id_][1]}
            for id_ in (row[ID] for row in rows)
        ]

    def _pack(self, entries: list[tuple[Any, float, float]]) -> Row:
        raise NotImplementedError(f"{type(self).__name__} does not say what it keeps of a gradient")


def _common(entries: list[tuple[Any, float, float]]) -> Row:
    _, losses, norms = zip(*entries, strict=True)
    return {LOSSES: list(map(float, losses)), NORMS: list(map(float, norms))}


class GradientMatch(_RowGradients):
    """Computes exact scores without a store: (checkpoints x subtasks) cosines of each row with the targets."""

    outputs = pa.schema([(MATCHES, pa.list_(pa.list_(pa.float32()))), *_COMMON])

    def __init__(
        self, model: Any, checkpoints: Sequence[Checkpoint], adam: AdamSettings, targets: Location, **loading: Any
    ) -> None:
        from raysift.actors.target_gradients import load_targets
        from raysift.gradients.match import ExactMatch

        super().__init__(model, checkpoints, adam, **loading)
        self.sinks = [ExactMatch(vectors, self.model.layout) for vectors in load_targets(targets, checkpoints)]

    def _pack(self, entries: list[tuple[Any, float, float]]) -> Row:
        return {MATCHES: [vector.tolist() for vector, *_ in entries]}


class GradientVectors(_RowGradients):
    """Computes projected gradients as the store keeps them, the checkpoints of a row one after the other."""

    outputs = pa.schema([(VECTORS, pa.binary()), *_COMMON])

    def __init__(
        self,
        model: Any,
        checkpoints: Sequence[Checkpoint],
        adam: AdamSettings,
        projection: ProjectionSettings,
        **loading: Any,
    ) -> None:
        super().__init__(model, checkpoints, adam, **loading)
        self.sinks = self.model.projections(projection)
        self.form = VectorForm.of(projection, self.sinks[0].width)

    def _pack(self, entries: list[tuple[Any, float, float]]) -> Row:
        import numpy as np

        return {VECTORS: self.form.pack(np.stack([vector for vector, *_ in entries])).tobytes()}
