"""Row gradients of a LoRA adapter: exact, for a whole batch at once, matched or projected as they are computed.

`RowGradients(model, sink, direction).run(rows)` gives one vector per row. Reading order: `rows` (what goes in),
`adapter` (which layers), `loss`, `capture` (the mathematics), `collect` (batches, rows without a vector), `match`
(scores without a store).
"""
