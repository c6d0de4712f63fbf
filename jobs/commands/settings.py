"""`raysift settings METHOD [KEY]`: each setting's default and meaning, and whether it affects the result."""

from __future__ import annotations

import difflib
import textwrap

from raysift.config import make_config
from raysift.errors import ConfigError
from raysift.jobs.runs.console import Console
from raysift.methods import METHODS, find_method
from raysift.settings.describe import Setting, default_of, describe


def settings_of(method: str, model: str = "nano") -> list[Setting]:
    """Every setting that a run of the method reads, with its defaults for this model."""
    find_method(method)
    config = make_config({"method": method, "model": model})
    others = frozenset(METHODS.keys() - {method}) | {"win_rate"} | ({"search"} if method != "raise" else set())
    return list(describe(type(config), config, others))


def show_settings(method: str, key: str | None, model: str, console: Console) -> None:
    """Print one setting with its full meaning, or a table of all settings in a section."""
    known = settings_of(method, model)
    chosen = [one for one in known if key is None or one.key == key or one.key.startswith(f"{key}.")]
    if not chosen:
        near = difflib.get_close_matches(str(key), [one.key for one in known], n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(
            f"settings: '{key}' is no setting of {method}.{hint} `raysift settings {method}` lists them all."
        )
    if console.voice == "json":
        names = ["setting", "default", "takes", "meaning", "decides the result"]
        told = [[one.key, one.default, one.allowed, one.meaning, one.decides] for one in chosen]
        console.table(f"Settings of {method}", names, told)
        return
    for one in chosen:
        effect = "" if one.decides else " (decides no result)"
        print(f"{one.key}={default_of(one.default)}    takes {one.allowed}{effect}")
        if one.meaning:
            print(textwrap.indent(textwrap.fill(one.meaning, min(console.out.width, 110) - 4), "    "))
