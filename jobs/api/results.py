"""What trainings, evaluations, comparisons and searches return: the figures, and where the files are."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from raysift.jobs.api.showing import as_html, near
from raysift.jobs.check import rendering as check_rendering
from raysift.jobs.compare import rendering as compare_rendering
from raysift.jobs.pairwise.judging import RESULT_FILE
from raysift.jobs.runs.run import Run as OpenRun
from raysift.manifest import Manifest
from raysift.storage import Location

SCORES = ["task", "metric", "n", "mean", "low", "high", "failed", "cut_off"]


class Result:
    """Something that a stage of a run left, with the stage's account."""

    def __init__(self, opened: OpenRun, manifest: Manifest) -> None:
        self.opened = opened
        """The run as its stages see it, with files and manifests."""
        self.manifest = manifest
        """The account of the stage."""

    @property
    def folder(self) -> str:
        """The run's folder or URI."""
        return str(self.opened.name)


class Training(Result):
    """A model that was fine-tuned."""

    def __fspath__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        rows, steps = self.manifest.counts["rows_in"], self.manifest.values["steps"]
        loss = f", loss {self.losses[-1][1]:.4g}" if self.losses else ""
        return f"Training({rows:,} rows, {steps:,} steps{loss}, {near(self.path)})"

    def _repr_html_(self) -> str:
        facts = {
            "rows": self.manifest.counts["rows_in"],
            "steps": self.manifest.values["steps"],
            "path": near(self.path),
        }
        return as_html("Training", facts, ["step", "loss"], self.losses[-5:])

    @property
    def path(self) -> str:
        """Folder of the adapter, or of the model after a full fine-tune; `adapter=` or `model=` of other calls takes it."""
        return self.adapter or self.model

    @property
    def adapter(self) -> str | None:
        """Folder of the PEFT adapter after the last epoch; None after a full fine-tune."""
        place = self._last() / "adapter"
        return place.path if place.exists() else None

    @property
    def model(self) -> str:
        """Folder of the trained model after a full fine-tune, else the name of the base model."""
        place = self._last() / "model"
        return place.path if place.exists() else str((self.opened.made_with() or {}).get("model"))

    @property
    def losses(self) -> list[tuple[int, float]]:
        """Step and mean loss since the point before it, in nats for each token of the answers."""
        return [(int(step), float(loss)) for step, loss in self.manifest.values.get("losses", [])]

    @property
    def evaluation(self) -> Evaluation | None:
        """How the model did on `test=`, if examples were named."""
        manifest = self.opened.manifest("evaluate")
        return Evaluation(self.opened, manifest) if manifest else None

    def _last(self) -> Location:
        return self.opened.files(self.manifest, "epochs")[-1]


class Evaluation(Result):
    """Scores of a model on examples."""

    def __repr__(self) -> str:
        overall = self.manifest.values["overall"]
        between = "" if overall["low"] is None else f" ({overall['low']:.3f} to {overall['high']:.3f})"
        score = "none" if self.score is None else f"{self.score:.3f}"
        return f"Evaluation(score {score}{between}, {overall['n']:,} examples, {near(self.folder)})"

    def _repr_html_(self) -> str:
        return as_html("Evaluation", {"score": self.score, "run": near(self.folder)}, SCORES, _lines(self.table()))

    @property
    def score(self) -> float | None:
        """The mean over the tasks, from 0 to 1; None if nothing could be scored."""
        score = self.manifest.values["overall"]["mean"]
        return None if score is None else float(score)

    def table(self) -> pa.Table:
        """A line for each task: metric, number of examples, mean and its interval, failures, answers that were cut."""
        return pa.Table.from_pylist([{name: line[name] for name in SCORES} for line in self.manifest.values["tasks"]])

    def answers(self) -> pa.Table:
        """A line for each example: its answer, score, and what went wrong."""
        place = self.opened.files(self.manifest, "answers")[0]
        return pq.read_table(place.path, filesystem=place.fs)


