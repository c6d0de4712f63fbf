"""Write the reference pages, the list of pages and `llms.txt` from the code and the pages: `python docs/reference.py`.

`make docs` runs this, and a test compares the files with what it would write now. Needs neither Ray nor a model library.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import typer
from pydantic import BaseModel

from raysift.config import CommonConfig
from raysift.errors import RaysiftError
from raysift.evaluation.check import CheckSettings
from raysift.evaluation.entries import CompareSettings
from raysift.evaluation.metrics import EvalConfig
from raysift.jobs.commands.cli import app
from raysift.jobs.commands.guard import INTERRUPTED, TERMINATED
from raysift.jobs.commands.method_help import method_help
from raysift.jobs.commands.options import SHARED
from raysift.jobs.runs.stage_names import WHAT_IT_DOES
from raysift.manifest import Manifest
from raysift.methods import METHODS
from raysift.pairwise.settings import WinRateSettings
from raysift.policy.search_settings import SearchSettings
from raysift.pool.checks import FAILURES, REASONS, IngestConfig
from raysift.records import KEPT_ROWS, REJECTED
from raysift.settings.describe import allowed_by, default_of, describe, meanings_of
from raysift.settings.resources import Resources
from raysift.settings.training import RECIPES, TrainConfig

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SECTIONS: dict[str, type[BaseModel]] = {
    "ingest": IngestConfig,
    "train": TrainConfig,
    "evaluate": EvalConfig,
    "compare": CompareSettings,
    "check": CheckSettings,
    "win_rate": WinRateSettings,
    "search": SearchSettings,
    "resources": Resources,
}
"""The sections that no method owns."""
GROUPS = {
    "Begin": ["start", "choose", "faq"],
    "Methods": [f"methods/{name}" for name in ("less", "rose", "mods", "raise", "rds", "yardsticks")],
    "Guides": [
        *(f"guides/{name}" for name in ("pools", "targets", "budgets", "settings", "compare", "check", "hand-off")),
        *("runs", "guides/resume-and-reuse", "gpus", "cluster", "python"),
    ],
    "Reference": [f"reference/{name}" for name in ("cli", "settings", "files", "exit-codes")],
    "How it is built, and how well it works": [
        "evidence",
        "guarantees",
        "limitations",
        "architecture",
        "adding-a-selector",
    ],
}
"""The order of the pages; a page that is named nowhere here comes last among the guides."""
INDEX, LLMS = "docs/README.md", "llms.txt"
LONGEST_DEFAULT = 40
MADE = "<!-- Made by docs/reference.py. Run `make docs` after a change; edits here are lost. -->"


def generated() -> dict[str, str]:
    """Every file that this script writes, by its path in the repository."""
    pages = {"cli": cli(), "settings": settings(), "files": files(), "exit-codes": exit_codes()}
    texts = {f"docs/reference/{name}.md": text for name, text in pages.items()}
    return texts | {INDEX: index(texts), LLMS: llms(texts)}


# Commands


def cli() -> str:
    """Commands by the panel in which `raysift --help` shows them."""
    root: Any = typer.main.get_command(app)
    panels: dict[str, list[Any]] = {}
    for command in root.commands.values():
        panels.setdefault(command.rich_help_panel, []).append(command)
    shared = {one.name: one for command in root.commands.values() for one in options(command) if is_shared(one)}
    parts = [
        "Every command, its arguments and its options, as `raysift COMMAND --help` shows them.",
        "Any setting follows as `section.key=value`: see [settings](settings.md). How a command ends: "
        "[exit codes](exit-codes.md).",
        "## Options that commands share",
        table(["option", "value", "meaning"], map(option, sorted(shared.values(), key=lambda one: str(one.name)))),
    ]
    for panel, commands in panels.items():
        parts.append(f"## {panel}")
        for command in commands:
            inner = getattr(command, "commands", None)
            several = [(f"{command.name} {one.name}", one) for one in inner.values()] if inner else []
            for name, one in several or [(command.name, command)]:
                parts += describe_command(name, one)
    return page("Commands", *parts)


def describe_command(name: str, command: Any) -> Iterator[str]:
    """A heading, what the command does, its arguments, the shared options by name and its own in full."""
    yield f"### raysift {name}"
    method = METHODS.get(name)
    yield " ".join(str(command.help or (method and method.summary)).split())
    if method:
        example = next(line for line in method_help(name).splitlines() if line.startswith("Example: "))
        yield f"Needs {method.needs}. {example.replace(': ', ': `', 1)}`. Its settings: [{name}](settings.md#{name})."
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    if arguments:
        words = [f"`{one.metavar or one.name.upper()}`" for one in arguments]
        yield "\n".join(f"- {word}: {one.help}" for word, one in zip(words, arguments, strict=True))
    taken = [one for one in options(command) if is_shared(one)]
    if taken:
        yield f"Shared options: {', '.join(f'`{one.opts[0]}`' for one in taken)}."
    own = [one for one in options(command) if not is_shared(one)]
    if own:
        yield table(["option", "value", "meaning"], map(option, own))


def options(command: Any) -> list[Any]:
    """The options that a command's help shows."""
    return [one for one in command.params if one.param_type_name == "option" and not one.hidden and one.name != "help"]


