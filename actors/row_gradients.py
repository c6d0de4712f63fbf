"""Row gradients as answers: cosines with targets known beforehand, or projected vectors for a store."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raysift.actors.checkpointed import Checkpoint, CheckpointedModel
from raysift.actors.contract import Failed, Row, RowActor
from raysift.actors.loaded import NO_LIMIT
from raysift.actors.swapped import have_room, require_room
from raysift.errors import DataError
from raysift.pool.given_input import conversation_of
from raysift.records import ID, MESSAGES
from raysift.settings.gradients import AdamSettings, ProjectionSettings
from raysift.storage import Location
from raysift.store.gradient_store import CUT
from raysift.store.vectors import VectorForm

if TYPE_CHECKING:
    from raysift.gradients.rows import TokenRow

FEWEST_ROWS = 64
HELD_BYTES = 2**30
"""Stored vectors of a part's rows take no more; with whole gradients of a large adapter, a part has few rows."""

MATCHES = "matches"
VECTORS = "vectors"
LOSSES = "losses"
NORMS = "gradient_norms"
_COMMON = [
    (LOSSES, pa.list_(pa.float32())),  # one per checkpoint
    (NORMS, pa.list_(pa.float32())),  # of the plain gradient, before Adam and projection
    (CUT, pa.bool_()),  # whether tokens that count were cut off at the longest input
]


def rows_to_sort(tokens: int) -> int:
    """Rows of which passes of so many tokens are made, so that rows of a pass are of like length.

    Of real conversations, passes of 64 rows sorted at a time are padding for a fifth at 4096 tokens, and for half at 16,384. So
    many that they fill about 30 passes leave 4 %, whatever the size of a pass.
    """
    return max(FEWEST_ROWS, tokens // 8)


class _RowGradients(RowActor):
    """Answers each row with one vector per checkpoint; a subclass sets the sinks that the gradients feed.

    Rows are taken in parts large enough to fill passes with rows of like length. While the model works on one part, a thread
    tokenises the next.
    """

    inputs = (MESSAGES,)
    renders_rows = True

    def __init__(self, model: Any, checkpoints: Sequence[Checkpoint], adam: AdamSettings, **loading: Any) -> None:
        self.model = CheckpointedModel(model, checkpoints, adam, **loading)
        self.sinks: list[Any] = []
        self.part_rows = rows_to_sort(self.model.gradients.token_budget)

    def answer(self, rows: list[Row]) -> list[Row | Failed]:
        parts = [rows[start : start + self.part_rows] for start in range(0, len(rows), self.part_rows)]
        answers: list[Row | Failed] = []
        with ThreadPoolExecutor(1) as beside:
            encoded = beside.submit(self._encode, parts[0]) if len(parts) > 1 else None
            for part, following in zip(parts, [*parts[1:], None], strict=True):
                own = encoded.result() if encoded else self._encode(part)
                encoded = beside.submit(self._encode, following) if following else None
                answers += self._answer_part(part, *own)
        return answers

    def _encode(self, rows: list[Row]) -> tuple[dict[int, tuple[TokenRow, bool]], dict[int, Failed]]:
        """Each row's tokens and whether it was cut, and the rows that the chat template refuses."""
        encoded: dict[int, tuple[TokenRow, bool]] = {}
        failed: dict[int, Failed] = {}
        for row in rows:
            try:
                encoded[row[ID]] = self.model.encode_and_cut(row[ID], conversation_of(row))
            except DataError as error:
                failed[row[ID]] = Failed(str(error), of_the_row=True)
        return encoded, failed

    def _answer_part(
        self, rows: list[Row], encoded: dict[int, tuple[TokenRow, bool]], failed: dict[int, Failed]
    ) -> list[Row | Failed]:
        from raysift.gradients.rows import NO_LABELS, TOO_LONG

        tokens = [row for row, _ in encoded.values()]
        found: dict[int, list[tuple[Any, float, float]]] = {row.id: [] for row in tokens}
        self.tokens_read += len(self.model.checkpoints) * sum(map(len, tokens))
        for index in range(len(self.model.checkpoints)):
            result = self.model.at(index, self._sink(index)).run([row for row in tokens if row.id not in failed])
            for why in result.set_aside:
                own = why.reason in (NO_LABELS, TOO_LONG)
                failed[why.id] = Failed(f"{why.reason}: {why.message}", of_the_row=own)
            for entry in zip(result.ids, result.vectors, result.losses, result.gradient_norms, strict=True):
                found[int(entry[0])].append(entry[1:])
        return [
            failed.get(id_) or {**self._pack(found[id_]), **_common(found[id_]), CUT: encoded[id_][1]}
            for id_ in (row[ID] for row in rows)
        ]

    def _sink(self, index: int) -> Any:
        """What the gradients of a checkpoint feed."""
        return self.sinks[index]

    def _pack(self, entries: list[tuple[Any, float, float]]) -> Row:
        raise NotImplementedError(f"{type(self).__name__} does not say what it keeps of a gradient")


def _common(entries: list[tuple[Any, float, float]]) -> Row:
    _, losses, norms = zip(*entries, strict=True)
    return {LOSSES: list(map(float, losses)), NORMS: list(map(float, norms))}


class GradientMatch(_RowGradients):
    """Computes exact scores without a store: (checkpoints x columns) cosines of each row with the targets and their null ones.

    Targets are mapped from their files. On a GPU they stay if all fit; if not, those of one checkpoint at a time are there, for
    all rows of a call: then a call should have many.
    """

    outputs = pa.schema([(MATCHES, pa.list_(pa.list_(pa.float32()))), *_COMMON])

    def __init__(
        self, model: Any, checkpoints: Sequence[Checkpoint], adam: AdamSettings, targets: Location, **loading: Any
    ) -> None:
        from raysift.actors.target_files import load_targets
        from raysift.gradients.match import ExactMatch, split_by_layer

        super().__init__(model, checkpoints, adam, **loading)
        layout, devices = (
            self.model.layout,
            [modules[0].weight.device for modules in self.model.gradients.adapter.modules],
        )
        self._targets = load_targets(targets, checkpoints, null=True)
        self.copied = 0
        """Bytes of targets copied to the devices, where these hold one checkpoint's at a time."""
        self._now: int | None = None
        parts = [split_by_layer(vectors, layout) for vectors in self._targets]
        self._stay = have_room(parts, devices)
        if self._stay:
            self.sinks = [ExactMatch(vectors, layout) for vectors in self._targets]
        else:
            require_room(parts[0], devices)
            self.sinks = [ExactMatch.to_fill(len(self._targets[0]), layout, devices)] * len(checkpoints)
            self.part_rows = NO_LIMIT

    def _sink(self, index: int) -> Any:
        if not self._stay and self._now != index:
            self.copied += self.sinks[index].fill(self._targets[index])
            self._now = index
        return self.sinks[index]

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
        from raysift.store.packing import PackedProjection

        super().__init__(model, checkpoints, adam, **loading)
        projections = self.model.projections(projection)
        self.form = VectorForm.of(projection, projections[0].width)
        self.sinks = [PackedProjection(own, self.form) for own in projections]
        self.part_rows = max(1, min(self.part_rows, HELD_BYTES // (self.form.bytes * len(checkpoints))))

    def _pack(self, entries: list[tuple[Any, float, float]]) -> Row:
        return {VECTORS: b"".join(vector.tobytes() for vector, *_ in entries)}
