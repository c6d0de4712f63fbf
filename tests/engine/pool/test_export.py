"""Writing rows back: the original bytes, shapes that trainers load, and the files beside them."""

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysift.errors import ConfigError, DataError
from raysift.pool.card import Card
from raysift.pool.checks import IngestConfig
from raysift.pool.chunks import plan_file
from raysift.pool.export import SHAPES, dataset_info, write_export, write_rows
from raysift.pool.files import find_files
from raysift.pool.formats import recognise
from raysift.pool.given_input import conversation_of
from raysift.pool.id_text import id_text
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
    with pytest.raises(
        DataError, match=f"row {id_text(table['id'][0].as_py())} is no alternation.*Use the output format"
    ):
        write_rows([table], open_location(tmp_path / "out.jsonl"), "alpaca")


def test_unknown_shape_lists_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"'csv' is unknown\. Known: alpaca, messages, original, parquet, sharegpt"):
        write_rows([], open_location(tmp_path / "x"), "csv")


CARD = Card(
    method="uniform",
    settings={"model": "nano", "budget": "5%", "seed": 3, "pool": ["a.jsonl"], "target": []},
    by_source={"s": {"pool": 40, "selected": 2}},
    scores=(0.25, 0.75),
    pool_rows=40,
)


def _export(table, folder, shape="messages", card=CARD):
    """The files of an export, the data first."""
    pq.write_table(table, folder.parent / "rows.parquet")
    place = open_location(folder).make_folder()
    return write_export([open_location(folder.parent / "rows.parquet")], place, shape, card)


def _load(folder, cache):
    datasets = pytest.importorskip("datasets")
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(cache))


@pytest.mark.parametrize("shape", [*SHAPES, "parquet"])
def test_the_folder_loads_with_datasets(tmp_path, shape):
    written = _export(_table([TURNS, TURNS[1:3]], metas=['{"k":1}', None]), tmp_path / "out", shape)
    assert [place.name for place in written[1:]] == ["dataset_info.json", "README.md"]
    rows = _load(tmp_path / "out", tmp_path / "cache")
    assert len(rows) == 2
    ((name, info),) = json.loads((tmp_path / "out" / "dataset_info.json").read_text()).items()
    assert written[0].name.partition(".")[0] == name
    assert set(info["columns"].values()) <= set(rows.column_names)
    if shape != "original":
        assert info == dataset_info(written[0].name, shape)
    if shape == "messages":
        assert [m["content"] for m in rows[0]["messages"]] == [content for _, content in TURNS]


@pytest.mark.parametrize("shape", ["messages", "parquet"])
def test_two_exports_share_a_cache_and_keep_their_own_rows(tmp_path, shape):
    """Two runs, whose folders have one name, and then another selection in the folder of the first."""
    cache, talks = tmp_path / "cache", [TURNS, TURNS[1:3], TURNS[:3]]
    for run, talk in zip(("a", "b", "a"), talks, strict=True):
        folder = tmp_path / run / "selected"
        folder.parent.mkdir(exist_ok=True)
        _export(_table([talk]), folder, shape)
        (row,) = _load(folder, cache)
        assert [turn["content"] for turn in row["messages"]] == [content for _, content in talk]


def test_the_same_rows_have_the_same_name_and_others_another(tmp_path):
    names = []
    for number, turns in enumerate([TURNS, TURNS, TURNS[1:3]]):
        (tmp_path / str(number)).mkdir()
        names.append(_export(_table([turns]), tmp_path / str(number) / "selected")[0].name)
    assert names[0] == names[1] != names[2]
    assert re.fullmatch(r"uniform-[0-9a-f]{8}\.jsonl", names[0])


@pytest.mark.parametrize("shape", [*SHAPES, "parquet"])
def test_the_parts_that_rows_lie_in_leave_no_trace(tmp_path, shape, monkeypatch):
    monkeypatch.setattr("raysift.pool.export.BATCH_ROWS", 4)
    table = _table([[("user", str(n)), ("assistant", "a")] for n in range(11)])
    found = []
    for cuts in ([0, 11], [0, 1, 2, 7, 11], [0, 4, 8, 11]):
        folder = open_location(tmp_path / str(len(cuts))).make_folder()
        files = []
        for first, last in pairwise(cuts):
            files.append(folder / f"{first}.parquet")
            pq.write_table(table.slice(first, last - first), files[-1].path)
        data = write_export(files, (folder / "out").make_folder(), shape, CARD)[0]
        found.append((data.name, data.read_bytes()))
    assert found[0] == found[1] == found[2]


def test_ids_of_all_64_bits_are_text_in_json(tmp_path):
    """JavaScript and jq round numbers beyond 2^53."""
    table = _table([TURNS, TURNS[1:3]])
    assert all(abs(number) > 2**53 for number in table["id"].to_pylist())
    for shape in ("messages", "sharegpt"):
        lines = _lines(tmp_path / _written(table, tmp_path, shape).name)
        assert [line["id"] for line in lines] == [f"{number % 2**64:016x}" for number in table["id"].to_pylist()]
    assert (
        _ingest(_written(table, tmp_path, "messages"))
        .select(["id", "meta"])
        .equals(table.select(["id"]).append_column("meta", pa.nulls(2, pa.string())))
    )


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


