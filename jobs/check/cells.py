"""Trainings of a check: one *cell* per bin and seed, and one for the untrained model. Each is measured, taught, and measured again.

A cell's name is a hash of all that decides its figures, and its manifest is written last. So a restart repeats no finished
cell, more seeds or bins add theirs, and other settings have cells of their own. The models themselves are deleted once they
are measured.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysift.config import CommonConfig
from raysift.evaluation.check import PLAIN, TAUGHT, Figures
from raysift.evaluation.metrics import EvalConfig
from raysift.fingerprint import canonical, fingerprint
from raysift.jobs.check.draws import Drawn, write_drawn
from raysift.jobs.check.held_out import Member, conversations, keys_of
from raysift.jobs.check.plan import Plan
from raysift.jobs.runs.models import adapter_input, computing, find_model, number_type
from raysift.jobs.runs.run import Run
from raysift.manifest import Manifest, installed_versions, read_manifest, write_manifest
from raysift.settings.generation import TRANSFORMERS
from raysift.settings.resources import Resources
from raysift.settings.roles import LEARN
from raysift.settings.training import TrainConfig
from raysift.storage import Location, extend_name

VERSION = 1
"""Raised when a change of this code changes a figure."""
CONCLUDES = ("confidence", "limit", "split", "answer_loss")
"""Settings of an evaluation that decide which examples are measured, which have an entry of their own, or what is made of them."""
TAUGHT_FILE = "taught.parquet"
Weights = tuple[str, str | Location | None]
"""A model's name, and its adapter."""
Measure = Callable[["Cell", Weights, Sequence[Member]], dict[str, Any]]


@dataclass(frozen=True)
class Cell:
    """One training with its two measurements; bin 0 is the model without any training."""

    bin: int
    seed: int
    rows: Location | None
    train: TrainConfig
    taught: Location | None
    """Rows that teach the format."""
    teach: TrainConfig
    evaluate: EvalConfig
    model: str
    dtype: str
    adapter: str | None
    trust_remote_code: bool
    resources: Resources
    place: Location
    home: str
    """The place as a name from which a model can be loaded."""
    decides: dict[str, Any]

    def figures(self) -> Figures | None:
        """What was measured, if the cell has finished."""
        found = read_manifest(self.place)
        return found.values["figures"] if found else None

    def tidy(self) -> None:
        """Delete the models."""
        for part in (self.place / PLAIN_PART, self.place / TAUGHT_PART):
            if part.exists():
                part.delete()


PLAIN_PART, TAUGHT_PART = "trained", "taught"


def plan_cells(run: Run, plan: Plan, draws: Sequence[Drawn]) -> list[Cell]:
    """The base model's cell, then those of each seed, bin by bin."""
    config, settings, held = plan.config, plan.settings, plan.held
    model = find_model(run, config)
    shared = {
        "version": VERSION,
        "model": computing(config, model),
        "measured": fingerprint(keys_of(held.measured)),
        "taught": fingerprint(keys_of(held.taught)) if held.taught else None,
        "evaluate": {name: value for name, value in config.evaluate.deciding().items() if name not in CONCLUDES},
    } | adapter_input(config.adapter)

    def cell(number: int, seed: int, rows: Location | None, digest: str | None) -> Cell:
        train = config.train.model_copy(update={"seed": seed})
        teach = teaching(train, len(held.taught), settings.taught_steps)
        decides = shared | {"rows": digest, "train": train if rows else None, "teach": teach if held.taught else None}
        name = fingerprint(decides)
        return Cell(
            bin=number,
            seed=seed,
            rows=rows,
            train=train,
            taught=run.folder / "rows" / f"{shared['taught']}-{TAUGHT_FILE}" if held.taught else None,
            teach=teach,
            evaluate=config.evaluate,
            model=model.name,
            dtype=number_type(config, model.name),
            adapter=config.adapter,
            trust_remote_code=config.trust_remote_code,
            resources=config.resources,
            place=run.folder / "cells" / name,
            home=extend_name(run.name, f"/cells/{name}"),
            decides=canonical(decides),
        )

    return [
        cell(0, config.seed, None, None),
        *(
            cell(number, drawn.seed, drawn.file(number), digest)
            for drawn in draws
            for number, digest in enumerate(drawn.digests, 1)
        ),
    ]


def teaching(train: TrainConfig, examples: int, steps: int) -> TrainConfig:
    """The recipe with so many steps on all examples at once, from its first rate on."""
    changes = {"epochs": steps, "max_steps": steps, "batch_size": max(1, examples), "warmup_ratio": 0.0}
    return train.model_copy(update=changes)


def run_cells(run: Run, plan: Plan, draws: Sequence[Drawn], cells: Sequence[Cell]) -> list[Figures]:
    """The figures of all cells, in order; does the unfinished ones first."""
    todo = [*{cell.place.path: cell for cell in cells if cell.figures() is None}.values()]
    if todo:
        for drawn in draws:
            if any(cell.seed == drawn.seed and cell.rows for cell in todo):
                write_drawn(plan, drawn)
        write_taught(plan.held.taught, todo[0].taught)
        run.start()
        from raysift.jobs.on_ray.fitting import longest_row, need_to_train, with_room

        need = need_to_train(plan.config, todo[0].model, longest_row(plan.source, plan.rows, plan.config.train))
        with_room(run, "check", plan.config, need, lambda own: _do(run, plan, todo, own), LEARN)
    for cell in cells:
        cell.tidy()
    return [cell.figures() or {} for cell in cells]


