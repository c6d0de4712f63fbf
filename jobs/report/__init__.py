"""Reads runs and comparisons into the record of a report, and writes its page."""
