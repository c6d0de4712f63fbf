"""Scoring of rows: settings of scorers and embeddings, the question and answer they read, ratings, thresholds."""
