"""Writing rows back: the original bytes, shapes that trainers load, and the files beside them."""

import json

import pyarrow as pa
import pytest

from raysift.errors import ConfigError, DataError
from raysift.pool.checks import IngestConfig
from raysift.pool.chunks import plan_file
from raysift.pool.export import SHAPES, dataset_info, write_export, write_rows
from raysift.pool.files import find_files
from raysift.pool.formats import recognise
from raysift.pool.given_input import conversation_of
from raysift.pool.normalise import Normaliser
from raysift.pool.reading import read_chunk
from raysift.pool.row_ids import row_id
from raysift.records import ROWS, Message
from raysift.storage import open_location

TURNS = [("system", "S"), ("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]
TOOL_TURNS = [("user", "q"), ("assistant", '{"name":"f"}'), ("tool", "7"), ("assistant", "a")]


def _table(conversations, raws=None, metas=None):
    rows = []
    for number, turns in enumerate(conversations):
        rows.append(
            {
                "id": row_id([Message(*turn) for turn in turns]),
                "source": "s",
                "messages": [{"role": role, "content": content} for role, content in turns],
                "meta": metas[number] if metas else None,
                "raw": raws[number] if raws else None,
            }
        )
    return pa.Table.from_pylist(rows, schema=ROWS)


def _ingest(path):
    config = IngestConfig()
    file = find_files([str(path)])[0]
    plan = plan_file(file, 2**22)
    normalise = Normaliser(file, recognise(plan.columns, "auto", {}, file.name), config)
    tables = [normalise(batch).rows for chunk in plan.chunks for batch in read_chunk(chunk)]
    return pa.concat_tables(tables).select(ROWS.names)


def _lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_original_gives_back_the_bytes_of_json_lines(tmp_path):
    # Odd spacing, key order, escapes, a carriage return and a number that JSON readers like to reformat.
    lines = [
        b'{ "output":"a" ,"instruction" : "q\\u00e9", "score": 1.0e3}',
        '{"instruction": "é", "output": "b", "big": 12345678901234567890123}\r'.encode(),
    ]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    write_rows([_ingest(tmp_path / "in.jsonl")], open_location(tmp_path / "out.jsonl"), "original")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "in.jsonl").read_bytes()


def test_original_of_a_real_file_is_that_file(shared_data, tmp_path):
    path = shared_data / "formats" / "same2k_messages.jsonl"
    write_rows([_ingest(path)], open_location(tmp_path / "out.jsonl"), "original")
    assert (tmp_path / "out.jsonl").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("shape", ["messages", "sharegpt", "alpaca", "original", "parquet"])
def test_rows_keep_their_ids_through_every_shape(tmp_path, shape):
    table = _table([TURNS, TURNS[1:3]], metas=['{"k":1}', None])
    path = tmp_path / f"out.{'parquet' if shape == 'parquet' else 'jsonl'}"
    assert write_rows([table], open_location(path), shape) == 2
    assert _ingest(path)["id"].to_pylist() == table["id"].to_pylist()


TALK = {"instruction": "Sort.", "input": "b a", "output": "a b"}
FOREIGN = [
    TALK,
    {**TALK, "input": ""},
    {**TALK, "input": "c", "kind": 7, "id": "their own"},
    {**TALK, "input": "d", "meta": {"k": [1, None], "input": "not the one"}},
    {**TALK, "input": "", "meta": '{"k": 1, "meta": {"deep": 2}}', "k": 2},
    {**TALK, "input": "e", "meta": 3},
    {**TALK, "input": "f", "meta": "no JSON"},
    {**TALK, "input": "g", "meta": "null"},
    {**TALK, "input": "h", "meta": None, "raw": "a column of this name"},
]


def _written(table, tmp_path, shape):
    path = tmp_path / f"{shape}.{'parquet' if shape == 'parquet' else 'jsonl'}"
    write_rows([table], open_location(path), shape)
    return path


@pytest.mark.parametrize("shape", [*SHAPES, "parquet"])
def test_rows_that_are_ingested_again_are_the_same_rows(tmp_path, shape):
    """Alpaca records keep no column but their own, ShareGPT records not even the input."""
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in FOREIGN))
    rows = _ingest(tmp_path / "in.jsonl")
    again = _ingest(_written(rows, tmp_path, shape))
    kept = ["id", "messages"] + (["source", "meta"] if shape in ("messages", "parquet") else [])
    assert again.select(kept).equals(rows.select(kept))
    if shape == "alpaca":
        assert [conversation_of(row) for row in again.to_pylist()] == [conversation_of(row) for row in rows.to_pylist()]
    if shape == "parquet":
        assert again.equals(rows)
    first, second = (_written(table, tmp_path, "original").read_bytes() for table in (rows, again))
    assert first == (tmp_path / "in.jsonl").read_bytes()
    lines_of = tmp_path / ("in.jsonl" if shape in ("parquet", "original") else f"{shape}.jsonl")
    assert second == lines_of.read_bytes()


