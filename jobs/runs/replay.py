"""Repeating a run: its command, and a `run.yaml` that means the same in any folder, because paths become absolute."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from typing import Any

from raysift.actors.language_model import portable_name

FILES = ("pool", "target", "test", "rows", "loss_on", "runs", "held_out")
MODELS = ("model", "adapter")
RUNS = ("answers", "policy_from", "warmup_from")


def name_from_anywhere(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with absolute paths of files, models and runs. Paths are not part of any identity, so the run is the same."""
    return {key: _named(key, value) for key, value in settings.items()}


def command_of(made_with: Mapping[str, Any]) -> str:
    """The command of a run; settings that it leaves to files or `section.key=value` are in run.yaml."""
    words = ["raysift", str(made_with.get("method") or "...")]
    for name in ("pool", "target", "test"):
        words += [f"--{name}", *made_with[name]] if made_with.get(name) else []
    for name in ("model", "adapter", "budget", "seed"):
        words += [f"--{name}", str(made_with[name])] if made_with.get(name) is not None else []
    return shlex.join([*words, *(["--train"] if made_with.get("train_on_selection") else [])])


def _named(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return name_from_anywhere(value)
    if key in FILES:
        return [_absolute(name) for name in value] if isinstance(value, list | tuple) else _absolute(value)
    if isinstance(value, str) and key in RUNS:
        return _absolute(value)
    return portable_name(value) if isinstance(value, str) and key in MODELS else value


def _absolute(name: Any) -> Any:
    """Keeps URIs, and values that the settings check will refuse."""
    is_path = isinstance(name, str) and "://" not in name
    return os.path.abspath(os.path.expanduser(name)) if is_path else name
