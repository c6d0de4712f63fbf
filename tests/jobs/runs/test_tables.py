"""Tables of many files: read many at once, in their order, in bounded memory, each once."""

import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from slow_store import CUT

from raysift.errors import StageError, find_cause
from raysift.jobs.runs import tables
from raysift.jobs.runs.tables import Tally, count_answers, publish, read_chunks, sum_tokens, with_tokens
from raysift.records import ERROR, ID, SCORE, TOKENS
from raysift.storage import in_parallel, open_location


def write_answers(folder, count, files, failed=()):
    """Answers to rows 0 to count - 1 in no order, `cut` in every third."""
    parts = np.array_split(np.random.default_rng(0).permutation(count), files)
    for number, ids in enumerate(parts):
        table = {
            ID: pa.array(ids, pa.int64()),
            TOKENS: pa.array([None if i in failed else i % 50 for i in ids.tolist()], pa.int64()),
            "cut": ids % 3 == 0,
            ERROR: pa.array(["no words" if i in failed else None for i in ids.tolist()], pa.string()),
        }
        with (folder / f"{number:04d}.parquet").open_output() as stream:
            pq.write_table(pa.table(table), stream, row_group_size=7)
    return folder.files(".parquet"), np.concatenate(parts)


def test_results_come_in_order_a_bounded_number_ahead_and_the_first_error_ends_it():
    begun, most, first = [], [0], threading.Event()

    def work(number):
        begun.append(number)
        most[0] = max(most[0], len(begun) - taken[0])
        if number == 0:
            first.wait(10)
        if number == 50:
            raise ValueError("fifty")
        return number

    taken = [0]
    found = in_parallel(work, iter(range(1000)), 8)
    threading.Timer(0.2, first.set).start()
    for number in range(50):
        assert next(found) == number
        taken[0] += 1
    with pytest.raises(ValueError, match="fifty"):
        next(found)
    assert most[0] <= 9 and len(begun) <= 60


def test_a_large_file_on_a_store_is_asked_for_its_columns_alone(slow_store, monkeypatch):
    monkeypatch.setattr(tables, "WHOLE_BYTES", 0)
    folder = open_location(slow_store.uri("large"))
    files, ids = write_answers(folder, 300, 3)
    slow_store.requests.clear()
    assert np.concatenate([chunk[ID].to_numpy() for chunk in read_chunks(files, [ID])]).tolist() == ids.tolist()
    assert slow_store.count("GET") == 2 * 3 and slow_store.count("HEAD") == 3


@pytest.mark.parametrize("ahead", [0, 4 * 2**20])
def test_chunks_are_those_of_the_files_in_their_order_read_ahead_or_not(tmp_path, monkeypatch, ahead):
    monkeypatch.setattr(tables, "AHEAD_BYTES", ahead)
    monkeypatch.setattr(tables, "CHUNK_ROWS", 10)
    files, ids = write_answers(open_location(tmp_path), 1000, 40)
    chunks = list(read_chunks(files, [ID, ID, TOKENS]))
    assert np.concatenate([chunk[ID].to_numpy() for chunk in chunks]).tolist() == ids.tolist()
    assert {len(chunk) for chunk in chunks} == {10, 5} and chunks[0].column_names == [ID, TOKENS]
    assert next(iter(read_chunks(files, [ID])))[ID].to_pylist() == ids[:10].tolist()


def test_a_stage_counts_all_in_one_pass_and_files_are_asked_for_side_by_side(slow_store):
    folder = open_location(slow_store.uri("counted"))
    files, _ = write_answers(folder, 600, 60, failed={4, 5})
    slow_store.requests.clear()
    slow_store.delay = 0.03
    at_once, most, original = [0], [0], slow_store.fault

    def look(method, path, number):
        most[0] = max(most[0], number - at_once[0])
        return original(method, path, number)

    slow_store.fault = look
    cut = Tally("cut")
    seen = []

    def look_at(chunk):
        at_once[0] = len(slow_store.requests)
        seen.append(len(chunk))
        cut(chunk)

    counts = count_answers("quality", files, 600, ["cut"], look_at)
    assert counts == {"rows_in": 600, "kept": 598, "failed": 2} and cut.counts == {"cut": 200} and sum(seen) == 600
    assert slow_store.count("HEAD") == slow_store.count("GET") == 60
    assert most[0] >= 20  # requests that came before the first file was looked at


def test_a_row_too_few_or_twice_is_told(tmp_path):
    files, _ = write_answers(open_location(tmp_path), 30, 3)
    with pytest.raises(StageError, match=r"x: 30 answers to 30 different rows, expected 31"):
        count_answers("x", files, 31)
    with pytest.raises(StageError, match=r"x: 40 answers to 30 different rows, expected 40"):
        count_answers("x", [*files, files[0]], 40)
    with pytest.raises(StageError, match=r"x: 0 answers to 0 different rows, expected 1"):
        count_answers("x", [], 1)


def test_lengths_are_joined_and_summed_by_id(tmp_path):
    files, _ = write_answers(open_location(tmp_path), 500, 9, failed={7, 8})
    known = {i: i % 50 for i in range(500) if i not in (7, 8)}
    assert sum_tokens(files) == sum(known.values())
    some = np.array([499, 3, 7, 260, 12])
    assert sum_tokens(files, some) == sum(known.get(i, 0) for i in some.tolist())
    assert sum_tokens(files, np.empty(0, np.int64)) == 0
    scores = iter([pa.table({ID: part, SCORE: part * 0.5}) for part in np.array_split(np.arange(500), 4)])
    joined = pa.concat_tables(with_tokens(scores, files))
    assert joined[TOKENS].to_pylist() == [known.get(i) for i in range(500)]
    assert joined[SCORE].to_pylist() == [i * 0.5 if i in known else None for i in range(500)]
    with pytest.raises(StageError, match="of another pool"):
        next(with_tokens(iter([pa.table({ID: [500], SCORE: [1.0]})]), files))


def test_a_file_whose_reading_breaks_off_is_named(slow_store, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    files, _ = write_answers(open_location(slow_store.uri("broken")), 100, 10)
    slow_store.fault = lambda method, path, number: CUT if method == "GET" and "0004" in path else None
    with pytest.raises(OSError) as error:
        list(read_chunks(files, [ID]))
    assert "bucket/broken/0004.parquet" in str(find_cause(error.value))


def test_a_table_is_published_within_the_store_and_only_if_it_changed(slow_store):
    folder = open_location(slow_store.uri("published"))
    source, target = folder / "stage/scores.parquet", folder / "scores.parquet"
    for content in (bytes(300_000), bytes(300_000) + b"x"):
        source.write(content)
        slow_store.requests.clear()
        publish(source, target)
        assert slow_store.count("PUT") == 1 and slow_store.count("GET", of="/scores.parquet") == 0
        publish(source, target)
        assert slow_store.count("PUT") == 1 and slow_store.count("GET", of="/scores.parquet") == 0
        assert target.read_bytes() == content
