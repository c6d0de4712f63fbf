"""Models that answer batches of rows: a constructor that loads, a `__call__` that answers. No ray, no maths."""
