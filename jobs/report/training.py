"""Training and evaluation: losses, learning rates, scores with their intervals, and the base model beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raysift.evaluation.entries import BASE
from raysift.jobs.compare.result import read_result
from raysift.jobs.report.gather import Gathered
from raysift.jobs.runs.stage_names import WHAT_IT_DOES
from raysift.manifest import Manifest
from raysift.report.bins import thinned
from raysift.report.blocks import TABLE_ROWS, Block, Column, Line, Lines, Section, Table

LEFT_OUT = {
    "rows_truncated": "cut to the longest input",
    "rows_no_label_tokens": "nothing to learn from",
    "rows_failed": "failed",
    "rows_doubled_special": "with a doubled special token",
}
TASK_COLUMNS = (
    *(Column(name="task"), Column(name="metric"), Column(name="examples", type="count")),
    *(Column(name=name, type="number") for name in ("score", "from", "to")),
    *(Column(name=name, type="count") for name in ("failed", "cut off")),
)


def training_section(found: Gathered) -> Section | None:
    """The losses of every training of the run, and what each trained on."""
    trained = [one for one in found.manifests if "epochs" in one.files]
    curves = [
        Line(name=one.stage, points=thinned([(step, loss) for step, loss in one.values["losses"]]))
        for one in trained
        if one.values.get("losses")
    ]
    blocks: list[Block] = [Lines(title="Loss", x="step", y="loss", series=tuple(curves))] if curves else []
    blocks += [block for one in trained for block in (_epochs(one),) if block]
    if trained:
        blocks.append(_account(trained))
    if (searched := found.stage("search")) is not None:
        blocks.append(_trials(searched))
    return Section(key="training", title="Training", blocks=tuple(blocks)) if blocks else None


def _epochs(one: Manifest) -> Table | None:
    losses, rates = one.values.get("mean_losses"), one.values.get("mean_learning_rates")
    if not losses or not rates:
        return None
    columns = (
        Column(name="epoch", type="count"),
        *(Column(name=name, type="number") for name in ("mean loss", "mean learning rate")),
    )
    rows = tuple((n, loss, rate) for n, (loss, rate) in enumerate(zip(losses, rates, strict=True), 1))
    return Table(
        title=f"Epochs of {one.stage}", note=WHAT_IT_DOES.get(one.stage, ""), columns=columns, rows=rows[:TABLE_ROWS]
    )


def _account(trained: list[Manifest]) -> Table:
    columns = (
        Column(name="training"),
        *(Column(name=name, type="count") for name in ("rows", "steps", *LEFT_OUT.values())),
        Column(name="tokens/s", type="number"),
    )
    rows = tuple(
        (
            one.stage,
            one.counts.get("rows_trained", one.counts.get("kept")),
            one.values.get("steps"),
            *(one.counts.get(name, 0) for name in LEFT_OUT),
            one.values.get("tokens_per_second"),
        )
        for one in trained
    )
    return Table(title="What was trained on", columns=columns, rows=rows)


def _trials(searched: Manifest) -> Table:
    """The settings that a search tried, as the stage lists them."""
    trials: list[Mapping[str, Any]] = searched.values["trials"][:TABLE_ROWS]
    names = list(dict.fromkeys(name for trial in trials for name in trial))
    kinds = {
        name: "number" if any(isinstance(trial.get(name), float) for trial in trials) else "text" for name in names
    }
    rows = tuple(tuple(_cell(trial.get(name)) for name in names) for trial in trials)
    columns = tuple(Column(name=name.replace("_", " "), type=kinds[name]) for name in names)
    return Table(title="Settings that were tried, the best first", columns=columns, rows=rows)


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else str(value)


def evaluation_section(found: Gathered) -> Section | None:
    """Scores by task, verdicts of a judge, and the comparison that the run belongs to."""
    blocks: list[Block] = []
    lead = ""
    if (tested := found.stage("evaluate")) is not None:
        values = tested.values
        lines = [*values["tasks"], *([values["overall"]] if len(values["tasks"]) > 1 else []), *values["losses"]]
        confidence = tested.settings["evaluate"]["confidence"]
        note = f"from and to: {confidence:.0%} intervals. cut off: answers that reached the longest length."
        rows = tuple(task_line(line) for line in lines[:TABLE_ROWS])
        blocks.append(Table(title="Scores by task", note=note, columns=TASK_COLUMNS, rows=rows))
        if values["subsets"]:
            subsets = tuple(task_line(line) for line in values["subsets"][:TABLE_ROWS])
            blocks.append(Table(title="By part of a task", columns=TASK_COLUMNS, rows=subsets))
    if (won := found.stage("win_rate")) is not None:
        blocks.append(_wins(won))
    beside = _of_comparison(found)
    if beside:
        blocks.append(beside)
        lead = f"This run is part of a comparison; '{BASE}' is the model without any training."
    return Section(key="evaluation", title="Evaluation", lead=lead, blocks=tuple(blocks)) if blocks else None


def task_line(line: Mapping[str, Any]) -> tuple[Any, ...]:
    """A line of TASK_COLUMNS."""
    return tuple(line[name] for name in ("task", "metric", "n", "mean", "low", "high", "failed", "cut_off"))


def _wins(won: Manifest) -> Table:
    """The table of a win rate: one line a task, and the total."""
    lines = [line for part in won.values.values() if isinstance(part, list) for line in part if isinstance(line, dict)]
    lines = [*lines, won.values["total"]][-TABLE_ROWS:]
    names = [name for name in won.values["total"] if any(name in line for line in lines)]
    rows = tuple(tuple(_cell(line.get(name)) for name in names) for line in lines)
    kinds = ["number" if any(isinstance(row[i], float) for row in rows) else "text" for i in range(len(names))]
    columns = tuple(Column(name=name.replace("_", " "), type=kind) for name, kind in zip(names, kinds, strict=True))
    return Table(title="Who answers better", columns=columns, rows=rows)


def _of_comparison(found: Gathered) -> Table | None:
    """The lines of the comparison in whose folder the run lies, RUN/METHOD/seed-N: its own, and the base model's."""
    result = read_result(found.run.folder.parent.parent)
    if result is None:
        return None
    own = found.run.folder.parent.name
    columns = (
        Column(name="trained on"),
        *(Column(name=name, type="number") for name in ("score", "from", "to", "loss on target")),
    )
    rows = tuple(
        (
            f"{line['name']} (this run)" if line["name"].replace(" ", "_") == own else line["name"],
            *(line[name] for name in ("score", "low", "high", "loss")),
        )
        for line in result["methods"][:TABLE_ROWS]
    )
    return Table(title="Beside the others of its comparison", columns=columns, rows=rows)
