"""Settings of a run: those that decide the result, those for where and how fast, budgets and training presets."""