class WinRate(Result):
    """Which of two sides answers better, by a judge."""

    def __repr__(self) -> str:
        total = self.manifest.values["total"]
        return f"WinRate({total['win']} won, {total['tie']} even, {total['lose']} lost of {total['n']}, {near(self.folder)})"

    def _repr_html_(self) -> str:
        table = self.table()
        return as_html("Win rate", {"score": self.score, "run": near(self.folder)}, table.column_names, _lines(table))

    @property
    def score(self) -> float:
        """1 + (won - lost) / judged: 1 is even, 2 wins all, 0 loses all."""
        return float(self.manifest.values["total"]["score"])

    def table(self) -> pa.Table:
        """A line for each set of questions, and the total."""
        values = self.manifest.values
        return pa.Table.from_pylist([*(values["subsets"] or values["sets"]), values["total"]])

    def verdicts(self) -> pa.Table:
        """A line for each question: both answers and the verdict."""
        place = self.opened.folder / RESULT_FILE
        return pq.read_table(place.path, filesystem=place.fs)


class Search(Result):
    """Trials of settings, and the best of them."""

    def __repr__(self) -> str:
        return f"Search({self.manifest.counts['trials']} trials, best: {', '.join(self.best) or 'the own settings'})"

    def _repr_html_(self) -> str:
        table = self.table()
        return as_html("Search", {"run": near(self.folder)}, table.column_names, _lines(table))

    @property
    def best(self) -> list[str]:
        """The best settings, as `section.key=value`; `raysift raise --config` takes the run's `best.yaml`."""
        return list(self.manifest.values["best"]["overrides"])

    def table(self) -> pa.Table:
        """A line for each trial, the best first."""
        return pa.Table.from_pylist(self.manifest.values["trials"])


class Verdicts:
    """Figures of many trainings, and what they say in words."""

    shown: ClassVar[ModuleType]
    """How they are shown."""

    def __init__(self, opened: OpenRun, result: Mapping[str, Any]) -> None:
        self.opened = opened
        self.result = dict(result)
        """All figures, as in the folder's JSON file."""

    def _repr_html_(self) -> str:
        title, heads, rows = self.shown.tables(self.result)[0]
        said = "".join(as_html("", {"": verdict}) for verdict in self.verdicts)
        return as_html(title, {"run": near(self.folder)}, heads, rows) + said

    @property
    def folder(self) -> str:
        """The folder or URI of the results."""
        return str(self.opened.name)

    @property
    def verdicts(self) -> list[str]:
        """What the figures say, sentence by sentence."""
        return list(self.shown.sentences(self.result))

    def markdown(self) -> str:
        """All tables and sentences as a page."""
        return str(self.shown.as_markdown(self.result))


class Comparison(Verdicts):
    """How methods stand to each other: trained and tested under one recipe."""

    shown: ClassVar[ModuleType] = compare_rendering

    def __repr__(self) -> str:
        names = ", ".join(f"{line['name']} {line['score']:.3f}" for line in self.result["methods"])
        return f"Comparison({names}; {near(self.folder)})"

    def table(self) -> pa.Table:
        """A line for each method: score, difference to uniform with its interval, cost, overlap, verdict."""
        columns = compare_rendering.COLUMNS
        return pa.Table.from_pylist([{name: line[name] for name in columns} for line in self.result["methods"]])


class Check(Verdicts):
    """Whether the order of a run's scores says how much its rows teach."""

    shown: ClassVar[ModuleType] = check_rendering

    def __repr__(self) -> str:
        return f"Check({self.verdicts[0]} {near(self.folder)})"

    @property
    def correlations(self) -> dict[str, float | None]:
        """Rank correlation of score and loss, by state; 1 where rows that score higher teach more."""
        orders = {state: one["loss"]["order"] for state, one in self.result["states"].items()}
        return {state: order and order["correlation"] for state, order in orders.items()}

    def table(self) -> pa.Table:
        """A line for the base model (bin 0) and for each bin: bounds of the scores, and the mean of each measurement."""
        return pa.Table.from_pylist(check_rendering.bin_lines(self.result))


def _lines(table: pa.Table) -> list[list[Any]]:
    return [list(line.values()) for line in table.to_pylist()]
