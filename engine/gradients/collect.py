"""Turns tokenised rows into one vector each: batching, direction, projection or match; lists rows without a vector.

A row's vector does not depend on its batch mates, the batch size, the padding or the order, beyond the rounding of
matrix products: the tests allow 1e-5 of its length in float32.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raysift.errors import DataError, ModelError
from raysift.gradients.adam import AdamDirection
from raysift.gradients.adapter import Adapter, find_adapter
from raysift.gradients.capture import Capture, RowsMixed
from raysift.gradients.cpu_products import quick_products
from raysift.gradients.loss import find_head, label_logits, row_losses
from raysift.gradients.rows import (
    NO_MEMORY,
    NOT_FINITE,
    ZERO,
    PaddedRows,
    SetAside,
    TokenRow,
    check_row,
    pad_rows,
    plan_batches,
)
from raysift.settings.gradients import ProjectionSettings
from raysift.settings.memory import ACCUMULATED_BYTES
from raysift.store.projection import Projection

log = logging.getLogger(__name__)

T = TypeVar("T")

Reduction = Literal["mean", "sum"]


class Sink(Protocol):
    """Receives gradients tensor by tensor: a Projection or an ExactMatch."""

    width: int

    def add(self, accumulator: Tensor, index: int, gradients: Tensor) -> None:
        """Adds one tensor's gradients, (rows, size), to the (rows, width) accumulator; may overwrite the gradients."""

    def finish(self, accumulator: Tensor) -> Tensor:
        """Turns the sum over all tensors into the rows' results."""


@dataclass(frozen=True)
class RowVectors:
    """Results in the order of the given rows; rows without a result are in `set_aside`, each with its reason."""

    ids: NDArray[np.int64]
    vectors: NDArray[Any]
    """Floating, or as the sink packs them (see `raysift.store.packing`)."""
    losses: NDArray[np.floating]
    gradient_norms: NDArray[np.floating]
    """Length of the plain gradient, before Adam and projection."""
    set_aside: list[SetAside] = field(default_factory=list)


