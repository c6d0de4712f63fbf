"""What a selection leaves: rows in rank order, own columns, a summary that adds up, budgets that are kept."""

import json

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raysift
from raysift.config import make_config, make_selector
from raysift.errors import ConfigError, StageError
from raysift.jobs import stages
from raysift.jobs.runs.chosen_rows import row_bytes, rows_in_order, write_rows
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import Run, StageResult, open_run
from raysift.jobs.runs.selection import publish_selection
from raysift.jobs.runs.tables import read_chunks
from raysift.nano.world import generate_pool
from raysift.records import ROWS
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
    (written,) = (p for p in selection.run.opened.files(selection.manifest, "selected") if p.name.endswith(".jsonl"))
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
    rows, selector = selection.run.opened.manifest("ingest"), make_selector(make_config({"method": "uniform"}))

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


def numbered_rows(folder, count, files=3, texts=str):
    """Files of rows in no order, and their ids; the text of each row is `texts(id)`."""
    ids = np.random.default_rng(0).permutation(count).astype(np.int64)
    places = []
    for number, part in enumerate(np.array_split(ids, files)):
        place = open_location(folder / f"{number}.parquet")
        rows = [
            {"id": i, "source": "s", "messages": [{"role": "user", "content": texts(i)}], "meta": None, "raw": None}
            for i in part.tolist()
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=ROWS), place.path, row_group_size=20)
        places.append(place)
    return places, ids


def parts_of(names, folder):
    return [pq.read_table(folder / name) for name in names]


LIMITS = [(1, 10**9), (7, 10**9), (10_000, 10**9), (10_000, 1), (10_000, 40), (64, 200)]


@pytest.mark.parametrize(("rows", "size"), LIMITS)
def test_rows_come_in_the_order_asked_for_whatever_a_part_may_hold(tmp_path, monkeypatch, rows, size):
    """Texts of 1 to 99 bytes; a part holds one row at least, and more only within both limits."""
    monkeypatch.setattr("raysift.jobs.runs.chosen_rows.PART_ROWS", rows)
    monkeypatch.setattr("raysift.jobs.runs.chosen_rows.PART_BYTES", size)
    files, ids = numbered_rows(tmp_path, 300, texts=lambda i: "é" + "x" * (i % 98))
    wanted = np.random.default_rng(1).permutation(ids)[:100]
    parts = list(rows_in_order(files, wanted, ROWS.names, open_location(tmp_path / "work")))
    assert pa.concat_tables(parts)["id"].to_pylist() == wanted.tolist()
    assert not (tmp_path / "work").exists()
    (tmp_path / "out").mkdir()
    kept = parts_of(write_rows(files, wanted, open_location(tmp_path / "out")), tmp_path / "out")
    assert pa.concat_tables(kept)["id"].to_pylist() == [i for i in ids.tolist() if i in set(wanted.tolist())]
    for part in [*parts, *kept]:
        texts = [messages[0]["content"] for messages in part["messages"].to_pylist()]
        assert texts == ["é" + "x" * (i % 98) for i in part["id"].to_pylist()]
        assert len(part) == 1 or (len(part) <= rows and sum(len(text.encode()) for text in texts) <= size)
    assert len(kept) >= 100 / rows and len(parts) >= 100 / rows


def test_the_bytes_of_a_row_are_those_of_all_its_texts():
    rows = [
        {"id": 1, "source": "s", "messages": [], "meta": None, "raw": None},
        {"id": 2, "source": "s", "messages": [{"role": "user", "content": "é"}] * 3, "meta": "{}", "raw": "abc"},
        {"id": 3, "source": "s", "messages": [{"role": "user", "content": None}], "meta": None, "raw": "x"},
    ]
    table = pa.Table.from_pylist(rows, schema=ROWS)
    assert row_bytes(table).tolist() == [0, 11, 1]
    assert row_bytes(table.slice(1)).tolist() == [11, 1] and row_bytes(table.slice(0, 0)).tolist() == []
    assert row_bytes(pa.concat_tables([table, table.slice(2)])).tolist() == [0, 11, 1, 1]


@pytest.mark.parametrize("way", ["in order", "as they lie"])
def test_choosing_reads_the_pool_once_whatever_its_size(tmp_path, monkeypatch, way):
    """Half of 200, 400 and 800 rows, in parts of ten: row groups read grow as the pool does."""
    read = []
    decode = pq.ParquetFile.iter_batches

    def counting(file, *given, **named):
        read.append(file.metadata.num_row_groups)
        return decode(file, *given, **named)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counting)
    monkeypatch.setattr("raysift.jobs.runs.chosen_rows.PART_ROWS", 10)
    counts = []
    for size in (200, 400, 800):
        folder = tmp_path / str(size)
        folder.mkdir()
        files, ids = numbered_rows(folder, size, files=2)
        read.clear()
        if way == "in order":
            assert len(list(rows_in_order(files, ids[::2], ROWS.names, open_location(folder / "work")))) == size / 20
        else:
            write_rows(files, ids[::2], open_location(folder))
        counts.append(sum(read))
    assert counts == [10, 20, 40]


