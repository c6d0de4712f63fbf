"""Finding files and cutting them into chunks: whatever the cut, each record comes once and in order."""

import gzip
import json
import random
from dataclasses import replace

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from raysift.errors import DataError
from raysift.pool import files as files_module
from raysift.pool.chunks import chunk_bytes_for, plan_file
from raysift.pool.files import BadFile, Chunk, find_files, line_of
from raysift.pool.json_arrays import split_elements
from raysift.pool.parsing import records_of
from raysift.pool.reading import read_chunk

TRICKY = ['"', "\\", '\\"', "\\\\", "[", "]", "{", "}", ",", "\n", "é日\U0001f600", "plain", "\\u0041", ""]


def _records(count, seed=0):
    draw = random.Random(seed)
    text = lambda: "".join(draw.choices(TRICKY, k=draw.randrange(12)))  # noqa: E731
    return [
        {"n": n, "text": text(), "nested": {"list": [text(), [1, {"a": text()}]], "none": None}} for n in range(count)
    ]


def _read(path, chunk_bytes=2**20):
    """Records with their positions in the file."""
    found, base = [], 0
    for file in find_files([str(path)]):
        for chunk in plan_file(file, chunk_bytes).chunks:
            seen = 0
            for batch in read_chunk(chunk):
                found += [(base + position, record) for position, record in records_of(batch, file)]
                seen = batch.seen
            base += seen
    return found


def _only(path):
    return [record for _, record in _read(path)]


@pytest.fixture(params=[7, 64, 1000, 10**6], ids="blocks of {}".format)
def small_blocks(request, monkeypatch):
    monkeypatch.setattr(files_module, "BLOCK_BYTES", request.param)


@pytest.mark.parametrize("indent", [None, 1, 4])
@pytest.mark.parametrize("chunk_bytes", [1, 50, 333, 10**6])
def test_array_elements_survive_any_cut(tmp_path, small_blocks, indent, chunk_bytes):
    records = _records(25)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(records, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert [record for _, record in _read(path, chunk_bytes)] == records


@pytest.mark.parametrize("chunk_bytes", [1, 50, 333, 10**6])
@pytest.mark.parametrize("last_newline", [True, False])
def test_lines_survive_any_cut_and_know_their_number(tmp_path, small_blocks, chunk_bytes, last_newline):
    records = _records(25)
    lines = [orjson.dumps(record) for record in records]
    lines.insert(3, b"")  # a blank line has a number and no record
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n" * last_newline)
    assert _read(path, chunk_bytes) == [(n + (n >= 3), record) for n, record in enumerate(records)]


def test_scanner_agrees_with_a_parser_on_random_text():
    for seed in range(40):
        records = _records(12, seed)
        text = json.dumps(records, ensure_ascii=bool(seed % 2)).encode()
        size = 1 + seed
        blocks = [text[start : start + size] for start in range(0, len(text), size)]
        pieces = [piece for texts, _ in split_elements(blocks, depth=0) for piece in texts]
        assert [json.loads(piece) for piece in pieces] == records


@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_compressed_text_of_several_members_is_read_whole(tmp_path, kind, ending):
    records = _records(30)
    text = json.dumps(records).encode() if kind == "json" else b"".join(orjson.dumps(r) + b"\n" for r in records)
    compress = gzip.compress if ending == "gz" else zstandard.ZstdCompressor().compress
    path = tmp_path / f"a.{kind}.{ending}"
    path.write_bytes(compress(text[:500]) + compress(text[500:]))
    assert _only(path) == records


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_truncated_compressed_file_is_named(tmp_path, ending):
    text = b"".join(orjson.dumps(r) + b"\n" for r in _records(3000))
    compress = gzip.compress if ending == "gz" else zstandard.ZstdCompressor().compress
    path = tmp_path / f"cut.jsonl.{ending}"
    path.write_bytes(compress(text)[:-20])
    with pytest.raises(BadFile, match=rf"cut\.jsonl\.{ending}"):
        _only(path)


def test_csv_cells_may_hold_lines_quotes_and_commas(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('\ufeffinstruction,output\r\n"a\nb","say ""x"", y"\r\n\r\nc,\r\n', encoding="utf-8", newline="")
    assert _read(path) == [
        (0, {"instruction": "a\nb", "output": 'say "x", y'}),
        (1, {"instruction": "c", "output": ""}),
    ]


@pytest.mark.parametrize("groups", [1, 7, 100])
def test_columns_are_read_whatever_the_row_groups(tmp_path, groups):
    records = _records(100)
    table = pa.Table.from_pylist([{"n": r["n"], "text": r["text"]} for r in records])
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=groups)
    with pa.ipc.new_file(tmp_path / "b.arrow", table.schema) as out:
        out.write_table(table, max_chunksize=groups)
    with pa.ipc.new_stream(tmp_path / "c.arrow", table.schema) as out:
        out.write_table(table, max_chunksize=groups)
    for name in ("a.parquet", "b.arrow", "c.arrow"):
        assert _read(tmp_path / name, 100) == list(enumerate(table.to_pylist())), name


def test_hugging_face_folders_are_read_like_their_data(tmp_path):
    datasets = pytest.importorskip("datasets")
    records = [{"prompt": f"p{n}", "completion": f"c{n}"} for n in range(50)]
    rows = datasets.Dataset.from_list(records)
    rows.save_to_disk(str(tmp_path / "one"), num_shards=3)
    datasets.DatasetDict({"train": rows, "test": rows.select(range(5))}).save_to_disk(str(tmp_path / "splits"))
    assert _only(tmp_path / "one") == records
    assert _only(tmp_path / "splits") == records, "the test split is not for selection"
    assert len(_only(tmp_path / "splits" / "test")) == 5


def test_folders_and_globs_give_data_files_in_order(tmp_path):
    for name in ("b/2.jsonl", "a/1.json", "a/.hidden.json", "a/dataset_info.json", "README.md", "c.parquet.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    names = lambda source: [file.location.name for file in find_files([f"{tmp_path}/{source}"])]  # noqa: E731
    assert names("") == names("**/*") == names("*/*.json*") == ["1.json", "2.jsonl"]
    assert names("[ab]/[0-9].json?") == ["2.jsonl"]
    assert len(find_files([str(tmp_path), f"{tmp_path}/b/*.jsonl"])) == 2, "a file named twice is read once"


@pytest.mark.parametrize(
    ("source", "said"),
    [("nowhere.jsonl", "does not exist"), ("*.jsonl", "no data file matches"), ("", "holds no data file")],
)
def test_nothing_to_read_is_an_error_that_names_it(tmp_path, source, said):
    with pytest.raises(DataError, match=said):
        find_files([f"{tmp_path}/{source}"])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "x", "unknown ending"),
        ("a.json", '{"a": 1,\n "b": 2}', "line 1: holds one object"),
        ("a.json", '{\n"a": 1}\n{\n"a": 2}', "line 1: holds one object or several"),
        ("a.json", '[{"a": 1},\n{"a": 2}]\n[{"a": 3}]', "line 2: text after the end"),
        ("a.jsonl", "hello\nworld", "line 1: none of its first records is a JSON object"),
        ("a.jsonl", "1\n2", "the record is a number, expected an object"),
        ("a.parquet", "no parquet", "cannot be read as parquet"),
        ("a.csv", "a,a\n1,2", "more than once"),
        ("a.jsonl.gz", "no gzip", "cannot be read as text"),
    ],
)
def test_a_file_that_is_something_else_is_named_with_the_reason(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        plan_file(find_files([str(tmp_path / name)])[0], 2**20)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('[\n{"a": 1},\n{"a": tru},\n{"a": 3}\n]', 3),
        ('[\n{"a": 1},\n{"a": 2},\n]', 4),
        ('[\n{"a": 1},\n\n,{"a": 2}]', 4),
        ('[\n{"a": 1},\n{"a": "x\n', 3),
        ('[\n{"a": 1}\n{"a": 2}]', 3),
    ],
)
def test_malformed_array_names_the_line(tmp_path, content, line):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(BadFile, match=rf"bad\.json, line {line}: "):
        _only(tmp_path / "bad.json")


