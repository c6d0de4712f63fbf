"""What a selection leaves: rows in rank order, own columns, a summary that adds up, budgets that are kept."""

import json

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raysift
from raysift.jobs import stages
from raysift.jobs.commands.console import Console
from raysift.jobs.recipes import make_selector
from raysift.jobs.runs.run import Run, StageResult, open_run
from raysift.jobs.runs.selection import rows_in_order
from raysift.jobs.runs.tables import read_chunks
from raysift.nano.world import generate_pool
from raysift.records import ROWS
from raysift.settings.config import make_config
from raysift.storage import open_location


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    path = tmp_path_factory.mktemp("pool") / "pool.jsonl"
    path.write_bytes(b"\n".join(orjson.dumps(row) for row in generate_pool(400, 3)))
    return path


@pytest.fixture(scope="module")
def selection(ray_local, pool, tmp_path_factory):
    run = str(tmp_path_factory.mktemp("runs") / "longest")
    return raysift.longest(str(pool), budget="10%", run=run, output_format="original")


@pytest.mark.ray
def test_rows_ranks_and_scores_go_together(selection):
    table = selection.table()
    rows = pa.concat_tables(pq.read_table(place.path) for place in selection.files())
    assert rows["id"].to_pylist() == table["id"].to_pylist() == selection.ids
    assert table["rank"].to_pylist() == list(range(1, len(selection) + 1))
    scores, ids = table["score"].to_pylist(), table["id"].to_pylist()
    assert sorted(zip(scores, ids, strict=True), key=lambda pair: (-pair[0], pair[1])) == list(
        zip(scores, ids, strict=True)
    )
    assert table["score"].to_pylist() == table["n_response_tokens"].to_pylist()
    assert table["source"].to_pylist() == rows["source"].to_pylist()


@pytest.mark.ray
def test_the_export_gives_original_lines_back_byte_for_byte(selection, pool):
    (written,) = (p for p in selection.run.files(selection.manifest, "selected") if p.name.endswith(".jsonl"))
    originals = set(pool.read_bytes().splitlines())
    lines = written.read_bytes().splitlines()
    assert len(lines) == len(selection)
    assert set(lines) <= originals


@pytest.mark.ray
def test_the_summary_by_source_adds_up(selection):
    counts = selection.by_source
    assert sum(line["selected"] for line in counts.values()) == len(selection)
    assert sum(line["pool"] for line in counts.values()) == selection.manifest.counts["rows_in"]
    line = counts["curated"]
    share = (line["selected"] / len(selection)) / (line["pool"] / selection.manifest.counts["rows_in"])
    assert line["lift"] == pytest.approx(share, abs=1e-3)


@pytest.mark.ray
def test_a_token_budget_is_kept_and_used(ray_local, pool, tmp_path):
    chosen = raysift.uniform(str(pool), budget="1500tok", run=str(tmp_path / "r"))
    run = open_run(str(tmp_path / "r"))
    lengths = next(m for m in run.manifests() if m.stage == "lengths")
    tokens = {
        row["id"]: row["n_tokens"] for chunk in read_chunks(run.files(lengths, "answers"), ["id", "n_tokens"])
        for row in chunk.to_pylist()
    }  # fmt: skip
    scores = pq.read_table(tmp_path / "r/scores.parquet").sort_by([("score", "descending"), ("id", "ascending")])
    order = scores["id"].to_pylist()
    assert selection_is_a_prefix(chosen.ids, order)
    spent = sum(tokens[i] for i in chosen.ids)
    assert spent <= 1500 < spent + tokens[order[len(chosen)]]


@pytest.mark.ray
def test_a_budget_that_scored_rows_do_not_fill_is_said(selection, tmp_path, capsys):
    """Of 400 rows 5 have a score, and 8 are asked."""
    run = Run(str(tmp_path), Console("plain"))
    rows, selector = selection.run.manifest("ingest"), make_selector(make_config({"method": "uniform"}))

    def score(folder):
        ids = pa.concat_tables(read_chunks(run.files(rows, "rows"), ["id"]))["id"]
        table = pa.table({"id": ids, "score": pa.array([1.0] * 5 + [None] * (len(ids) - 5), pa.float64())})
        pq.write_table(table, (folder / "scores.parquet").path)
        return StageResult({"scores": ["scores.parquet"]}, {"kept": 5, "failed": len(ids) - 5})

    scores = run.stage("score", {}, {}, score)
    chosen = stages.choose(run, make_config({"budget": "8"}), selector, rows, scores, None)
    assert (chosen.counts["asked"], chosen.counts["kept"]) == (8, 5)
    kept = rows.counts["kept"]
    assert f"choose: 8 rows asked, 5 chosen: {kept - 5} of {kept} rows have no score" in capsys.readouterr().err


def selection_is_a_prefix(ids, order):
    return ids == order[: len(ids)]


@pytest.mark.parametrize("rows_a_pass", [1, 7, 100, 10_000])
def test_rows_come_in_the_order_asked_for_however_many_passes_it_takes(tmp_path, monkeypatch, rows_a_pass):
    monkeypatch.setattr("raysift.jobs.runs.selection.ROWS_A_PASS", rows_a_pass)
    ids = np.random.default_rng(0).permutation(300).astype(np.int64)
    files = []
    for number, part in enumerate(np.array_split(ids, 3)):
        place = open_location(tmp_path / f"{number}.parquet")
        rows = [
            {"id": int(i), "source": "s", "messages": [{"role": "user", "content": str(i)}], "meta": None, "raw": None}
            for i in part
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=ROWS), place.path)
        files.append(place)
    wanted = np.random.default_rng(1).permutation(300)[:100].astype(np.int64)
    found = pa.concat_tables(rows_in_order(files, wanted))
    assert found["id"].to_pylist() == wanted.tolist()
    assert [m[0]["content"] for m in found["messages"].to_pylist()] == [str(i) for i in wanted]


@pytest.mark.ray
def test_the_same_conversations_in_two_formats_give_the_same_selection(ray_local, pool, tmp_path):
    rows = [json.loads(line) for line in pool.read_bytes().splitlines()]
    pq.write_table(pa.table({"messages": [row["messages"] for row in rows]}), tmp_path / "pool.parquet")
    from_parquet = raysift.uniform(str(tmp_path / "pool.parquet"), seed=4)
    from_jsonl = raysift.uniform(str(pool), seed=4)
    assert from_parquet.ids == from_jsonl.ids
