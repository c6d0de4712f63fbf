"""RAISE: its stages, rounds of learning, settings search, and reports on a run."""
