"""RAISE's policy: what it knows of a row, how it picks a batch, how it learns from a training, how it explains itself."""
