"""Training and testing of a comparison: one *cell* per selection and training seed, and one for the untrained model.

A cell's name is a hash of all that decides its result. So the same rows under the same recipe are trained once, a
restart repeats no finished cell, and more methods or seeds only add cells. Cells run as Ray tasks, as many at once as
fit. If one training takes several workers, cells run one at a time on Ray Train.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raysift.config import CommonConfig
from raysift.evaluation.entries import BASE
from raysift.evaluation.examples import read_examples
from raysift.evaluation.metrics import EvalConfig
from raysift.evaluation.target_answers import target_conversations
from raysift.fingerprint import fingerprint
from raysift.jobs.compare.selections import Chosen
from raysift.jobs.runs.models import adapter_input, computing, find_model, number_type
from raysift.jobs.runs.run import Run
from raysift.jobs.runs.tables import read_chunks
from raysift.pool.files import find_files, fingerprint_files
from raysift.pool.longest import most_tokens
from raysift.records import ERROR, MESSAGES
from raysift.settings.generation import TRANSFORMERS
from raysift.settings.resources import Resources
from raysift.settings.roles import LEARN
from raysift.settings.training import TrainConfig, count_steps
from raysift.storage import Location

RESULT = "cell.json"


@dataclass(frozen=True)
class Cell:
    """One training and its test; without files, the model is tested as it is."""

    name: str
    seed: int
    """Seed of the selection."""
    training: int
    """Number of this training among those of the selection, from 0."""
    files: tuple[Location, ...]
    train: TrainConfig
    evaluate: EvalConfig
    model: str
    dtype: str
    adapter: str | None
    trust_remote_code: bool
    test: tuple[str, ...]
    loss_on: tuple[str, ...]
    resources: Resources
    place: Location

    def result(self) -> dict[str, Any] | None:
        """The result if the cell has finished: scores by question, loss on the target, rows, tokens, steps, seconds."""
        file = self.place / RESULT
        return dict(json.loads(file.read_bytes())) if file.exists() else None


def plan_cells(
    run: Run, shared: CommonConfig, selections: Sequence[Chosen], trainings: int, loss_on: Sequence[str]
) -> list[Cell]:
    """One cell for the base model and `trainings` per selection; all take as many steps as the first selection."""
    steps = count_steps(selections[0].config.train, len(selections[0].ids))[1]
    model = find_model(run, shared)
    tested = {
        "test": fingerprint_files(find_files(shared.test)),
        "loss_on": fingerprint_files(find_files(list(loss_on))) if loss_on else None,
        "model": computing(shared, model),
    } | adapter_input(shared.adapter)

    def cell(name: str, seed: int, training: int, rows: Chosen | None) -> Cell:
        config = rows.config if rows else shared
        train = config.train.model_copy(update={"seed": seed + 1000 * training})
        if rows and train.epochs == shared.train.epochs:  # a method that sets its own epochs keeps them
            train = with_steps(train, steps, len(rows.ids))
        decides = tested | {
            "rows": rows.identity if rows else None,
            "evaluate": config.evaluate.deciding(),
            "train": train,
        }
        return Cell(
            name,
            seed,
            training,
            rows.files if rows else (),
            train,
            config.evaluate,
            model.name,
            number_type(shared, model.name),
            shared.adapter,
            shared.trust_remote_code,
            tuple(shared.test),
            tuple(loss_on),
            shared.resources,
            run.folder / "cells" / fingerprint(decides),
        )

    base = cell(BASE, shared.seed, 0, None)
    return [base, *(cell(rows.name, rows.seed, n, rows) for rows in selections for n in range(trainings))]


def with_steps(train: TrainConfig, steps: int, rows: int) -> TrainConfig:
    """The recipe with this many optimizer steps, whatever the number of rows."""
    per_epoch = count_steps(train, rows)[0]
    return train.model_copy(update={"epochs": math.ceil(steps / per_epoch), "max_steps": steps})


def run_cells(run: Run, shared: CommonConfig, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Results of all cells, in order; runs the unfinished ones first."""
    if any(cell.result() is None for cell in cells):
        run.start()
        from raysift.jobs.on_ray.fitting import need_to_train, with_room

        files = {file.path: file for cell in cells for file in cell.files}
        chunks = read_chunks([*files.values()], [MESSAGES])
        longest = max((most_tokens(chunk[MESSAGES]) for chunk in chunks), default=None)
        need = need_to_train(shared, cells[0].model, longest)
        with_room(run, "train", shared, need, lambda fit: _do(run, cells, fit.resources), LEARN)
    return [cell.result() or {} for cell in cells]


