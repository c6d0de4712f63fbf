"""Reading pools into rows with ids, and comparing a target with a sample of the pool."""
