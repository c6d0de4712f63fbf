"""The help of a method's command: what it needs, an example, its main settings. Made when asked for, to start quickly."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from raysift.methods import METHODS


class MethodCommand(TyperCommand):
    """A command whose help tells more of its method than its summary."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        if self.name in METHODS:
            self.help = method_help(self.name)
        super().format_help(ctx, formatter)


def method_help(name: str) -> str:
    """Summary, needs, example and main settings, each paragraph between empty lines."""
    method = METHODS[name]
    target = f"--target {'pairs' if 'pairs' in method.needs else 'examples'}.jsonl " if method.takes_target else ""
    example = f"raysift {name} --pool pool.jsonl {target}--model smol --budget 5% --run runs/{name}"
    parts = [method.summary, f"Needs: {method.needs}.", f"Example: {example}"]
    if main := main_settings(name):
        parts += ["Main settings, with their defaults for nano models:", *main]
    parts += [f"All settings: raysift settings {name}"]
    return "\n\n".join(parts)


def main_settings(name: str) -> list[str]:
    """A line for each of the settings that one looks at first: default and meaning."""
    from raysift.jobs.commands.settings import settings_of
    from raysift.settings.describe import default_of

    known = {one.key: one for one in settings_of(name)}
    chosen: list[Any] = [known[f"{name}.{key}"] for key in METHODS[name].main_settings]
    return [f"- {one.key}={default_of(one.default)}: {first_sentence(one.meaning)}" for one in chosen]


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence."""
    return text.partition(". ")[0].rstrip(".") + "."
