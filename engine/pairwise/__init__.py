"""Pairwise win rate of two models: settings, questions and judgements as rows, verdicts and their table."""
