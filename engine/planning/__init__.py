"""How long a run will take, what it will hold and what it will cost: formulas, without a model and without Ray."""
