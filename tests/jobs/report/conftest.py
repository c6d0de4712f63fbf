"""A run of a method that judges rows by numbers, as its stages leave it, made without Ray."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysift.config import make_config, make_selector, replayed
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import Run, StageResult
from raysift.jobs.runs.selection import publish_selection, write_selection
from raysift.methods.choose import choose_top
from raysift.pool.row_ids import row_id
from raysift.records import KEPT_ROWS, REJECTED, Message
from raysift.settings.budget import parse_budget

from .chromium import BROWSER, DRIVER, FLAGS, Browser

WORDS = ["silver", "rocket", "window", "garden", "letter", "winter", "bridge", "candle", "forest", "mirror"]


@dataclass
class Pool:
    """Rows, their scores (None: failed) and what was rejected."""

    talks: list[list[dict[str, str]]]
    scores: list[float | None]
    sources: list[str]
    metas: list[str | None] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ids(self) -> np.ndarray:
        return np.array([row_id(Message(**turn) for turn in talk) for talk in self.talks], np.int64)


def talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def pool_of(count: int, scores: Sequence[float | None] | None = None) -> Pool:
    """Different questions, answers of about one length, three sources, a skill in the meta, two rejected rows."""
    words = [[WORDS[(number // 10**place) % 10] for place in range(4)] for number in range(count)]
    return Pool(
        talks=[talk(f"What do you know of the {' '.join(w)}?", f"All about the {' '.join(w[::-1])}.") for w in words],
        scores=list(scores) if scores is not None else [float(number * 7919 % count) for number in range(count)],
        sources=[("web", "book", "forum")[number % 3] for number in range(count)],
        metas=[
            json.dumps({"skill": "add" if number % 2 else "sort", "id": f"own-{number}"}) for number in range(count)
        ],
        rejected=[
            {"id": None, "source": "web", "reason": "not_json", "message": "found a stray brace", "raw": "{oh"},
            {"id": 5, "source": "web", "reason": "duplicate", "message": "the same as p.jsonl, 1", "raw": '{"a": 1}'},
        ],
    )


@pytest.fixture
def make_run() -> Callable[..., Run]:
    return made_run


def made_run(
    folder: Any, pool: Pool, method: str = "quality", budget: str = "10", until: str = "choose", **settings: Any
) -> Run:
    """The run after ingest, score and choose, or the first of them."""
    config = make_config({"method": method, "pool": ["p.jsonl"], "budget": budget, "run": str(folder), **settings})
    run, selector, ids = Run(folder, Console("quiet")), make_selector(config), pool.ids
    count, failures = len(ids), sum(line["reason"] == "not_json" for line in pool.rejected)
    rejected = [line | {"file": "p.jsonl", "position": 900 + n} for n, line in enumerate(pool.rejected)]

    def ingest(place: Any) -> StageResult:
        table = pa.table(
            {
                "id": ids,
                "source": pool.sources,
                "messages": pool.talks,
                "meta": pool.metas or [None] * count,
                "raw": [None] * count,
                "file": ["p.jsonl"] * count,
                "position": np.arange(1, count + 1),
            },
            schema=KEPT_ROWS,
        )
        with (place / "rows.parquet").open_output() as stream:
            pq.write_table(table, stream, row_group_size=1000)
        with (place / "rejected.parquet").open_output() as stream:
            pq.write_table(pa.Table.from_pylist(rejected, schema=REJECTED), stream)
        by_source = {name: pool.sources.count(name) for name in sorted({*pool.sources})}
        counts = {"rows_in": count + len(rejected), "kept": count, "failed": failures, "bad_files": []}
        counts["rejected"] = {"duplicate": len(rejected) - failures} if len(rejected) > failures else {}
        files = {"rows": ["rows.parquet"], "rejected": ["rejected.parquet"]}
        return StageResult(files=files, counts=counts, values={"by_source": by_source})

    def score(place: Any) -> StageResult:
        schema = selector.score_schema()
        empty = {name: pa.nulls(count, schema.field(name).type) for name in schema.names[2:]}
        table = pa.table({"id": ids, "score": pa.array(pool.scores, pa.float64()), **empty}, schema=schema)
        with (place / "scores.parquet").open_output() as stream:
            pq.write_table(table, stream, row_group_size=1000)
        errors = ["the scorer is ill" if value is None else None for value in pool.scores]
        with (place / "answers.parquet").open_output() as stream:
            pq.write_table(pa.table({"id": ids, "error": pa.array(errors, pa.string())}), stream)
        failed = count - len([value for value in pool.scores if value is not None])
        counts = {"rows_in": count, "kept": count - failed, "failed": failed}
        return StageResult(files={"scores": ["scores.parquet"], "answers": ["answers.parquet"]}, counts=counts)

    def choose(place: Any) -> StageResult:
        wanted = parse_budget(config.budget)
        files = run.files(scored, "scores")
        table = pa.table({"id": ids, "score": pa.array(pool.scores, pa.float64())})
        best, values = choose_top([table], wanted, count)
        result = write_selection(run, config, selector, rows, files, best, values, place)
        return StageResult(result.files, {**result.counts, "asked": wanted.rows_of(count)}, result.values)

    with run.replayable(replayed(config)):
        rows = run.stage("ingest", {}, {"pool": [["p.jsonl", "c0ffee" * 8]]}, ingest)
        if until == "ingest":
            return run
        scored = run.stage("score", {}, {"rows": rows.fingerprint}, score)
        if until == "score":
            return run
        publish_selection(run, run.stage("choose", {}, {"scores": scored.fingerprint}, choose))
    return run


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield Browser(driver)
    driver.quit()