def is_shared(one: Any) -> bool:
    """Whether an option is the one of that name that commands share, and not one of another meaning."""
    return one.name in SHARED and one.help == get_args(SHARED[one.name])[1].help


def option(one: Any) -> list[str]:
    """Names, kind of value, meaning."""
    names = " / ".join(f"`{name}`" for name in [*one.opts, *one.secondary_opts])
    value = "" if one.is_flag else f"`{one.metavar or 'VALUE'}`"
    default = one.default if one.show_default and isinstance(one.default, str | int) and not one.is_flag else None
    return [names, value, f"{one.help or ''}{f' Default: {default}.' if default is not None else ''}"]


# Settings


def settings() -> str:
    """All settings, section by section, then what presets and recipes set."""
    headings = ["setting", "default", "takes", "meaning"]
    parts = [
        "Every setting with its default for a real model, the values it takes, and what it does.",
        "`raysift settings METHOD` prints the same for one method, with the defaults for the model that you name. "
        "Settings of `resources`, `run` and `reuse` decide no result; all others do.",
        "## general",
        table(headings, lines(CommonConfig, "", frozenset(SECTIONS))),
    ]
    for name, model in SECTIONS.items():
        parts += [f"## {name}", table(headings, lines(model, f"{name}."))]
    for name, method in METHODS.items():
        parts += [f"## {name}", f"{method.summary} Needs {method.needs}."]
        known = list(lines(method.Config, f"{name}."))
        parts.append(table(headings, known) if known else "No settings of its own.")
        parts += [f"`{name}.preset={preset}` sets {told(flat(values))}." for preset, values in method.presets.items()]
    names = list(RECIPES)
    values = {name: flat(one.model_dump()) for name, one in RECIPES.items()}
    rows = [[f"`{key}`", *(code(values[name].get(key)) for name in names)] for key in TrainConfig.model_fields]
    parts += [
        "## Recipes",
        "`train.recipe=NAME` sets these; keys that you name beside it win.",
        table(["setting", *names], rows),
    ]
    return page("Settings", *parts)


def lines(model: type[BaseModel], at: str, skip: frozenset[str] = frozenset()) -> Iterator[list[str]]:
    """A line for each setting of a section."""
    for one in describe(model, model(), skip):
        takes = "a section like `train`, or none" if one.allowed.startswith("settings below") else one.allowed
        yield [f"`{at}{one.key}`", code(one.default), takes, one.meaning]


