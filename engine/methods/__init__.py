"""The selectors, one file each. To add one: write its file, name it in METHODS, and give it a recipe in jobs/recipes.py
if it needs a model.

Each answers two moments. *score* looks at rows, in any order and any number of processes. *choose* is called once with
all scores and the budget. A selector that only scores inherits `choose` from `base.Selector`.
"""

from __future__ import annotations

from raysift.errors import ConfigError
from raysift.methods.base import Selector
from raysift.methods.coverage import Coverage
from raysift.methods.less import Less
from raysift.methods.longest import Longest
from raysift.methods.mods import Mods
from raysift.methods.quality import Quality
from raysift.methods.raise_policy import Raise
from raysift.methods.rose import Rose
from raysift.methods.uniform import Uniform

__all__ = ["METHODS", "Selector", "find_method"]

METHODS: dict[str, type[Selector]] = {
    method.name: method for method in (Uniform, Longest, Quality, Coverage, Less, Rose, Mods, Raise)
}


def find_method(name: str) -> type[Selector]:
    """The selector of that name."""
    if name not in METHODS:
        raise ConfigError(f"method: '{name}' is unknown. Known: {', '.join(sorted(METHODS))}.")
    return METHODS[name]
