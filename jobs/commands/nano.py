"""`raysift nano ...`: files of the nano world, so that every method can be tried offline, and the making of its models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from raysift.errors import ConfigError, system_words

app = typer.Typer(help="The nano world and its models: pools, targets and tests to try every method on.")

OutFile = Annotated[str, typer.Argument(help="JSONL file to write; an existing one is replaced.", metavar="PATH")]
Rows = Annotated[int, typer.Option("--rows", min=1, help="How many.")]
Seed = Annotated[int, typer.Option("--seed", help="Another seed gives other rows.")]
Skills = Annotated[
    list[str] | None, typer.Option("--skill", help="What is asked, may be repeated; default: last_letters.")
]


@app.command("build")
def build(
    out: Annotated[str, typer.Option("--out", help="Folder for the models.")] = "runs/nano",
    seed: Annotated[int, typer.Option("--seed", help="Decides the weights.")] = 0,
    only: Annotated[list[str] | None, typer.Option("--only", help="foundation, reward or encoder.")] = None,
) -> None:
    """Train the three nano models from scratch."""
    from raysift.jobs.nano_build import build as build_models

    build_models(Path(out), seed, only, print)


@app.command("pool")
def pool(path: OutFile, rows: Rows = 4000, seed: Seed = 0) -> None:
    """Write a pool of any size: instructions and answers of 22 skills, a third of them spoilt."""
    from raysift.nano.world import generate_pool

    _write(path, "rows", lambda: generate_pool(rows, seed))


@app.command("target")
def target(path: OutFile, rows: Rows = 48, seed: Seed = 0, skill: Skills = None) -> None:
    """Write questions with right answers: a target of `less` and `raise`."""
    _write(path, "examples", lambda: _examples(rows, seed, skill, "validation"))


@app.command("test")
def test(path: OutFile, rows: Rows = 200, seed: Seed = 0, skill: Skills = None) -> None:
    """Write questions that stand in no pool or target, for `evaluate` and `--test`."""
    _write(path, "examples", lambda: _examples(rows, seed, skill, "test"))


@app.command("pairs")
def pairs(path: OutFile, rows: Rows = 48, seed: Seed = 0, skill: Skills = None) -> None:
    """Write questions with a right and a wrong answer: a target of `rose`."""
    from raysift.nano.world import preference_pairs

    _write(path, "pairs", lambda: preference_pairs(rows, seed, _known(skill)))


def _examples(rows: int, seed: int, skills: list[str] | None, split: str) -> Iterator[dict[str, Any]]:
    from raysift.nano.world import examples

    return examples(rows, seed, _known(skills), split)


def _known(skills: list[str] | None) -> list[str]:
    from raysift.nano.skills import SKILLS

    for skill in skills or []:
        if skill not in SKILLS:
            raise ConfigError(f"nano: '{skill}' is no skill. Known: {', '.join(sorted(SKILLS))}.")
    return skills or ["last_letters"]


def _write(path: str, what: str, make: Callable[[], Iterable[dict[str, Any]]]) -> None:
    """Write records one at a time, below a draft's name until all are there."""
    import orjson

    file, count = Path(path), 0
    draft = file.with_name(f"{file.name}.draft")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb", buffering=1 << 20) as out:
            for record in make():
                out.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
                count += 1
        draft.replace(file)
    except OSError as error:
        raise ConfigError(f"nano: cannot write '{path}': {system_words(error)} Name another file.") from None
    except ValueError as error:  # the world has no more problems of this skill
        raise ConfigError(str(error)) from None
    finally:
        draft.unlink(missing_ok=True)
    print(f"{path}: {count:,} {what}")
