"""Ingest on Ray: counts that add up, one result for any number of workers and after any interruption."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysift.errors import ConfigError, DataError, StaleRunError
from raysift.jobs.pool import ingest as ingest_module
from raysift.jobs.pool.ingest import ingest_dataset, ingest_pool, list_pool, read_report
from raysift.pool.checks import IngestConfig
from raysift.pool.dedup import bucket_bounds, find_losers, write_ids
from raysift.pool.longest import most_tokens
from raysift.records import KEPT_ROWS, REJECTED
from raysift.settings.resources import Resources
from raysift.storage import open_location

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]


def _record(number, answer=None):
    return {"instruction": f"question {number}", "input": "", "output": answer or f"answer {number}", "n": number}


def _write_lines(path, records):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return str(path)


def _pool(tmp_path):
    """Three files with 300 rows, 40 duplicates within and across them, and a few bad records."""
    draw = random.Random(0)
    rows = [_record(number) for number in range(260)] + [_record(draw.randrange(260)) for _ in range(40)]
    draw.shuffle(rows)
    rows[5:5] = ["{broken", {"instruction": 1, "output": "x"}, _record(999, " ")]
    return [
        _write_lines(tmp_path / "a.jsonl", rows[:150]),
        _write_lines(tmp_path / "b.jsonl", rows[150:250]),
        _write_lines(tmp_path / "c.jsonl", rows[250:]),
    ]


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(ingest_module, "chunk_bytes_for", lambda total: 4000)


def _rows(out, report):
    return pa.concat_tables([pq.read_table(out / name) for name in report.files] or [KEPT_ROWS.empty_table()])


def _rejected(out, report):
    tables = [pq.read_table(out / name) for name in report.rejected_files]
    return pa.concat_tables(tables or [REJECTED.empty_table()]).to_pylist()


def _run(tmp_path, sources, name="out", workers=None, **config):
    out = tmp_path / name
    return out, ingest_pool(sources, open_location(out), IngestConfig(**config), Resources(workers=workers))


def test_every_row_is_kept_or_stored_with_its_place_and_reason(tmp_path, small_chunks):
    out, report = _run(tmp_path, _pool(tmp_path))
    assert (report.rows_in, report.kept, report.failed, report.duplicates) == (303, 260, 2, 40)
    assert report.rejected == {"duplicate": 40, "empty_response": 1} and report.failures == {
        "not_json": 1,
        "wrong_type": 1,
    }
    rows, rejected = _rows(out, report), _rejected(out, report)
    assert rows.schema.equals(KEPT_ROWS) and len(set(rows["id"].to_pylist())) == len(rows) == report.kept
    assert sum(report.by_source.values()) == report.kept and len(rejected) == 43
    assert report.most_tokens == most_tokens(rows["messages"]) > 0
    # Each place names a line that holds what was rejected there.
    for entry in rejected:
        assert entry["raw"] == Path(entry["file"]).read_text().splitlines()[entry["position"] - 1]
    for entry in rows.to_pylist():
        assert entry["raw"] == Path(entry["file"]).read_text().splitlines()[entry["position"] - 1]
    kept_ids = set(rows["id"].to_pylist())
    assert all(entry["id"] in kept_ids for entry in rejected if entry["reason"] == "duplicate")


def test_the_first_of_equal_rows_stays_and_the_later_ones_name_it(tmp_path):
    first = _write_lines(tmp_path / "b.jsonl", [_record(1), _record(2)])
    second = _write_lines(tmp_path / "a.jsonl", [_record(3), _record(2), _record(2)])
    out, report = _run(tmp_path, [first, second])
    assert [row["source"] for row in _rows(out, report).to_pylist()] == ["b", "b", "a"]
    assert [(e["position"], e["message"]) for e in _rejected(out, report)] == [
        (2, f"the same conversation as {first}, line 2"), (3, f"the same conversation as {first}, line 2"),
    ]  # fmt: skip


def test_any_number_of_workers_gives_the_same_shards(tmp_path, small_chunks):
    sources = _pool(tmp_path)
    found = []
    for workers in (1, 2, 7):
        out, report = _run(tmp_path, sources, f"out{workers}", workers)
        found.append((report, [(out / name).read_bytes() for name in (*report.files, *report.rejected_files)]))
    assert len(found[0][1]) > 10 and found[0] == found[1] == found[2]


def test_any_cut_into_chunks_gives_the_same_rows(tmp_path, monkeypatch):
    sources = _pool(tmp_path)
    found = []
    for size in (500, 3000, 10**6):
        monkeypatch.setattr(ingest_module, "chunk_bytes_for", lambda total, size=size: size)
        out, report = _run(tmp_path, sources, f"out{size}")
        places = sorted((e["file"], e["position"], e["reason"], e["message"] or "") for e in _rejected(out, report))
        found.append((_rows(out, report).to_pylist(), places, report.rejected, report.by_source))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("stage", ["read_part", "find_twins", "finish_shard"])
def test_an_interrupted_ingest_continues_to_the_same_bytes(tmp_path, small_chunks, monkeypatch, stage):
    monkeypatch.setattr("raysift.pool.dedup.BUCKET_ROWS", 100)
    sources = _pool(tmp_path)
    whole, report = _run(tmp_path, sources, "whole")
    calls = []
    real = ingest_module.run_tasks

    def stops_halfway(work, tasks, *arguments):
        for done, answer in enumerate(real(work, tasks, *arguments)):
            calls.append(work.__name__)
            yield answer
            if work.__name__ == stage and done >= len(tasks) // 2:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ingest_module, "run_tasks", stops_halfway)
        with pytest.raises(KeyboardInterrupt):
            _run(tmp_path, sources, "cut")
    assert stage in calls and not (tmp_path / "cut" / "ingest.json").exists()
    cut, again = _run(tmp_path, sources, "cut")
    assert again == report
    for name in (*report.files, *report.rejected_files):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    assert not (cut / "work").exists()


@pytest.mark.parametrize("lost", ["rows", "ids", "problems", "part", "parquet"])
def test_a_file_that_a_loss_of_power_has_cut_off_is_written_again(tmp_path, small_chunks, monkeypatch, lost):
    """A node that loses its power keeps the last names in a folder, and of what they name perhaps the half."""
    sources = _pool(tmp_path)
    whole, report = _run(tmp_path, sources, "whole")
    real = ingest_module.run_tasks

    def stops(work, tasks, *arguments):
        """Before the first shard is finished, or after the last: tasks that run side by side end in any order."""
        last = work.__name__ == "finish_shard"
        if not last or lost == "parquet":
            yield from real(work, tasks, *arguments)
        if last:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ingest_module, "run_tasks", stops)
        with pytest.raises(KeyboardInterrupt):
            _run(tmp_path, sources, "cut")
    work = tmp_path / "cut/work"
    kinds = {"rows": "rows-*.arrow", "ids": "ids-*.bin", "problems": "problems-*.arrow", "part": "part-*.json"}
    files = sorted((tmp_path / "cut/rows").glob("*.parquet") if lost == "parquet" else work.glob(kinds[lost]))
    for file in files:
        file.write_bytes(file.read_bytes()[: 0 if lost == "part" else file.stat().st_size // 2])
    assert files
    cut, again = _run(tmp_path, sources, "cut")
    assert again == report
    for name in (*report.files, *report.rejected_files):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def test_a_finished_ingest_is_not_repeated_and_other_settings_are_refused(tmp_path):
    source = _write_lines(tmp_path / "a.jsonl", [_record(1), _record(2)])
    out, report = _run(tmp_path, [source])
    shard = out / report.files[0]
    before = shard.stat().st_mtime_ns
    assert _run(tmp_path, [source])[1] == report == read_report(open_location(out))
    assert shard.stat().st_mtime_ns == before
    with pytest.raises(StaleRunError, match=r"config\.max_chars: 200000 -> 10"):
        _run(tmp_path, [source], max_chars=10)
    _write_lines(tmp_path / "a.jsonl", [_record(1), _record(3)])
    report = _run(tmp_path, [source])[1]
    assert [json.loads(row["meta"])["n"] for row in _rows(out, report).to_pylist()] == [1, 3], (
        "a rewritten file is read anew"
    )


def _with_a_bad_file(tmp_path):
    good = _write_lines(tmp_path / "good.jsonl", [_record(1), _record(2)])
    bad = tmp_path / "bad.json"
    bad.write_text("[\n" + ",\n".join(json.dumps(_record(n)) for n in range(200)) + ",\n{oops}\n]")
    return good, str(bad)


def test_a_malformed_file_stops_the_run_and_is_named(tmp_path, small_chunks):
    with pytest.raises(DataError, match=r"bad\.json, line 202: "):
        _run(tmp_path, _with_a_bad_file(tmp_path))


def test_a_malformed_file_is_set_aside_whole_on_request(tmp_path, small_chunks):
    good, bad = _with_a_bad_file(tmp_path)
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(b"PAR1 and nothing else")
    out, report = _run(tmp_path, [good, bad, str(torn)], on_bad_file="quarantine")
    assert (report.rows_in, report.kept) == (2, 2)
    assert set(report.bad_files) == {bad, str(torn)}
    assert "line 202" in report.bad_files[bad] and "cannot be read as parquet" in report.bad_files[str(torn)]
    assert {row["source"] for row in _rows(out, report).to_pylist()} == {"good"}


def test_a_file_that_is_mostly_not_understood_counts_as_bad(tmp_path):
    source = _write_lines(tmp_path / "a.jsonl", [_record(1), "{", "{", "{"])
    with pytest.raises(DataError, match=r"3 of 4 records cannot be understood \(not_json 3\)"):
        _run(tmp_path, [source])
    _, report = _run(tmp_path, [source], "other", max_failed_share=1)
    assert (report.kept, report.failed) == (1, 3)


@pytest.mark.parametrize(
    ("records", "said"),
    [([], "holds no records"), ([_record(1, " ")], r"no row is left of 1 \(empty_response 1\)")],
)
def test_an_empty_pool_is_an_error(tmp_path, records, said):
    source = _write_lines(tmp_path / "a.jsonl", records)
    for _ in range(2):
        with pytest.raises(DataError, match=said):
            _run(tmp_path, [source])


def test_an_empty_file_among_others_is_named_in_the_report(tmp_path):
    sources = [_write_lines(tmp_path / "a.jsonl", []), _write_lines(tmp_path / "b.jsonl", [_record(1)])]
    report = _run(tmp_path, sources)[1]
    assert report.kept == 1 and report.empty_files == sources[:1]


def test_missing_files_and_unknown_columns_are_told_before_reading(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        list_pool([str(tmp_path / "no.jsonl")], IngestConfig())
    source = _write_lines(tmp_path / "a.jsonl", [_record(1)])
    with pytest.raises(ConfigError, match="format 'x' is unknown"):
        list_pool([source], IngestConfig(format="x"))
    with pytest.raises(ConfigError, match=r"no column 'nope'.*found: input, instruction, n, output"):
        _run(tmp_path, [source], columns={"instruction": "nope"})


def test_a_dataset_gives_the_rows_of_its_records(tmp_path):
    import ray

    records = [_record(number % 90) for number in range(100)]
    dataset = ray.data.from_items(records, override_num_blocks=7)
    out = tmp_path / "from_dataset"
    report = ingest_dataset(dataset, open_location(out), IngestConfig(source="mine"))
    source = _write_lines(tmp_path / "a.jsonl", records)
    other, expected = _run(tmp_path, [source], source="mine")
    assert (report.kept, report.rejected) == (expected.kept, expected.rejected) == (90, {"duplicate": 10})
    columns = ["id", "source", "messages"]
    assert _rows(out, report).select(columns).equals(_rows(other, expected).select(columns))
    assert not (out / "input").exists()
    assert ingest_dataset(dataset, open_location(out), IngestConfig(source="mine")) == report


def test_an_object_store_is_read_and_written_like_a_disk(tmp_path, shared_data):
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        options = f"?endpoint_override=127.0.0.1%3A{server._server.server_port}&scheme=http&allow_bucket_creation=true"
        bucket = open_location(f"s3://pool{options}")
        bucket.make_folder()
        for name in ("same2k_alpaca.json", "same2k_messages.jsonl", "same2k_messages.parquet"):
            (bucket / name).write((shared_data / "formats" / name).read_bytes())
        out = open_location(f"s3://pool/runs/out{options}")
        with pytest.raises(ConfigError, match="holds a password"):
            ingest_pool([f"s3://key:secret@pool/same2k_*{options}"], out)
        report = ingest_pool([f"s3://pool/same2k_*{options}"], out)
        assert (report.kept, report.duplicates) == (2000, 4000)
        assert min(report.layouts) == "s3://pool/same2k_alpaca.json"
        assert len(pq.read_table(f"{out.path}/{report.files[0]}", filesystem=out.fs)) == 2000
        assert not (out / "work").files()
    finally:
        server.stop()


def test_losers_agree_with_a_set_for_any_shards_and_buckets(tmp_path):
    import numpy as np

    draw = np.random.default_rng(0)
    shards = [draw.integers(-(2**63), 2**63 - 1, 50)[draw.integers(0, 50, size)] for size in (60, 0, 1, 200)]
    shards.append(shards[0].copy())
    files = []
    for number, ids in enumerate(shards):
        files.append(open_location(tmp_path / f"{number}.bin"))
        write_ids(files[-1], ids, np.arange(len(ids)) * 10)
    seen, expected = {}, set()
    for shard, ids in enumerate(shards):
        for row, value in enumerate(ids.tolist()):
            if value in seen:
                expected.add((shard, row, row * 10, *seen[value]))
            else:
                seen[value] = (shard, row * 10)
    for rows in (1, 3_000_000, 10**12):
        found = set()
        for bucket in bucket_bounds(rows):
            table, starts = find_losers(files, bucket)
            for shard in range(len(files)):
                found |= {(shard, *line) for line in table[starts[shard] : starts[shard + 1]].tolist()}
        assert found == expected


def test_formats_of_the_same_rows_collapse_to_one_set(shared_data, tmp_path):
    _, report = _run(tmp_path, [str(shared_data / "formats" / "same2k_*")])
    assert (report.rows_in, report.kept, report.duplicates) == (14000, 2000, 12000)
    assert len(set(report.layouts.values())) == 4 and report.by_source == {"same2k_alpaca": 2000}


def test_the_public_pool_is_accounted_for(shared_data, tmp_path):
    _, report = _run(tmp_path, [str(shared_data / "pool" / "pool_public_smoke5k.parquet")])
    assert report.rows_in == 5060 and len(report.by_source) == 23
    assert report.kept + sum(report.rejected.values()) == 5060