def test_columns_beside_come_with_their_rows_and_a_store_is_asked_for_each_file_once(tmp_path, slow_store, monkeypatch):
    """Rows and their scores, on a store; what is set aside on the way is read back in few requests, whatever its batches."""
    monkeypatch.setattr("raysift.jobs.runs.chosen_rows.PART_ROWS", 100)
    files, ids = numbered_rows(tmp_path, 400, files=5)
    remote = open_location(slow_store.uri("beside"))
    scores = []
    for number, part in enumerate(np.array_split(np.sort(ids), 30)):
        scores.append(remote / f"{number}.parquet")
        with scores[-1].open_output() as stream:
            pq.write_table(pa.table({"id": part, "score": part * 0.5, "said": part.astype(str)}), stream)
    slow_store.requests.clear()
    wanted = np.random.default_rng(1).permutation(ids)[:250]
    parts = list(rows_in_order(files, wanted, ["id", "messages"], remote / "work", scores, ["score", "said"]))
    table = pa.concat_tables(parts)
    assert [len(part) for part in parts] == [100, 100, 50] and table["id"].to_pylist() == wanted.tolist()
    assert table["score"].to_pylist() == [i * 0.5 for i in wanted.tolist()]
    assert table["said"].to_pylist() == list(map(str, wanted.tolist()))
    # 30 files of scores and 2 x 3 buckets: to look and to read; to write and, with the folder, to delete.
    assert (
        slow_store.count("GET", "HEAD") <= 2 * (30 + 6) + 12 and slow_store.count("PUT", "POST", "DELETE") <= 2 * 6 + 6
    )


def test_rows_that_are_not_there_or_there_twice_are_told(tmp_path):
    files, ids = numbered_rows(tmp_path, 30)
    work = open_location(tmp_path / "work")
    with pytest.raises(StageError, match="4 rows were chosen, 3 of them are in the files"):
        list(rows_in_order(files, np.array([1, 2, 99, 3]), ROWS.names, work))
    with pytest.raises(StageError, match="2 rows were chosen, 4 of them are in the files"):
        write_rows([*files, *files], ids[:2], open_location(tmp_path))


@pytest.mark.ray
def test_a_chosen_row_is_found_again_in_the_pool(selection, pool):
    lines = pool.read_bytes().splitlines()
    (written,) = (p for p in selection.run.opened.files(selection.manifest, "selected") if p.name.endswith(".jsonl"))
    table = selection.table()
    assert [lines[n - 1] for n in table["position"].to_pylist()] == written.read_bytes().splitlines()
    assert set(table["file"].to_pylist()) == {str(pool)}


def names_in(folder):
    return sorted(place.name for place in (folder / "selected").files())


@pytest.mark.ray
def test_the_export_lies_at_the_top_of_the_run_and_is_replaced_whole(selection):
    run, (data, *beside) = selection.run.opened, selection.run.opened.files(selection.manifest, "selected")
    assert names_in(run.folder) == sorted(["README.md", "dataset_info.json", data.name])
    for place in (data, *beside):
        assert (run.folder / "selected" / place.name).read_bytes() == place.read_bytes()
    (run.folder / "selected" / "longest-of-before.jsonl").write("{}")
    publish_selection(run, selection.manifest)
    assert names_in(run.folder) == sorted(["README.md", "dataset_info.json", data.name])


@pytest.mark.ray
@pytest.mark.parametrize("named", ["", "/", "/selection.parquet"])
def test_a_run_is_a_pool_of_what_it_selected(selection, named, tmp_path):
    pool = f"{selection.run.opened.folder.path}{named}"
    again = raysift.uniform(pool, budget="100%", run=str(tmp_path / "again"))
    assert set(again.ids) == set(selection.ids)
    texts = [pa.concat_tables(map(read_place, one.files())).sort_by("id")["raw"] for one in (again, selection)]
    assert texts[0].equals(texts[1])


def read_place(place):
    return pq.read_table(place.path)


@pytest.mark.ray
def test_a_run_without_a_selection_is_no_pool(ray_local, tmp_path):
    Run(str(tmp_path / "begun")).record("started", "ingest")
    with pytest.raises(ConfigError, match="begun' is a run without a finished selection"):
        raysift.uniform(str(tmp_path / "begun"), run=str(tmp_path / "new"))


@pytest.mark.ray
def test_the_same_conversations_in_two_formats_give_the_same_selection(ray_local, pool, tmp_path):
    rows = [json.loads(line) for line in pool.read_bytes().splitlines()]
    pq.write_table(pa.table({"messages": [row["messages"] for row in rows]}), tmp_path / "pool.parquet")
    from_parquet = raysift.uniform(str(tmp_path / "pool.parquet"), seed=4)
    from_jsonl = raysift.uniform(str(pool), seed=4)
    assert from_parquet.ids == from_jsonl.ids