def _do(run: Run, cells: Sequence[Cell], resources: Resources) -> None:
    """Run the unfinished cells, those of equal identity only once."""
    from raysift.jobs.on_ray.side_by_side import side_by_side

    todo = [*{cell.place.path: cell for cell in cells if cell.result() is None}.values()]
    todo = [replace(cell, resources=resources) for cell in todo]
    alone = (resources.asked.train.workers or 1) > 1
    done = _one_by_one(todo) if alone else side_by_side(train_and_test, todo, resources)
    with contextlib.closing(done) as finished, run.console.progress("train and test", len(todo), "trainings") as bar:
        for cell in finished:
            run.record("finished", "train", rows_of=cell.name, seed=cell.seed)
            bar.advance()


def _one_by_one(cells: Sequence[Cell]) -> Generator[Cell, None, None]:
    for cell in cells:
        train_and_test(cell, on_ray=True)
        yield cell


def train_and_test(cell: Cell, on_ray: bool = False) -> None:
    """Train on the cell's rows, test the last checkpoint, and write the result; a repeated call resumes training."""
    from raysift.jobs.training.finetune import finetune

    began = time.perf_counter()
    result: dict[str, Any] = {"name": cell.name, "seed": cell.seed, "rows": 0, "tokens": 0, "steps": 0, "seconds": 0.0}
    model: str = cell.model
    adapter: str | Location | None = cell.adapter
    if cell.files:
        report = finetune(
            cell.files,
            cell.place.make_folder(),
            cell.train,
            cell.model,
            cell.resources.asked if on_ray else cell.resources.in_this_process(),
            adapter=cell.adapter,
            gradient_checkpointing=cell.resources.gradient_checkpointing,
            trust_remote_code=cell.trust_remote_code,
        )
        last = cell.place / f"epoch-{report.epochs[-1].epoch}"
        whole = last / "model"
        model, adapter = (whole.path, None) if whole.exists() else (cell.model, last / "adapter")
        result |= {"rows": report.counts["rows_in"], "tokens": report.tokens, "steps": report.steps}
        result |= {"seconds": report.seconds, "mean_losses": [epoch.mean_loss for epoch in report.epochs]}
    result |= _test(cell, model, adapter, on_ray)
    (cell.place.make_folder() / RESULT).write(json.dumps(result | {"wall_seconds": time.perf_counter() - began}))


def _test(cell: Cell, model: str, adapter: Any, on_ray: bool) -> dict[str, Any]:
    from raysift.actors.loaded import load
    from raysift.actors.train_checkpoints import template_of
    from raysift.jobs.training.evaluate import evaluate, evaluate_here

    template = template_of(cell.evaluate.template, model, adapter, cell.train.template)
    asked = cell.evaluate.model_copy(update={"template": template, "answer_loss": False, "backend": TRANSFORMERS})
    tests = read_examples(cell.test, split=asked.split, scored=True)
    loads: dict[str, Any] = {"adapter": adapter, "trust_remote_code": cell.trust_remote_code}
    own = cell.resources
    if on_ray:
        found = evaluate(tests, model, cell.place / "tested", asked, own, dtype=cell.dtype, **loads)
        return {"scores": found.scores(), "loss": None}
    loaded = load(model, adapter, cell.dtype, own.placed_on, own.threads, cell.trust_remote_code)
    scores = evaluate_here(tests, loaded, asked).scores()
    return {"scores": scores, "loss": target_loss(cell.loss_on, loaded, template) if cell.loss_on else None}


def target_loss(paths: Sequence[str], loaded: Any, template: str) -> float | None:
    """Mean loss over the tokens of the target's right answers; None if the model can read no answer."""
    from raysift.actors.likelihood import LOSS, AnswerLoss
    from raysift.scoring.columns import LABEL_TOKENS

    answers = AnswerLoss(loaded, template=template)(target_conversations(paths))
    answers = answers.filter(answers[ERROR].is_null())
    losses, tokens = answers[LOSS].to_numpy(), answers[LABEL_TOKENS].to_numpy()
    return float((losses * tokens).sum() / tokens.sum()) if len(answers) else None


__all__ = ["Cell", "plan_cells", "run_cells", "train_and_test", "with_steps"]
