"""Row gradients of a LoRA adapter: exact, for all rows of a batch at once, matched or projected as they arise.

`RowGradients(model, sink, direction).run(rows)` gives one vector per row. Reading order: `rows` (what goes in),
`adapter` (which layers), `loss`, `capture` (the mathematics), `collect` (batches and accounts), `match` (scores
without a store).
"""
