"""Descriptions of settings, read from their source: key, default, meaning, and whether they decide the result."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel

UNDECIDING = ("resources", "run", "reuse", "report")
"""Sections and settings for where and how fast; no result depends on them."""
ENDS_A_RUN = (".least_agreement",)
"""Settings that can end a run and change no result."""


class Setting(NamedTuple):
    """One setting, described for people."""

    key: str
    default: Any
    meaning: str
    allowed: str
    decides: bool


def describe(
    model: type[BaseModel], values: BaseModel, skip: frozenset[str] = frozenset(), at: str = ""
) -> Iterator[Setting]:
    """The settings of a model and of its sections; defaults come from `values`, which may hold a preset's."""
    meanings = meanings_of(model)
    for name, field in model.model_fields.items():
        key = f"{at}{name}"
        if key in skip:
            continue
        value = getattr(values, name)
        if isinstance(value, BaseModel):
            yield from describe(type(value), value, skip, f"{key}.")
            continue
        decides = not key.startswith(UNDECIDING) and not key.endswith(ENDS_A_RUN)
        yield Setting(key, value, meanings.get(name, ""), allowed_by(field.annotation), decides)


def allowed_by(annotation: Any) -> str:
    """The values that a field takes, in a few words: the choices, or the kind of value."""
    options = [_bare(option) for option in (get_args(annotation) if _is_union(annotation) else [annotation])]
    choices = [value for option in options for value in (get_args(option) if get_origin(option) is Literal else ())]
    if any(isinstance(option, type) and issubclass(option, BaseModel) for option in options):
        return "settings below it, or none"
    kinds = [option for option in options if get_origin(option) is not Literal]
    words = [", ".join(map(str, choices))] if choices else []
    return " or ".join(words + ["none" if option is NoneType else _name(option) for option in kinds])


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, UnionType)


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _name(option: Any) -> str:
    return str(getattr(get_origin(option) or option, "__name__", option))


@cache
def meanings_of(model: type[BaseModel]) -> dict[str, str]:
    """The sentence below each field in the source of the class or of its base classes."""
    found: dict[str, str] = {}
    for part in reversed(model.__mro__):
        if not (issubclass(part, BaseModel) and part is not BaseModel):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0]
        except (OSError, TypeError):  # a class made at run time has no source
            continue
        assert isinstance(body, ast.ClassDef)
        for field, told in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and _is_text(told):
                found[field.target.id] = " ".join(inspect.cleandoc(told.value.value).split())  # type: ignore[attr-defined]
    return found


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def default_of(value: Any) -> str:
    """A default as one would type it."""
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