def test_tools_are_where_trainers_look(tmp_path):
    """Also where the first ten megabytes, by which `datasets` tells the types of columns, have none."""
    long = [[("user", str(n) * 300_000), ("assistant", "a")] for n in range(10, 35)]
    metas = [None] * len(long) + [json.dumps({"tools": TOOLS}), json.dumps({"tools": json.dumps(TOOLS)})]
    table = _table([*long, TOOL_TURNS, TURNS], metas=metas)
    _export(table, tmp_path / "out")
    info = next(iter(json.loads((tmp_path / "out/dataset_info.json").read_text()).values()))
    assert info["columns"] == {"messages": "messages", "tools": "tools"}
    rows = _load(tmp_path / "out", tmp_path / "cache")
    found = [text and json.loads(text) for text in rows["tools"]]
    assert found == [None] * len(long) + [TOOLS, TOOLS]


def test_rows_with_tools_are_ingested_again_as_they_were(tmp_path):
    table = _table([TURNS, TOOL_TURNS, TURNS[1:3]], metas=[None, '{"tools":[{"name":"f"}]}', '{"tools":"[1]","k":2}'])
    written = _export(table, tmp_path / "out")[0]
    again = _ingest(Path(written.path)).select(["id", "messages", "meta"])
    assert again.equals(table.select(["id", "messages", "meta"]))


def test_no_column_of_tools_without_tools(tmp_path):
    written = _export(_table([TURNS], metas=['{"deep":{"tools":[1]}}']), tmp_path / "out")[0]
    assert "tools" not in _lines(Path(written.path))[0]


CHAT = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
SHARED = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}
ORIGINALS = {
    "alpaca": (
        [{"instruction": "i", "input": "", "output": "o"}, {"instruction": "j", "input": "k", "output": "p"}],
        {"columns": {"prompt": "instruction", "query": "input", "response": "output"}},
    ),
    "alpaca without input": (
        [{"instruction": "i", "output": "o", "history": [["a", "b"]], "topic": 3}],
        {"columns": {"prompt": "instruction", "response": "output", "history": "history"}},
    ),
    "prompt and completion": (
        [{"prompt": "p", "completion": "c"}],
        {"columns": {"prompt": "prompt", "response": "completion"}},
    ),
    "messages": (
        [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}],
        {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": CHAT},
    ),
    "sharegpt": (
        [{"conversation": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "tools": "[]"}],
        {"formatting": "sharegpt", "columns": {"messages": "conversation", "tools": "tools"}, "tags": SHARED},
    ),
    "two spellings of a role": (
        [{"messages": [{"role": name, "content": "q"}, {"role": "assistant", "content": "a"}]} for name in ("user", "human")],
        None,
    ),
    "content in parts": (
        [{"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, {"role": "assistant", "content": "a"}]}],
        None,
    ),
    "tools that are no text": (
        [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "tools": [{"name": "f"}]}],
        None,
    ),
    "names of the user's own": ([{"question": "q", "answer": "a"}], None),
}  # fmt: skip


@pytest.mark.parametrize("layout", ORIGINALS)
def test_original_records_are_described_as_they_are(tmp_path, layout):
    records, expected = ORIGINALS[layout]
    table = _table([TURNS[: 2 * n + 1] for n in range(1, 1 + len(records))], raws=[json.dumps(one) for one in records])
    written = _export(table, tmp_path / "out", "original")
    info = json.loads((tmp_path / "out/dataset_info.json").read_text())
    name = written[0].name
    assert info == ({name.partition(".")[0]: {"file_name": name} | expected} if expected else {})
    if expected:
        assert set(expected["columns"].values()) <= set(_load(tmp_path / "out", tmp_path / "cache").column_names)


def test_the_card_tells_what_was_chosen_and_how(tmp_path):
    _export(_table([TURNS, TURNS[1:3]]), tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    for told in (
        "2 of 40 rows",
        "uniform",
        "| seed | `3` |",
        "`a.jsonl`",
        "| `s` | 40 | 2 |",
        "0.25 to 0.75",
        "`messages`",
    ):
        assert told in text
    assert "raysift uniform --config run.yaml --run NEW" in text and "SFTTrainer" in text


def test_nothing_that_comes_from_data_can_change_the_card(tmp_path):
    evil = "a`|\n# b\x1b[2J\u202e<script>"
    card = replace(CARD, by_source={evil: {"pool": 1, "selected": 1}}, settings={"pool": [evil]})
    _export(_table([TURNS]), tmp_path / "out", card=card)
    calm = _lines_of(
        replace(CARD, by_source={"s": {"pool": 1, "selected": 1}}, settings={"pool": ["a"]}), tmp_path / "calm"
    )
    lines = (tmp_path / "out/README.md").read_text().splitlines()
    assert len(lines) == len(calm)
    told = [line for line in lines if "script" in line]
    assert len(told) == 2 and all(line.count("`") == 2 for line in told)
    assert all(character.isprintable() for line in lines for character in line)


def test_a_card_stays_short(tmp_path):
    many = [f"{number}-{'x' * 500}" for number in range(1000)]
    card = replace(CARD, settings={"pool": many}, by_source={one: {"pool": 9, "selected": 1} for one in many})
    text = "\n".join(_lines_of(card, tmp_path / "many"))
    assert len(text) < 10_000 and "980 more sources" in text and "and 980 more |" in text


def _lines_of(card, folder):
    folder.mkdir()
    _export(_table([TURNS]), folder / "out", card=card)
    return (folder / "out/README.md").read_text().splitlines()
