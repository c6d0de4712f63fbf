"""Why a row was taken or not, in words: pure functions from the numbers that decided to sentences and settings."""
