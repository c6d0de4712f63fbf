"""The selectors, one file each: a class with a `name` in a file of this folder is a method.

Each has two steps. *score* rates rows, in any order and any number of processes. *choose* is called once with all
scores and the budget. A selector that only scores inherits `choose` from `base.Selector`. A selector that needs a model
has a recipe in `jobs/recipes.py`.
"""

from __future__ import annotations

from importlib import import_module
from keyword import iskeyword
from pkgutil import iter_modules

from raysift.errors import ConfigError
from raysift.methods.base import Selector

__all__ = ["METHODS", "Selector", "find_method", "function_name"]


def _find_methods() -> dict[str, type[Selector]]:
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    classes = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    named = [found for found in classes if issubclass(found, Selector) and "name" in vars(found)]
    return {found.name: found for found in sorted(named, key=lambda found: found.name)}


METHODS = _find_methods()
"""The methods by name; each has a section of the settings, a command and a function of `raysift`."""


def function_name(method: str) -> str:
    """The name of its function in Python: `raise_`, since `raise` is a keyword."""
    return method + "_" * iskeyword(method)


def find_method(name: str) -> type[Selector]:
    """The selector of that name."""
    if name not in METHODS:
        raise ConfigError(f"method: '{name}' is unknown. Known: {', '.join(METHODS)}.")
    return METHODS[name]
