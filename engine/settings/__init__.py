"""Settings of a run: what decides the result, where and how fast, budgets, presets of training."""
