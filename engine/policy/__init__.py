"""RAISE's policy: its inputs, how it picks a batch, how it learns from trainings, and how it is saved and searched."""
