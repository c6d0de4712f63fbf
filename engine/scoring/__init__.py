"""What judges a row: settings of scorers and embeddings, the question and answer they read, ratings, thresholds."""