def test_meta_is_what_a_column_of_that_name_means(tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in FOREIGN))
    metas = [meta and json.loads(meta) for meta in _ingest(tmp_path / "in.jsonl")["meta"].to_pylist()]
    assert metas == [
        {"input": "b a"},
        None,
        {"input": "c", "kind": 7, "id": "their own"},
        {"input": "d", "k": [1, None]},
        {"k": 2, "meta": {"deep": 2}},
        {"input": "e", "meta": 3},
        {"input": "f", "meta": "no JSON"},
        {"input": "g", "meta": "null"},
        {"input": "h", "raw": "a column of this name"},
    ]


def test_tables_with_a_meta_column_are_read_like_records(tmp_path):
    import pyarrow.parquet as pq

    table = _table([TURNS, TURNS[1:3]], metas=['{"k":1}', None]).append_column("n", pa.array([1, 2]))
    pq.write_table(table, tmp_path / "in.parquet")
    rows = _ingest(tmp_path / "in.parquet")
    assert rows["meta"].to_pylist() == ['{"k":1,"n":1}', '{"n":2}']
    structs = table.set_column(3, "meta", pa.array([{"k": 1}, None]))
    pq.write_table(structs.drop_columns(["id", "raw"]), tmp_path / "in.parquet")
    assert _ingest(tmp_path / "in.parquet")["meta"].equals(rows["meta"])


def test_an_edited_row_is_a_record_of_its_own(tmp_path):
    """Its id and its raw are another conversation's, and stay as the columns that they are."""
    row = _table([TURNS], raws=["as it was"], metas=['{"k":1}']).to_pylist()[0]
    row["messages"][-1]["content"] = "edited"
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    (found,) = _ingest(tmp_path / "in.jsonl").to_pylist()
    assert found["id"] != row["id"] and found["raw"] == json.dumps(row)
    assert json.loads(found["meta"]) == {"k": 1, "id": row["id"], "raw": "as it was"}


def test_passthrough_columns_survive(tmp_path):
    table = _table([TURNS], metas=['{"k":[1,null]}'])
    for shape, read in (("messages", lambda r: json.loads(r["meta"])["k"]), ("original", lambda r: r["k"])):
        write_rows([table], open_location(tmp_path / "out.jsonl"), shape)
        assert read(_lines(tmp_path / "out.jsonl")[0]) == [1, None]


def test_sharegpt_names_calls_and_observations(tmp_path):
    table = _table([TOOL_TURNS], metas=['{"tools":[{"name":"f"}]}'])
    write_rows([table], open_location(tmp_path / "out.jsonl"), "sharegpt")
    record = _lines(tmp_path / "out.jsonl")[0]
    assert [turn["from"] for turn in record["conversations"]] == ["human", "function_call", "observation", "gpt"]
    assert record["tools"] == '[{"name":"f"}]' and record["system"] == ""


def test_alpaca_refuses_what_it_cannot_hold(tmp_path):
    table = _table([TOOL_TURNS])
    with pytest.raises(DataError, match=f"row {table['id'][0]} is no alternation.*Use the output format"):
        write_rows([table], open_location(tmp_path / "out.jsonl"), "alpaca")


def test_unknown_shape_lists_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"'csv' is unknown\. Known: alpaca, messages, original, parquet, sharegpt"):
        write_rows([], open_location(tmp_path / "x"), "csv")


@pytest.mark.parametrize("shape", [*SHAPES, "parquet"])
def test_the_folder_loads_with_datasets(tmp_path, shape, monkeypatch):
    datasets = pytest.importorskip("datasets")
    import pyarrow.parquet as pq

    pq.write_table(_table([TURNS, TURNS[1:3]], metas=['{"k":1}', None]), tmp_path / "rows.parquet")
    out = open_location(tmp_path / "out").make_folder()
    written = write_export([open_location(tmp_path / "rows.parquet")], out, shape)
    assert [place.name for place in written[1:]] == ["dataset_info.json", "README.md"]
    rows = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 2
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text())["selection"]
    assert info == dataset_info(written[0].name, shape)
    assert set(info["columns"].values()) <= set(rows.column_names)
    if shape == "messages":
        assert [m["content"] for m in rows[0]["messages"]] == [content for _, content in TURNS]
