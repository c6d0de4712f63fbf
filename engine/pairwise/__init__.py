"""Which of two models answers better: settings, questions and judgements as rows, verdicts and their table."""
