"""Everything that the sections of a report share: the run's manifests and settings, its scores, rows and selection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysift.config import CommonConfig
from raysift.errors import RaysiftError
from raysift.jobs.gradients.null import FoundNull, found_null
from raysift.jobs.report.asked import questions_of
from raysift.jobs.report.features import Looked, read_rows
from raysift.jobs.report.scored import SAMPLED, Scored, failed_lines, read_scored
from raysift.jobs.runs.reuse import read_events
from raysift.jobs.runs.run import Run
from raysift.manifest import Manifest
from raysift.records import ERROR, ID, MESSAGES, RANK, SCORE
from raysift.report.twins import text_keys, twins_of
from raysift.scoring.columns import TRUNCATED
from raysift.store.gradient_store import CUT

TOP, JUST_IN, RANDOM, BY_REASON, BY_ALERT = 60, 40, 100, 8, 20
TWIN_ROWS = 50_000
"""Rows of a selection that are searched for twins, the first by rank."""


@dataclass
class Gathered:
    """A run, read once; every section takes what it needs."""

    run: Run
    with_text: bool = True
    manifests: list[Manifest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.manifests = self.run.manifests()

    def stage(self, *names: str) -> Manifest | None:
        """The first of these stages that is finished."""
        return next((found for name in names for found in self.manifests if found.stage == name), None)

    @cached_property
    def made_with(self) -> dict[str, Any]:
        """The settings of `run.yaml`; none where there is no such file."""
        return self.run.made_with() or {}

    @cached_property
    def config(self) -> CommonConfig | None:
        """The checked settings; None where this version does not know them any more."""
        try:
            return self.run.config() if self.made_with else None
        except RaysiftError:
            return None

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """What happened, in its order."""
        return read_events(self.run.folder)

    @property
    def ingest(self) -> Manifest | None:
        return self.stage("ingest")

    @property
    def choose(self) -> Manifest | None:
        return self.stage("choose")

    @cached_property
    def pool_rows(self) -> int:
        """Rows that ingest kept."""
        return int(self.ingest.counts["kept"]) if self.ingest else 0

    @cached_property
    def scores(self) -> Manifest | None:
        """The stage that wrote the table of scores."""
        return next((found for found in self.manifests if found.files.get("scores")), None)

    @cached_property
    def selection(self) -> pa.Table:
        """Id, rank and score of the selected rows, by rank."""
        if self.choose is None:
            return pa.table(
                {ID: pa.array([], pa.int64()), RANK: pa.array([], pa.int64()), SCORE: pa.array([], pa.float64())}
            )
        place = self.run.files(self.choose, "selection")[0]
        return pq.read_table(place.path, filesystem=place.fs, columns=[ID, RANK, SCORE])

    @cached_property
    def ids(self) -> np.ndarray:
        """Ids of the selected rows, by rank."""
        return np.asarray(self.selection[ID].to_numpy(), np.int64)

    @cached_property
    def scored(self) -> Scored | None:
        """What the table of scores holds."""
        if self.scores is None:
            return None
        values = self.selection[SCORE].to_numpy().astype(np.float64)
        return read_scored(self.run.files(self.scores, "scores"), self.ids, values, sampled=SAMPLED)

    @cached_property
    def null(self) -> FoundNull | None:
        """What the run tells of noise."""
        return found_null(self.run)

    @cached_property
    def failures(self) -> dict[str, list[dict[str, Any]]]:
        """A few failed rows of each stage, with their errors."""
        return self._lines("failed", ERROR)

    @cached_property
    def cut_rows(self) -> dict[str, list[dict[str, Any]]]:
        """A few rows of each stage that read only their beginning."""
        return self._lines("truncated", TRUNCATED, CUT)

    def _lines(self, count: str, *columns: str) -> dict[str, list[dict[str, Any]]]:
        found = {}
        for manifest in self.manifests:
            if manifest.counts.get(count) and manifest.files.get("answers"):
                files = self.run.files(manifest, "answers")
                found[manifest.stage] = [dict(line) for one in columns for line in failed_lines(files, one, BY_REASON)]
        return {stage: lines for stage, lines in found.items() if lines}

    @cached_property
    def picked(self) -> Looked:
        """Figures of the selected rows."""
        if self.choose is None:
            return Looked()
        files = self.run.files(self.choose, "rows")
        return read_rows(files, len(self.ids), sampled=SAMPLED, questions=self.questions)

    @cached_property
    def questions(self) -> dict[str, pa.Array]:
        """What target and test set ask."""
        return questions_of(self.config)

    @cached_property
    def pool(self) -> Looked:
        """Figures of the pool's rows, and the rows that are shown."""
        if self.ingest is None:
            return Looked()
        wanted = np.array(sorted(self.chips), np.int64)
        files = self.run.files(self.ingest, "rows")
        found = read_rows(files, self.pool_rows, wanted, RANDOM, SAMPLED, self.questions)
        for row_id in found.random:
            self.chips.setdefault(row_id, []).append("random")
        return found

    @cached_property
    def chips(self) -> dict[int, list[str]]:
        """The rows that are shown, by id, and why each is; those drawn at random join when the pool is read."""
        found: dict[int, list[str]] = {}

        def add(chip: str, ids: Sequence[int]) -> None:
            for row_id in ids:
                if chip not in found.setdefault(row_id, []):
                    found[row_id].append(chip)

        add("top", self.ids[:TOP].tolist())
        add("just in", self.ids[-JUST_IN:].tolist() if len(self.ids) > JUST_IN else [])
        for chip, lines in (self.scored.notable if self.scored else {}).items():
            add(chip, [line[ID] for line in lines])
        for stage, lines in self.failures.items():
            add(f"failed: {stage}", [line[ID] for line in lines])
        for stage, lines in self.cut_rows.items():
            add(f"cut: {stage}", [line[ID] for line in lines])
        for name, asked in self.picked.asked.items():
            add(f"asked in the {name}", asked.ids[:BY_ALERT])
        for chip, twins in (("same text", self.twins), ("same question", self.same_questions)):
            add(chip, [row_id for pair in list(twins.items())[: BY_ALERT // 2] for row_id in pair])
        return found

    @cached_property
    def _keys(self) -> tuple[list[bytes | None], list[bytes | None], list[int]]:
        """Keys of the first selected rows: of their whole texts, and of what they ask; and their ids."""
        whole: list[bytes | None] = []
        asked: list[bytes | None] = []
        if self.choose is None:
            return whole, asked, []
        from raysift.jobs.runs.tables import read_chunks

        for chunk in read_chunks(self.run.files(self.choose, "rows"), [ID, MESSAGES]):
            rows = chunk.slice(0, TWIN_ROWS - len(whole))
            messages = rows[MESSAGES].to_pylist()
            whole += text_keys(pa.array(["\n".join(m["content"] for m in one) for one in messages], pa.string()))
            before = ["\n".join(m["content"] for m in one[:-1] if m["role"] != "system") for one in messages]
            asked += text_keys(pa.array(before, pa.string()))
            if len(whole) >= TWIN_ROWS:
                break
        return whole, asked, self.ids[: len(whole)].tolist()

    @cached_property
    def twins(self) -> dict[int, int]:
        """Selected rows that say the same as one selected before them, and that one."""
        whole, _, ids = self._keys
        return twins_of(whole, ids)

    @cached_property
    def same_questions(self) -> dict[int, int]:
        """Selected rows that ask the same as one selected before them, and answer otherwise."""
        _, asked, ids = self._keys
        return {row_id: first for row_id, first in twins_of(asked, ids).items() if row_id not in self.twins}

    @property
    def searched(self) -> int:
        """Selected rows that were searched for twins."""
        return len(self._keys[2])
