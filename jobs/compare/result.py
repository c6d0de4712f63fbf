"""The files of a comparison's result, at the top of its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from raysift.jobs.compare import rendering
from raysift.storage import Location

RESULT, SETTINGS = "compare.json", "compare.yaml"


def write_result(folder: Location, found: Mapping[str, Any]) -> None:
    """Write the result in three forms; the JSON comes last, since it marks a finished comparison."""
    (folder / "compare.md").write(rendering.as_markdown(found))
    (folder / "compare.csv").write(rendering.as_csv(found))
    (folder / RESULT).write(json.dumps(found, indent=1) + "\n")


def read_result(folder: Location) -> dict[str, Any] | None:
    """The result of a finished comparison; None if the folder holds none."""
    file = folder / RESULT
    return dict(json.loads(file.read_bytes())) if file.exists() else None


def is_comparison(folder: Location) -> bool:
    """Whether a folder belongs to a comparison, finished or not."""
    return (folder / SETTINGS).exists()