def write_taught(members: Sequence[Member], place: Location | None) -> None:
    """Write the rows that teach the format, unless they lie there."""
    if place is not None and not place.exists():
        place.parent.make_folder()
        sink = pa.BufferOutputStream()
        pq.write_table(conversations(members), sink)
        place.write(sink.getvalue().to_pybytes())  # whole or not at all


def _do(run: Run, plan: Plan, cells: Sequence[Cell], own: CommonConfig) -> None:
    """Finish the cells that are left, side by side if a training is one process."""
    from raysift.jobs.on_ray.side_by_side import side_by_side

    resources, held = own.resources, plan.held.measured
    left = [replace(cell, resources=resources) for cell in cells if cell.figures() is None]
    together = (resources.asked.train.workers or 1) <= 1
    finished = side_by_side(finish, left, resources, held) if together else _one_by_one(left, held)
    with contextlib.closing(finished) as done, run.console.progress("check", len(left), "models") as bar:
        for cell in done:
            run.record("finished", "check", bin=cell.bin, seed=cell.seed)
            bar.advance()


def _one_by_one(cells: Sequence[Cell], held: Sequence[Member]) -> Generator[Cell, None, None]:
    for cell in cells:
        finish(cell, held, on_ray=True)
        yield cell


def finish(cell: Cell, held: Sequence[Member], on_ray: bool = False) -> None:
    """Train, measure, teach, measure, and write the figures; a repeated call resumes a training."""
    began, started = time.perf_counter(), datetime.now(UTC)
    take: Measure = _measured_on_ray if on_ray else measured
    weights: Weights = (cell.model, cell.adapter)
    account: dict[str, Any] = {}
    if cell.rows:
        weights, report = _trained(cell, PLAIN_PART, cell.rows, cell.train, weights, on_ray)
        account = {"rows": report.counts["rows_in"], "tokens": report.tokens, "steps": report.steps}
    figures = {PLAIN: take(cell, weights, held)}
    if cell.taught:
        weights, _ = _trained(cell, TAUGHT_PART, cell.taught, cell.teach, weights, on_ray)
        figures[TAUGHT] = take(cell, weights, held)
    manifest = Manifest(
        stage="check",
        fingerprint=cell.place.name,
        settings=cell.decides,
        counts=account,
        values={"bin": cell.bin, "seed": cell.seed, "figures": figures},
        versions=installed_versions(),
        started=started.isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - began, 3),
    )
    write_manifest(cell.place.make_folder(), manifest)
    cell.tidy()


def _trained(
    cell: Cell, part: str, rows: Location, train: TrainConfig, start: Weights, on_ray: bool
) -> tuple[Weights, Any]:
    """The model after a training that goes on from `start`, and its account."""
    from raysift.actors.fetched_models import look_at, pin
    from raysift.jobs.training.finetune import finetune

    model, adapter = start
    from_weights = train.method == "full" and model != cell.model
    report = finetune(
        [rows],
        (cell.place / part).make_folder(),
        train,
        cell.model,
        cell.resources.asked if on_ray else cell.resources.in_this_process(),
        adapter=cell.place / PLAIN_PART / _last(cell, PLAIN_PART) / "model" if from_weights else adapter,
        gradient_checkpointing=cell.resources.gradient_checkpointing,
        trust_remote_code=cell.trust_remote_code,
    )
    last = f"epoch-{report.epochs[-1].epoch}"
    whole = cell.place / part / last / "model"
    if not whole.exists():
        return (cell.model, cell.place / part / last / "adapter"), report
    return (
        whole.path if whole.is_local else pin(look_at(extend_name(cell.home, f"/{part}/{last}/model"))),
        None,
    ), report


def _last(cell: Cell, part: str) -> str:
    from raysift.actors.train_checkpoints import epoch_records

    return f"epoch-{epoch_records(cell.place / part)[-1].epoch}"


def measured(cell: Cell, weights: Weights, held: Sequence[Member]) -> dict[str, Any]:
    """The figures of a model, which this process loads."""
    from raysift.actors.loaded import load
    from raysift.actors.train_checkpoints import template_of
    from raysift.jobs.check.measuring import measure

    model, adapter = weights
    own = cell.resources
    template = template_of(cell.evaluate.template, model, adapter, cell.train.template)
    changes = {"template": template, "answer_loss": False, "backend": TRANSFORMERS, "split": None, "limit": None}
    loaded = load(model, adapter, cell.dtype, own.placed_on, own.threads, cell.trust_remote_code)
    return dict(measure(loaded, held, cell.evaluate.model_copy(update=changes)))


def _measured_on_ray(cell: Cell, weights: Weights, held: Sequence[Member]) -> dict[str, Any]:
    """The same in a task that holds what a model needs to answer, after a training that had workers of its own."""
    import ray

    from raysift.jobs.cluster.machines import of_role, room_for_one

    own = of_role(cell.resources.asked, "generate", cell.model)
    with room_for_one("check", own, lambda words: None) as placed:
        task = ray.remote(**placed, max_retries=own.restarts)(measured)
        found: dict[str, Any] = ray.get(task.remote(replace(cell, resources=own), weights, list(held)))
    return found


__all__ = ["Cell", "finish", "plan_cells", "run_cells", "write_taught"]
