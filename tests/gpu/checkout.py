"""Makes `raysift` importable from a plain checkout, without installing it.

The package is mapped from folders of the repository (`package-dir` in pyproject): `raysift` is engine/, `raysift.actors`
is actors/, `raysift.jobs` is jobs/. A package looks for its parts in every folder of its path, so two folders do.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("torch", "transformers", "peft", "pyarrow", "numpy", "pydantic", "orjson")
"""What actors import at all. transformers and peft bring numpy; pydantic and orjson are two small wheels besides."""


def missing() -> list[str]:
    """The packages that are not installed here."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def use_checkout() -> None:
    """Import `raysift` from this checkout, also where another one is installed."""
    if "raysift" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "raysift",
        ROOT / "engine" / "__init__.py",
        submodule_search_locations=[str(ROOT / "engine"), str(ROOT)],
    )
    assert spec and spec.loader
    package = importlib.util.module_from_spec(spec)
    sys.modules["raysift"] = package
    spec.loader.exec_module(package)