def flat(values: Any, at: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{at}{key}.") if isinstance(value, dict) else {f"{at}{key}": value}
    return found


def told(values: dict[str, Any]) -> str:
    return ", ".join(f"`{key}={default_of(value)}`" for key, value in values.items()) or "nothing"


def code(value: Any) -> str:
    """A default as one would type it, cut if it is a whole prompt."""
    text = default_of(list(value) if isinstance(value, tuple) else value)
    return f"`{text if len(text) <= LONGEST_DEFAULT else text[:LONGEST_DEFAULT] + ' ...'}`" if text else "empty"


# Files


def files() -> str:
    """Stages, tables and manifests of a run."""
    parts = [
        "Stages, tables and manifests of a run folder. What lies where: [runs](../runs.md).",
        "## Stages",
        "Each stage has a folder with a `manifest.json`. A stage without one is not finished.",
        table(["stage", "what it does"], ([f"`{name}`", does] for name, does in WHAT_IT_DOES.items())),
        "## Columns of selection.parquet and scores.parquet",
        "`scores.parquet` has a line for each row that ingest kept: `id`, `score` and the method's own columns. "
        "`selection.parquet` has the chosen rows in order: `id`, `rank`, `score`, `source`, the same columns, "
        "and `file` and `position`, the row's place in the pool.",
    ]
    for name, method in METHODS.items():
        own = ", ".join(f"`{field.name}` (`{field.type}`)" for field in method.columns) or "none"
        parts.append(f"**{name}**: own columns: {own}. {method.reading}".strip())
    parts += [
        "## Rows that ingest kept",
        table(["column", "type"], schema(KEPT_ROWS)),
        "## Rows that ingest did not keep",
        table(["column", "type"], schema(REJECTED)),
        "The reason is one of these. *Failed* records could not be understood; *rejected* ones could, and are of no use.",
        table(
            ["reason", "kind", "meaning"],
            ([f"`{name}`", "failed" if name in FAILURES else "rejected", text] for name, text in REASONS.items()),
        ),
        "## manifest.json",
        table(
            ["field", "type", "meaning"],
            (
                [f"`{name}`", allowed_by(field.annotation), meanings_of(Manifest).get(name, "")]
                for name, field in Manifest.model_fields.items()
            ),
        ),
    ]
    return page("Files of a run", *parts)


def schema(columns: pa.Schema) -> Iterator[list[str]]:
    for field in columns:
        yield [f"`{field.name}`", f"`{field.type}`"]


def exit_codes() -> str:
    """The errors by their codes, and what ends a command from outside."""
    errors = sorted(RaysiftError.__subclasses__(), key=lambda one: one.exit_code)
    rows = [
        ["0", "Done."],
        ["1", "Anything else. `RAYSIFT_DEBUG=1` shows the traceback."],
        *([str(one.exit_code), " ".join(str(one.__doc__).split())] for one in errors),
        [str(INTERRUPTED), "Interrupted by Ctrl-C; the same command continues the run."],
        [str(TERMINATED), "Terminated by the system or a scheduler; the same command continues the run."],
    ]
    return page(
        "Exit codes",
        "The exit code of a command tells what kind of problem ended it; the message on standard error tells the rest.",
        table(["code", "meaning"], rows),
        "Errors in settings, files and models are found before Ray starts, wherever that is possible. `raysift submit` "
        "ends with the job's own code; `ray job submit` knows only 0 and 1.",
    )


# Lists of pages


def index(texts: dict[str, str]) -> str:
    """The pages by group, each with its first sentence."""
    parts = ["All pages, each with its first sentence. New here: [start](start.md)."]
    for group, names in groups(texts).items():
        parts += [f"## {group}", "\n".join(f"- [{title}]({name}.md): {says}" for name, title, says in names)]
    return page("Documentation", *parts)


def llms(texts: dict[str, str]) -> str:
    """The same list in the form that language models are pointed to."""
    summary = first_paragraph((ROOT / "README.md").read_text())
    parts = ["# raysift", f"> {summary}"]
    for group, names in groups(texts).items():
        parts += [f"## {group}", "\n".join(f"- [{title}](docs/{name}.md): {says}" for name, title, says in names)]
    parts += [
        "## Optional",
        "- [Contributing](CONTRIBUTING.md): where things go, and how code and tests are written.\n"
        "- [On a Ray cluster](cluster/README.md): submitting jobs, and tokens.\n"
        "- [Figures](tests/benchmarks/RESULTS.md): every measured figure with its command and its misses.",
    ]
    return "\n\n".join(parts) + "\n"


def groups(texts: dict[str, str]) -> dict[str, list[tuple[str, str, str]]]:
    """Name, title and first sentence of each page, by group."""
    written = {str(file.relative_to(ROOT)): file.read_text() for file in DOCS.rglob("*.md")} | texts
    found = {name.removeprefix("docs/").removesuffix(".md"): text for name, text in written.items() if name != INDEX}
    placed = {name for names in GROUPS.values() for name in names}
    order = GROUPS | {"Guides": GROUPS["Guides"] + sorted(found.keys() - placed)}
    return {
        group: [(name, title(found[name]), first_sentence(found[name])) for name in names]
        for group, names in order.items()
    }


def title(text: str) -> str:
    return text.partition("\n")[0].removeprefix("# ")


def first_sentence(text: str) -> str:
    return re.split(r"(?<=[.?!]) ", first_paragraph(text))[0]


def first_paragraph(text: str) -> str:
    """The first paragraph below the title that is neither code, table, list, picture nor comment, without links."""
    prose = re.sub(r"^#.*", "", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), flags=re.M)
    paragraphs = [part for part in re.split(r"\n\n+", prose.strip()) if not part.startswith(("|", "- ", "<!--", "!["))]
    return re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", " ".join(paragraphs[0].split()))


# Markdown


def page(name: str, *parts: str) -> str:
    return "\n\n".join([f"# {name}", MADE, *parts]) + "\n"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"

    return "\n".join([line(headings), line("---" for _ in headings), *map(line, rows)])


def main() -> None:
    """Write all files."""
    for name, text in generated().items():
        place = ROOT / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


if __name__ == "__main__":
    main()
