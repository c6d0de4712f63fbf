"""The files of a check's result, at the top of its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from raysift.jobs.check import rendering
from raysift.storage import Location

FOLDER, RESULT = "check", "check.json"


def write_result(folder: Location, found: Mapping[str, Any]) -> None:
    """Write the result as a page and as JSON; the JSON comes last, since it marks a finished check."""
    (folder / "check.md").write(rendering.as_markdown(found))
    (folder / RESULT).write(json.dumps(found, indent=1) + "\n")


def read_result(folder: Location) -> dict[str, Any] | None:
    """The result of a finished check in its folder, or None."""
    file = folder / RESULT
    return dict(json.loads(file.read_bytes())) if file.exists() else None


def checked(run: Location) -> dict[str, Any] | None:
    """The result of the check in a run's own folder, or None."""
    return read_result(run / FOLDER)