class RowGradients:
    """Computes row vectors for one model and adapter; `direction` and `sink` can be set per checkpoint.

    `token_budget` bounds rows x longest row of a batch. A batch that does not fit in memory is halved, and so is the
    budget. The model is put in eval mode: dropout would make a row's gradient random.
    """

    def __init__(
        self,
        model: nn.Module,
        sink: Sink | None = None,
        direction: AdamDirection | None = None,
        *,
        adapter: str | None = None,
        token_budget: int = 4096,
        max_rows: int = 256,
        max_tokens: int | None = None,
    ) -> None:
        if token_budget < 1 or max_rows < 1:
            raise ValueError(f"gradients: token_budget {token_budget} and max_rows {max_rows} must be at least 1")
        self.model = model.eval()
        self.adapter: Adapter = find_adapter(model, adapter)
        self.sink = sink
        self.direction = direction
        self.token_budget = token_budget
        self.max_rows = max_rows
        self.max_tokens = max_tokens
        self._head = find_head(model)
        self._one_by_one = False

    def run(self, rows: Sequence[TokenRow], reduction: Reduction = "mean") -> RowVectors:
        """One vector per row of its mean (or summed) token loss; rows without one are in `set_aside`, never missing.

        A pass is begun before the results of the one before are fetched, so that a GPU does not wait for the host.
        """
        by_id = {row.id: i for i, row in enumerate(rows)}
        if len(by_id) < len(rows):
            raise DataError(f"gradients: {len(rows) - len(by_id)} row ids occur twice in one call")
        set_aside = [why for row in rows if (why := check_row(row, self.max_tokens))]
        refused = {why.id for why in set_aside}
        vectors = np.empty((0, self._finished_width()), np.float32)
        numbers = np.full((len(rows), 2), np.nan)
        waiting: Pass | None = None
        for done in chain(self._passes([row for row in rows if row.id not in refused], reduction), [None]):
            for row_id, result in waiting.results() if waiting else ():
                if isinstance(result, SetAside):
                    set_aside.append(result)
                    continue
                if not len(vectors):  # one table for all rows: a list and its stack would hold each vector twice
                    vectors = np.empty((len(rows), vectors.shape[1]), result[0].dtype)
                vectors[by_id[row_id]], numbers[by_id[row_id]] = result[0], result[1:]
            waiting = done if isinstance(done, Pass) else None
            set_aside += [done] if isinstance(done, SetAside) else []
        set_aside.sort(key=lambda why: by_id[why.id])
        found = np.ones(len(rows), bool)
        found[[by_id[why.id] for why in set_aside]] = False
        return RowVectors(
            ids=np.array([row.id for row in rows], np.int64)[found],
            vectors=vectors if found.all() or not len(vectors) else vectors[found],
            losses=numbers[found, 0].astype(np.float32),
            gradient_norms=numbers[found, 1].astype(np.float32),
            set_aside=set_aside,
        )

    def losses(self, rows: Sequence[TokenRow], reduction: Reduction = "mean") -> NDArray[np.float64]:
        """Each row's loss without any gradient; raises DataError if a row has no label tokens."""
        refused = [why for row in rows if (why := check_row(row, self.max_tokens))]
        if refused:
            raise DataError(f"gradients: row {refused[0].id} has no loss: {refused[0].message}")
        out = np.empty(len(rows))
        places = {row.id: i for i, row in enumerate(rows)}

        def losses_of(part: list[TokenRow]) -> NDArray[np.float64]:
            batch = pad_rows(part, self._device())
            logits = label_logits(self.model, batch, self._head)
            total, _ = row_losses(logits, batch, _position_weights(batch, reduction), with_gradient=False)
            found: NDArray[np.float64] = total.double().cpu().numpy()
            return found

        with torch.no_grad(), quick_products(self.model):
            for part, found in self._in_pieces(list(rows), losses_of):
                if found is None:
                    raise MemoryError(f"gradients: the {len(part[0])} tokens of a row alone do not fit in memory")
                out[[places[row.id] for row in part]] = found
        return out

    def deviations(self, rows: Sequence[TokenRow]) -> dict[int, float]:
        """Relative distance of each row's plain gradient, computed in a batch, from autograd's for the row alone.

        A check with a few short rows before a long run: it finds models whose layers the hooks misread, or that look at
        batch mates or padding. Rows without a gradient are left out. Out of memory: the result is empty.
        """
        whole = Projection(ProjectionSettings(kind="none"), self.adapter.layout)
        kept = self.sink, self.direction, self.token_budget
        try:
            self.sink, self.direction = whole, None
            result = self.run(rows)
            row_of = {row.id: row for row in rows}
            return {
                number: _distance(vector, self._autograd_gradient(row_of[number]))
                for number, vector in zip(result.ids.tolist(), result.vectors, strict=True)
            }
        except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
        finally:
            self.sink, self.direction, self.token_budget = kept
        _release_memory()
        return {}

    def _autograd_gradient(self, row: TokenRow) -> NDArray[np.floating]:
        """The plain gradient of one row by autograd, in the layout's order."""
        weights = [modules[0].weight for modules in self.adapter.modules]
        wanted = [weight.requires_grad for weight in weights]
        batch = pad_rows([row], self._device())
        try:
            for weight in weights:
                weight.requires_grad_(True)
            logits = label_logits(self.model, batch, self._head)
            logits = logits if logits.dtype == torch.float64 else logits.float()
            loss = nn.functional.cross_entropy(logits, batch.targets.to(logits.device))
            parts = torch.autograd.grad(loss, weights, allow_unused=True)
        finally:
            for weight, flag in zip(weights, wanted, strict=True):
                weight.requires_grad_(flag)
        filled = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, parts, strict=True)]
        return np.concatenate([(g if g.dtype == torch.float64 else g.float()).flatten().cpu().numpy() for g in filled])

    def _passes(self, rows: list[TokenRow], reduction: Reduction) -> Iterator[Pass | SetAside]:
        """The passes over these rows, their results still on the device; a row that does not fit alone is set aside."""
        for piece, done in self._in_pieces(rows, partial(self._one_pass, reduction=reduction)):
            yield done or SetAside(piece[0].id, NO_MEMORY, f"its {len(piece[0])} tokens alone do not fit")

    def _in_pieces(
        self, rows: list[TokenRow], work: Callable[[list[TokenRow]], T]
    ) -> Iterator[tuple[list[TokenRow], T | None]]:
        """`work` for planned batches, or for parts of one that does not fit in memory or whose rows the model mixes.

        The result is None for a row that does not fit alone.
        """
        width = self.sink.width if self.sink is not None else 1
        most = min(self.max_rows, max(1, ACCUMULATED_BYTES // (4 * width)))
        pieces = [[rows[i] for i in plan] for plan in plan_batches([len(row) for row in rows], self.token_budget, most)]
        while pieces:
            piece = pieces.pop(0)
            tokens = len(piece) * max(len(row) for row in piece)
            if len(piece) > 1 and (self._one_by_one or tokens > self.token_budget):
                pieces[:0] = [[row] for row in piece] if self._one_by_one else _halves(piece)
                continue
            try:
                done = work(piece)
            except RowsMixed as mixed:
                log.warning("gradients: rows go one at a time through this model: %s", mixed)
                self._one_by_one = True
                pieces.insert(0, piece)
                continue
            except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
            else:
                yield piece, done
                continue
            # Outside the except block, because there the traceback still holds the failed batch's tensors.
            _release_memory()
            if len(piece) == 1:
                yield piece, None
                continue
            self.token_budget = max(1, min(self.token_budget, tokens) // 2)
            log.warning("gradients: %d tokens did not fit in memory; token budget now %d", tokens, self.token_budget)
            pieces[:0] = _halves(piece)

    def _one_pass(self, part: list[TokenRow], reduction: Reduction) -> Pass:
        if self.sink is None:
            raise ModelError("gradients: no projection or match was set to take the gradients")
        batch = pad_rows(part, self._device())
        sums = _Sums(self.sink, self.direction, len(part))
        capture = Capture(self.adapter, (len(part), batch.input_ids.shape[1]), sums.receive)
        with capture.hooked(self.model), torch.enable_grad(), quick_products(self.model):
            logits = label_logits(self.model, batch, self._head)
            capture.check_called()
            losses, gradient = row_losses(logits, batch, _position_weights(batch, reduction), with_gradient=True)
            torch.autograd.backward(logits, gradient)
        with torch.no_grad():
            capture.flush()
            return Pass(part, losses.detach(), *sums.finish())

    def _device(self) -> torch.device:
        """The device for token ids: that of the input embedding, even if the model is spread over several devices."""
        get = getattr(self.model, "get_input_embeddings", None)
        embedding = get() if callable(get) else None
        weight = getattr(embedding, "weight", None)
        return weight.device if isinstance(weight, Tensor) else next(self.model.parameters()).device

    def _finished_width(self) -> int:
        assert self.sink is not None
        return int(self.sink.finish(torch.zeros(1, self.sink.width)).shape[1])


class _Sums:
    """The sink's accumulator and the squared norms of the plain gradients, one pair per device of the model."""

    def __init__(self, sink: Sink, direction: AdamDirection | None, rows: int) -> None:
        self._sink = sink
        self._direction = direction
        self._rows = rows
        self._sums: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def receive(self, index: int, gradients: Tensor) -> None:
        device = gradients.device
        if device not in self._sums:
            zeros = gradients.new_zeros(self._rows, self._sink.width)
            self._sums[device] = (zeros, gradients.new_zeros(self._rows))
        vectors, squares = self._sums[device]
        squares.add_(torch.linalg.vector_norm(gradients, dim=1).square_())
        if self._direction is not None:
            self._direction.apply(index, gradients)
        self._sink.add(vectors, index, gradients)

    def finish(self) -> tuple[Tensor, Tensor, Tensor]:
        """The rows' vectors, the lengths of their plain gradients, and whether each vector has a direction."""
        parts = [self._sums[device] for device in sorted(self._sums, key=str)]
        vectors, squares = parts[0]
        for other in parts[1:]:
            vectors, squares = (
                own.add_(one.to(own.device)) for own, one in zip((vectors, squares), other, strict=True)
            )
        sound = vectors.isfinite().all(1) & vectors.any(1)
        return self._sink.finish(vectors), squares.sqrt(), sound


@dataclass(frozen=True)
class Pass:
    """What one pass found of each of its rows, on the device until it is asked for."""

    rows: list[TokenRow]
    losses: Tensor
    vectors: Tensor
    norms: Tensor
    sound: Tensor

    def results(self) -> Iterator[tuple[int, SetAside | tuple[NDArray[Any], float, float]]]:
        """Each row's id with its vector, loss and gradient length, or the reason why it has none."""
        arrays = (part.cpu().numpy() for part in (self.vectors, self.losses, self.norms, self.sound))
        for row, vector, loss, norm, sound in zip(self.rows, *arrays, strict=True):
            if not (np.isfinite(loss) and np.isfinite(norm)):
                yield row.id, SetAside(row.id, NOT_FINITE, f"loss {loss}, gradient norm {norm}")
            elif norm == 0:
                yield row.id, SetAside(row.id, ZERO, f"loss {loss}: no factor has a gradient")
            elif not sound:
                yield row.id, SetAside(row.id, NOT_FINITE, f"gradient norm {norm}, but its vector has no direction")
            else:
                yield row.id, (vector, float(loss), float(norm))


def _distance(found: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def _position_weights(batch: PaddedRows, reduction: Reduction) -> Tensor:
    if reduction == "sum":
        return torch.ones(len(batch.row_of), dtype=torch.float64, device=batch.row_of.device)
    return (1.0 / batch.n_labels.double())[batch.row_of]


def _halves(piece: list[TokenRow]) -> list[list[TokenRow]]:
    middle = len(piece) // 2
    return [piece[:middle], piece[middle:]]


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "not enough memory" in str(error)


def _release_memory() -> None:
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
