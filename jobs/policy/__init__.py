"""RAISE: its stages, the rounds of learning, the search of its settings, and a finished run told."""
