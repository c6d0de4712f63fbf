"""Models that answer batches of rows: the constructor loads, `__call__` answers. No Ray, no maths."""
