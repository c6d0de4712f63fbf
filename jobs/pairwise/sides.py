"""The two sides of a win rate: answers by example id, from a model or from a finished `raysift evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysift.actors.prompts import ANSWER, FINISHED
from raysift.config import CommonConfig
from raysift.errors import DataError
from raysift.evaluation.examples import example_key
from raysift.fingerprint import file_fingerprint
from raysift.jobs.cluster.machines import for_role
from raysift.jobs.runs.models import adapter_input, computing, find_model, number_type
from raysift.jobs.runs.run import Run, StageResult, open_run
from raysift.jobs.runs.tables import count_answers, relative
from raysift.jobs.stages import asked_as_trained
from raysift.manifest import read_manifest
from raysift.pairwise.rows import Answer, rows_to_answer
from raysift.pairwise.settings import WinRateSettings
from raysift.records import ERROR, ID, Example
from raysift.settings.generation import TRANSFORMERS
from raysift.storage import Location, open_location

OWN, AGAINST = "own", "against"


@dataclass(frozen=True)
class Source:
    """Where a side's answers come from: a model, or answers that exist already."""

    model: str
    adapter: str | None
    answers: str | None

    @property
    def title(self) -> str:
        """Its name in tables."""
        return self.answers or self.model + (f" + {self.adapter}" if self.adapter else "")

    def identity(self, run: Run, config: CommonConfig) -> dict[str, Any]:
        """What decides the answers; raises if the model, adapter or answers are missing."""
        if self.answers:
            return {"answers": file_fingerprint(answers_file(self.answers))}
        return {"model": computing(config, find_model(run, config, self.model))} | adapter_input(self.adapter)


@dataclass(frozen=True)
class Side:
    """Answers by example id, and what identifies them."""

    answers: Mapping[str, Answer]
    fingerprint: str


def answer(
    run: Run,
    config: CommonConfig,
    settings: WinRateSettings,
    examples: Sequence[Example],
    name: str,
    source: Source,
    inputs: Mapping[str, Any],
) -> Side:
    """A side's answers to all examples, read from a file or generated."""
    if source.answers:
        return Side(read_answers(answers_file(source.answers), examples), inputs["answers"])
    from raysift.jobs.cluster.machines import spread
    from raysift.jobs.on_ray.fitting import need_to_answer, with_room
    from raysift.jobs.on_ray.generation import describe_backend, generate, pick_backend, recorded_backend

    asked = asked_as_trained(
        run, name, "win_rate.generation", settings.generation, source.model, source.adapter, config.train
    )

    def body(folder: Location) -> StageResult:
        model = find_model(run, config, source.model).name

        def work(own: CommonConfig) -> list[Location]:
            return generate(
                [write_table(rows_to_answer(examples), folder / "questions.parquet")],
                model,
                folder,
                asked,
                spread(own.resources, len(examples)),
                adapter=source.adapter,
                dtype=number_type(own, source.model),
                trust_remote_code=own.trust_remote_code,
                rows=len(examples),
                progress=run.progress,
            )

        placed = for_role(config, "generate", model).resources
        on_actors = pick_backend(asked, placed) == TRANSFORMERS
        answers = with_room(
            run, name, config, need_to_answer(config, model) if on_actors else None, work, "generate", model
        )
        run.console.note(f"{name}: {describe_backend(asked, placed, folder)}")
        counts = count_answers(name, answers, len(examples))
        cut_off = sum(row[FINISHED] is False for row in read_row_dicts(answers))
        if cut_off:
            run.console.note(f"{name}: {cut_off} of {len(examples)} answers reached max_new_tokens and were cut off")
        return StageResult(
            files={"answers": relative(answers, folder)},
            counts=counts | {"cut_off": cut_off},
            values={"backend": recorded_backend(folder)},
            rows=len(examples),
        )

    decides = {"generation": asked.deciding()} | drawn_examples(config, settings)
    manifest = run.stage(name, decides, inputs, body)
    found = {row[ID]: Answer(row[ANSWER], row[ERROR]) for row in read_row_dicts(run.files(manifest, "answers"))}
    return Side({e.id: found[example_key(e.id)] for e in examples}, manifest.fingerprint)


def answers_file(source: str) -> Location:
    """The Parquet file itself, or the answers file of a finished `raysift evaluate`."""
    place = open_location(source)
    if not place.name.endswith(".parquet"):
        run = open_run(source)
        manifest = read_manifest(run.folder / "evaluate")
        files = run.files(manifest, "answers") if manifest else []
        found = [file for file in files if file.name.endswith(".parquet")]
        if not found:
            raise DataError(
                f"win rate: run {source} has no finished evaluation. Finish it with the command that began it."
            )
        place = found[0]
    if not place.exists():
        raise DataError(f"win rate: there is no file '{place}'.")
    return place


def read_answers(place: Location, examples: Sequence[Example]) -> dict[str, Answer]:
    """The answer to each example, by id; an example that the file lacks gets an error instead."""
    table = pq.read_table(place.path, filesystem=place.fs)
    if any(name not in table.column_names or table.schema.field(name).type != pa.string() for name in (ID, ANSWER)):
        raise DataError(
            f"win rate: {place} has columns {table.column_names}; expected '{ID}' and '{ANSWER}', both texts."
        )
    found: dict[str, Answer] = {}
    for row in table.to_pylist():
        if row[ID] in found:
            raise DataError(f"win rate: {place} has two answers to example '{row[ID]}'; expected one.")
        why = "the evaluation does not ask examples of this metric" if row.get("status") == "not scored" else None
        found[row[ID]] = Answer(row[ANSWER], row.get(ERROR) or why)
    if not any(e.id in found for e in examples):
        raise DataError(f"win rate: {place} answers none of the {len(examples)} examples; is it of another test file?")
    return {e.id: found.get(e.id, Answer(None, f"there is none in {place}")) for e in examples}


def drawn_examples(config: CommonConfig, settings: WinRateSettings) -> dict[str, Any]:
    """The settings that decide which examples are asked."""
    return {"split": settings.split, "limit": settings.limit, "seed": config.seed}


def write_table(table: pa.Table, place: Location) -> Location:
    """Write the table as a Parquet file and return its place."""
    pq.write_table(table, place.path, filesystem=place.fs)
    return place


def read_row_dicts(files: Sequence[Location]) -> Iterator[dict[str, Any]]:
    """The rows of Parquet files, file by file."""
    for file in files:
        yield from pq.read_table(file.path, filesystem=file.fs).to_pylist()
