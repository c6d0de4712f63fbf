"""`raysift run FILE.yaml`: do what a settings file describes. Its key `method` names a selection method or a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from raysift.errors import ConfigError
from raysift.jobs.commands import actions
from raysift.jobs.commands.console import Console
from raysift.jobs.commands.options import prepare
from raysift.methods import METHODS
from raysift.settings.config import CommonConfig, gather_settings

STEPS: dict[str, Callable[[CommonConfig, Console], None]] = {
    "ingest": actions.run_ingest,
    "finetune": actions.run_finetune,
    "evaluate": actions.run_evaluate,
}


def run_command(file: str, given: dict[str, Any], overrides: Sequence[str]) -> None:
    """Run the method or step that the file, or an override, names."""
    kind = kind_of(gather_settings(file, None, overrides), file)
    given = given | {"config": file}
    if kind in METHODS:
        actions.run_selection(*prepare(kind, given, overrides))
    else:
        STEPS[kind](*prepare(kind, given, [*overrides, "method=null"]))


def kind_of(values: dict[str, Any], file: str) -> str:
    """What settings describe; tests without a pool can only be an evaluation."""
    kind = values.get("method") or ("evaluate" if values.get("test") and not values.get("pool") else None)
    if kind in METHODS or kind in STEPS:
        return str(kind)
    found = "names no method" if kind is None else f"names the method '{kind}', which is unknown"
    raise ConfigError(
        f"run: '{file}' {found}. Add a line such as `method: less`, or say it here: raysift run {file} method=less. "
        f"Known: {', '.join([*METHODS, *STEPS])}. A comparison: raysift compare {file}."
    )
