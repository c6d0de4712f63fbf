"""Reads a settings file, and refuses what is none."""

from __future__ import annotations

from typing import Any

import yaml

from raysift.errors import ConfigError, system_words
from raysift.storage import open_location

MOST_VALUES = 100_000  # with its aliases expanded


def read_yaml(file: str) -> dict[str, Any]:
    """The `key: value` lines of a file, as one dictionary."""
    place = open_location(file)
    try:
        if not place.exists():
            raise ConfigError(f"config: there is no file '{file}'.")
        values = yaml.safe_load(place.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"config: '{file}' is not YAML: {error}") from None
    except OSError as error:
        raise ConfigError(f"config: '{file}' cannot be read: {system_words(error)}") from None
    if _is_huge(values):
        raise ConfigError(f"config: '{file}' holds more than {MOST_VALUES:,} values, its aliases (*name) followed.")
    if not isinstance(values, dict):
        raise ConfigError(f"config: '{file}' holds a {type(values).__name__}, expected `key: value` lines.")
    return values


def _is_huge(values: Any) -> bool:
    """Whether there are more values than any settings have; aliases of aliases turn a kilobyte into gigabytes."""
    left, count = [values], 0
    while left and count <= MOST_VALUES:
        value = left.pop()
        count += 1
        left += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return count > MOST_VALUES
