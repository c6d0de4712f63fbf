"""Win rates: two sides answer, a judge compares."""
