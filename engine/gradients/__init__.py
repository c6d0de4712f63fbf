"""Row gradients of a LoRA adapter: exact, for all rows of a batch at once, matched or projected as they arise.

`RowGradients(model, sink, direction).run(rows)` gives one vector per row. Reading order: `rows` (what goes in),
`adapter` (which layers), `loss`, `capture` (the mathematics), `collect` (batches and accounts), `match` (scores
without a store).
"""

from raysift.gradients.adapter import Adapter, adapter_off, find_adapter
from raysift.gradients.collect import RowGradients, RowVectors, Sink
from raysift.gradients.match import ExactMatch
from raysift.gradients.rows import IGNORED, REASONS, SetAside, TokenRow, plan_batches

__all__ = [
    "IGNORED",
    "REASONS",
    "Adapter",
    "ExactMatch",
    "RowGradients",
    "RowVectors",
    "SetAside",
    "Sink",
    "TokenRow",
    "adapter_off",
    "find_adapter",
    "plan_batches",
]