def test_the_malformed_real_file_names_its_line(shared_data):
    with pytest.raises(BadFile, match="line 14007"):
        _only(shared_data / "formats" / "real_malformed_alpaca_zh.json")


def test_content_decides_not_the_ending(tmp_path):
    records = [{"a": n} for n in range(3)]
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "array.jsonl").write_text(json.dumps(records))
    (tmp_path / "one.json").write_text('{"a": 0}')
    assert _only(tmp_path / "lines.json") == _only(tmp_path / "array.jsonl") == records
    assert _only(tmp_path / "one.json") == records[:1]


@pytest.mark.parametrize("content", ["", "  \n", "[]", "[\n]"])
def test_empty_files_have_no_chunks(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    assert plan_file(find_files([str(tmp_path / "a.json")])[0], 2**20).chunks == ()


def test_a_line_too_long_is_a_problem_and_the_next_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("raysift.pool.reading.MAX_RECORD_BYTES", 100)
    monkeypatch.setattr(files_module, "BLOCK_BYTES", 30)
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": "' + "x" * 500 + '"}\n{"a": 2}\n')
    found = _read(tmp_path / "a.jsonl")
    assert [record for _, record in found if isinstance(record, dict)] == [{"a": 1}, {"a": 2}]
    assert [(n, r.reason) for n, r in found if not isinstance(r, dict)] == [(1, "record_too_large")]


def test_line_of_counts_from_one(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a":1}\n{"a":2}\n')
    file = find_files([str(tmp_path / "a.jsonl")])[0]
    assert [line_of(file, offset) for offset in (0, 7, 8, 15)] == [1, 1, 2, 2]


def test_chunk_size_follows_from_the_pool_and_is_bounded():
    sizes = [chunk_bytes_for(total) for total in (0, 2**20, 2**30, 2**40)]
    assert sizes == sorted(sizes) and sizes[0] == 4 * 2**20 and sizes[-1] == 64 * 2**20


def test_a_chunk_is_plain_data(tmp_path):
    import pickle

    (tmp_path / "a.jsonl").write_text('{"a":1}\n')
    file = find_files([str(tmp_path / "a.jsonl")])[0]
    chunk = Chunk(file, "jsonl", 0, 8)
    assert pickle.loads(pickle.dumps(chunk)) == replace(chunk)
