"""Stages that score rows: quality, a model's own answers, and what MoDS makes of them."""
