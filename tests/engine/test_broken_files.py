"""Hostile and broken files: each is read, or refused by name and with a reason; none takes the process with it."""

import gzip
import os

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysift.errors import ConfigError, DataError
from raysift.jobs.pool.ingest_tasks import plan_and_recognise, read_part
from raysift.pool import files as files_module
from raysift.pool import reading
from raysift.pool.checks import IngestConfig
from raysift.pool.chunks import plan_file, read_records
from raysift.pool.files import BadFile, changed_files, find_files, fingerprint_files
from raysift.pool.formats.problem import RecordProblem
from raysift.pool.pairs import read_pairs
from raysift.storage import open_location

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def _row(number):
    return {"instruction": f"q{number}", "output": f"a{number}"}


def _lines(rows):
    return b"".join((row if isinstance(row, bytes) else orjson.dumps(row)) + b"\n" for row in rows)


def _array(rows):
    return b"[" + b",\n".join(row if isinstance(row, bytes) else orjson.dumps(row) for row in rows) + b"]"


def _put(path, content):
    path.write_bytes(gzip.compress(content) if path.suffix.lower() == ".gz" else content)
    return path


def _all(path):
    """Records of a file, and the reasons of what is none."""
    found = [record for file in find_files([str(path)]) for _, record in read_records(file)]
    problems = [record.reason for record in found if isinstance(record, RecordProblem)]
    return [record for record in found if not isinstance(record, RecordProblem)], problems


def ingest_here(path, work, config=None):
    """Rows, failures by reason and errors of each file's tasks, without Ray: (kept, rejected and failed, errors)."""
    config, kept, problems, errors, number = config or IngestConfig(), 0, {}, {}, 0
    for file in find_files([str(path)]):
        plan = plan_and_recognise(file, 2**22, config)
        if isinstance(plan, Exception):
            errors[file.name] = str(plan)
            continue
        for chunk in plan[0].chunks:
            part = read_part(number, chunk, plan[1], config, open_location(work).make_folder())
            number += 1
            if isinstance(part, Exception):
                errors[file.name] = str(part)
                continue
            kept += sum(rows for _, rows in part["shards"])
            for reason, count in part["reasons"].items():
                problems[reason] = problems.get(reason, 0) + count
    return kept, problems, errors


# ---- arrays and lines


@pytest.mark.parametrize("ending", ["json", "json.gz"])
@pytest.mark.parametrize("cut", ["}", "},", "},\n", '{"instruc'])
def test_an_array_that_breaks_off_is_refused_wherever_it_was_cut(tmp_path, ending, cut):
    whole = _array([_row(number) for number in range(50)])
    end = whole.index(b'{"instruction":"q25"') - 3 + len(cut) if cut[0] == "}" else whole.index(b'"q25"') - 4
    path = _put(tmp_path / f"a.{ending}", whole[:end])
    with pytest.raises(BadFile, match=rf"a\.{ending}, line 2[5-7]: "):
        _all(path)
    assert len(_all(_put(tmp_path / f"b.{ending}", whole))[0]) == 50


@pytest.mark.parametrize("ending", ["json", "json.gz"])
def test_what_comes_after_an_array_is_no_part_of_it(tmp_path, ending):
    with pytest.raises(BadFile, match=rf"a\.{ending}, line 2: text after the end"):
        _all(_put(tmp_path / f"a.{ending}", _array([_row(0), _row(1)]) + b"[{}]"))


@pytest.mark.parametrize("ending", ["jsonl", "json", "jsonl.gz", "json.gz"])
def test_a_first_record_of_any_length_says_what_the_file_holds(tmp_path, ending):
    rows = [_row("x" * (2**20 + 100_000)), _row(1)]
    path = _put(tmp_path / f"a.{ending}", (_lines if "jsonl" in ending else _array)(rows))
    assert plan_file(find_files([str(path)])[0], 2**22).columns == ("instruction", "output")
    assert _all(path) == (rows, [])


@pytest.mark.parametrize("ending", ["jsonl", "json", "jsonl.gz", "json.gz"])
def test_a_record_too_long_is_dropped_while_it_is_read(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(reading, "MAX_RECORD_BYTES", 1000)
    monkeypatch.setattr(files_module, "BLOCK_BYTES", 100)
    rows = [_row(0), _row("x" * 5000), _row(2)]
    path = _put(tmp_path / f"a.{ending}", (_lines if "jsonl" in ending else _array)(rows))
    assert _all(path) == ([rows[0], rows[2]], ["record_too_large"])


@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_a_cell_too_long_is_refused_at_the_line_where_its_row_begins(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(reading, "MAX_RECORD_BYTES", 1000)
    path = _put(tmp_path / f"a.{ending}", b'instruction,output\na,b\nc,"d\n' + b"e,f\n" * 1000)
    with pytest.raises(BadFile, match=rf"a\.{ending}, line 3: .*Is a quote not closed"):
        _all(path)


def test_an_element_is_joined_once_however_many_blocks_it_covers(monkeypatch):
    from raysift.pool import json_arrays

    copied = []

    class Counted(json_arrays._Element):
        def add(self, piece):
            copied.append(len(piece))
            super().add(piece)

    monkeypatch.setattr(json_arrays, "_Element", Counted)
    text = b'[{"a":"' + b"x" * 100_000 + b'"}]'
    blocks = [text[start : start + 100] for start in range(0, len(text), 100)]
    assert [piece for texts, _ in json_arrays.split_elements(blocks, 0) for piece in texts] == [text[1:-1]]
    assert sum(copied) < 2 * len(text)


@pytest.mark.parametrize("ending", ["jsonl", "json"])
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("[" * 450 + "]" * 450, None),
        ("[" * 700 + "]" * 700, "too_deep"),
        ("[" * 1000 + "]" * 1000, "too_deep"),
        ("[" * 1022 + "]" * 1022, "too_deep"),
        ("[" * 100_000 + "]" * 100_000, "too_deep"),
        ("9" * 400, None),
        ("9" * 5000, "wrong_type"),
    ],
    ids=["450", "700", "1000", "1022", "100k", "400 digits", "5000 digits"],
)
@pytest.mark.parametrize("place", [0, 30])
def test_a_record_that_no_reader_can_hold_costs_itself_alone(tmp_path, ending, value, reason, place):
    rows = [_row(number) for number in range(40)]
    rows[place] = b'{"instruction":"q","output":"a","extra":' + value.encode() + b"}"
    _put(tmp_path / f"a.{ending}", (_lines if ending == "jsonl" else _array)(rows))
    kept, problems, errors = ingest_here(tmp_path / f"a.{ending}", tmp_path / "work")
    assert (kept, problems, errors) == ((39, {reason: 1}, {}) if reason else (40, {}, {}))


@pytest.mark.parametrize("field", ["meta", "messages", "arguments"])
def test_json_text_inside_a_field_may_nest_as_it_likes(tmp_path, field):
    deep = "[" * 1000 + "]" * 1000
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    if field == "arguments":
        row["messages"][1]["tool_calls"] = [{"function": {"name": "f", "arguments": deep}}]
    else:
        row[field] = f'{{"k":{deep}}}' if field == "meta" else deep
    kept, problems, errors = ingest_here(
        _put(tmp_path / "a.jsonl", _lines([row])), tmp_path / "w", IngestConfig(max_failed_share=1)
    )
    assert (kept + sum(problems.values()), errors) == (1, {})


def test_a_byte_order_mark_at_any_line_is_none_of_its_record(tmp_path):
    mark = b"\xef\xbb\xbf"
    path = _put(tmp_path / "a.jsonl", b"".join(mark + orjson.dumps(_row(n)) + b"\n" for n in range(3)) + mark + b"\n")
    assert _all(path) == ([_row(n) for n in range(3)], [])


# ---- names and endings


def test_endings_are_read_in_any_case_and_the_last_one_counts(tmp_path):
    _put(tmp_path / "POOL.JSONL.GZ", _lines([_row(0)]))
    assert find_files([str(tmp_path / "POOL.JSONL.GZ")])[0].stem == "POOL"
    assert _all(tmp_path / "POOL.JSONL.GZ")[0] == [_row(0)]
    _put(tmp_path / "x.tsv.csv", b"instruction,output\nq0,a0\n")
    _put(tmp_path / "x.csv.tsv", b"instruction\toutput\nq0\ta0\n")
    assert _all(tmp_path / "x.tsv.csv")[0] == _all(tmp_path / "x.csv.tsv")[0] == [_row(0)]


def test_zeros_after_a_gzip_member_are_padding_and_other_bytes_are_not(tmp_path):
    content = gzip.compress(_lines([_row(0)]))
    (tmp_path / "a.jsonl.gz").write_bytes(content + bytes(512))
    assert _all(tmp_path / "a.jsonl.gz")[0] == [_row(0)]
    (tmp_path / "b.jsonl.gz").write_bytes(content + b"garbage")
    with pytest.raises(BadFile, match=r"b\.jsonl\.gz"):
        _all(tmp_path / "b.jsonl.gz")


@pytest.mark.parametrize("pattern", ["[z-a]*.jsonl", "[\\]*.jsonl", "a\0b", "x" * 5000 + ".jsonl", "\udcff.jsonl", ""])
def test_a_name_that_stands_for_nothing_is_an_error_in_words(tmp_path, pattern):
    with pytest.raises(DataError, match=r"^ingest: ") as caught:
        find_files([f"{tmp_path}/{pattern}"])
    assert len(str(caught.value)) < 1500 and "\0" not in str(caught.value)


def test_brackets_match_as_in_a_shell(tmp_path):
    for name in ("a.jsonl", "b.jsonl", "].jsonl", "[x].jsonl"):
        _put(tmp_path / name, b"{}")
    names = lambda pattern: [file.location.name for file in find_files([f"{tmp_path}/{pattern}"])]  # noqa: E731
    assert names("[!a].jsonl") == ["].jsonl", "b.jsonl"]
    assert names("[]].jsonl") == ["].jsonl"]
    assert names("[[]x].jsonl") == names("[x].jsonl") == ["[x].jsonl"], "a file of that very name comes first"


def test_a_name_that_is_not_utf8_is_told_where_it_is_wanted_and_passed_over_elsewhere(tmp_path):
    _put(tmp_path / "good.jsonl", _lines([_row(0)]))
    with open(os.fsencode(tmp_path) + b"/bad\xff.jsonl", "wb") as file:
        file.write(_lines([_row(1)]))
    assert len(find_files([f"{tmp_path}/good*.jsonl"])) == 1
    bad, good = find_files([str(tmp_path)])
    with pytest.raises(BadFile, match="not valid UTF-8"):
        plan_file(bad, 2**20)
    kept, _, errors = ingest_here(tmp_path, tmp_path / "work")
    assert kept == 1 and list(errors) == [bad.name] and good.fault is None
    assert fingerprint_files([bad, good], quarantine=True)[0][1] == "unreadable"


def test_links_that_lead_back_are_followed_once(tmp_path):
    _put(tmp_path / "a.jsonl", _lines([_row(0)]))
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert [file.location.name for file in find_files([str(tmp_path)])] == ["a.jsonl"]


def test_a_glob_looks_no_deeper_than_it_asks(tmp_path, monkeypatch):
    _put(tmp_path / "a.jsonl", _lines([_row(0)]))
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    seen = []
    walk = os.walk
    monkeypatch.setattr(
        files_module.os, "walk", lambda *a, **k: (seen.append(step[0]) or step for step in walk(*a, **k))
    )
    find_files([f"{tmp_path}/*.jsonl"])
    assert seen == [str(tmp_path)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", b"{{{"),
        ("state.json", b"[1]"),
        ("state.json", b'{"_data_files": "x"}'),
        ("state.json", b'{"_data_files": [{}]}'),
        ("state.json", b'{"_data_files": [{"filename": 3}]}'),
        ("state.json", b'{"_data_files": [{"filename": "../secret.jsonl"}]}'),
        ("state.json", b'{"_data_files": [{"filename": ".."}]}'),
        ("state.json", b'{"_data_files": [{"filename": "/etc/passwd"}]}'),
        ("state.json", b'{"_data_files": [{"filename": "nope.arrow"}]}'),
        ("state.json", "{}".encode("utf-16")),
        ("state.json", b"[" * 100_000),
        ("dataset_dict.json", b"null"),
        ("dataset_dict.json", b'{"splits": ["test"]}'),
        ("dataset_dict.json", b'{"splits": {"train": 1}}'),
    ],
)
def test_a_folder_that_describes_itself_wrongly_is_refused(tmp_path, name, content):
    (tmp_path / "folder").mkdir()
    _put(tmp_path / "secret.jsonl", _lines([_row(0)]))
    (tmp_path / "folder" / name).write_bytes(content)
    with pytest.raises(DataError, match="folder"):
        find_files([str(tmp_path / "folder")])


def test_a_described_folder_that_is_its_own_split_ends(tmp_path):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (tmp_path / "train").symlink_to(tmp_path)
    with pytest.raises(DataError, match="holds no data file"):
        find_files([str(tmp_path)])


def test_a_file_that_may_not_be_read_is_named_and_can_be_left_out(tmp_path, monkeypatch):
    _put(tmp_path / "a.jsonl", _lines([_row(0)]))
    files = find_files([str(tmp_path / "a.jsonl")])

    def refuse(place):
        raise PermissionError(13, "Permission denied", place.path)

    monkeypatch.setattr("raysift.storage.Location.open_input", refuse)  # tests may run as root, who may read all
    with pytest.raises(BadFile, match=r"a\.jsonl: cannot be read: .*Permission denied"):
        fingerprint_files(files)
    assert fingerprint_files(files, quarantine=True) == [["a.jsonl", "unreadable"]]
    assert "Permission denied" in ingest_here(tmp_path / "a.jsonl", tmp_path / "work")[2][files[0].name]


def test_a_file_that_grew_after_it_was_found_is_told(tmp_path):
    path = _put(tmp_path / "a.jsonl", _lines([_row(0)]))
    files = find_files([str(path)])
    assert changed_files(files) == []
    path.write_bytes(path.read_bytes() + _lines([_row(1)]))
    assert changed_files(files) == [f"{path} ({files[0].size} -> {path.stat().st_size} bytes)"]


# ---- messages


def test_hints_name_settings_that_are_there(tmp_path):
    path = _put(tmp_path / "a.csv", b"question,answer2\na,b\n")
    assert "ingest.columns.instruction=question" in ingest_here(path, tmp_path / "w")[2][str(path)]
    path = _put(tmp_path / "b.csv", b"instruction;output\na;b\n")
    assert "Is the separator ';'?" in ingest_here(path, tmp_path / "w")[2][str(path)]
    with pytest.raises(ConfigError, match=r"rose\.targets\.columns\.chosen=NAME"):
        list(read_pairs(str(path)))


# ---- Parquet and Arrow


def _messages(count):
    said = [[{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}] for n in range(count)]
    return pa.array(said, MESSAGES)


ODD = {
    "binary source": {"source": pa.array([b"\xff"] * 20)},
    "duration source": {"source": pa.array([1] * 20, pa.duration("s"))},
    "far timestamp": {"x": pa.array([2**62] * 20, pa.timestamp("us"))},
    "far date": {"x": pa.array([2**30] * 20, pa.int32()).cast(pa.date32())},
    "far duration": {"x": pa.array([2**62] * 20, pa.duration("s"))},
    "unknown zone": {"x": pa.array([1] * 20, pa.timestamp("s", "Mars/Base"))},
    "broken text": {"x": pa.array([b"\xff"] * 20).view(pa.string())},
    "interval": {"x": pa.array([pa.MonthDayNano([1, 1, 1])] * 20)},
}


@pytest.mark.parametrize("odd", ODD)
def test_columns_of_odd_types_end_nothing_and_lose_nothing(tmp_path, odd):
    table = pa.table({"messages": _messages(20), **ODD[odd]})
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as out:
        out.write_table(table)
    paths = [tmp_path / "a.arrow"]
    if odd != "interval":  # a type that Parquet lacks
        pq.write_table(table, tmp_path / "b.parquet")
        paths.append(tmp_path / "b.parquet")
    for path in paths:
        kept, problems, errors = ingest_here(path, tmp_path / f"work-{path.suffix}")
        assert (kept + sum(problems.values()), errors) == (20, {})


def test_a_column_with_a_field_s_name_gives_way_to_the_one_that_was_named(tmp_path):
    table = pa.table({"messages": _messages(3), "own": pa.array(_messages(6).to_pylist()[3:], MESSAGES)})
    pq.write_table(table, tmp_path / "a.parquet")
    _put(tmp_path / "a.jsonl", _lines([{"output": "old", "new": "new", "instruction": "q"}]))
    config = IngestConfig(columns={"messages": "own"})
    for name, columns in (("a.parquet", {"messages": "own"}), ("a.jsonl", {"output": "new"})):
        config = IngestConfig(columns=columns)
        kept, problems, errors = ingest_here(tmp_path / name, tmp_path / f"work-{name}", config)
        assert (problems, errors) == ({}, {}) and kept
        with pa.ipc.open_file(tmp_path / f"work-{name}" / "rows-00000-000.arrow") as rows:
            answers = [row[-1]["content"] for row in rows.read_all()["messages"].to_pylist()]
        assert answers == (["a3", "a4", "a5"] if name == "a.parquet" else ["new"])


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([_messages(3), pa.array([1, 2, 3]), pa.array([1, 2, 3])], names=["messages", "x", "x"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(BadFile, match=r"a\.parquet: names the columns \['x'\] more than once"):
        plan_file(find_files([str(tmp_path / "a.parquet")])[0], 2**20)


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_wrong_offsets_in_an_arrow_file_are_the_file_s_fault(tmp_path, kind):
    text = pa.array(["question"] * 100)
    offsets = pa.array([2**30 if place == 50 else 8 * place for place in range(101)], pa.int32())
    wrong = pa.Array.from_buffers(pa.string(), 100, [None, offsets.buffers()[1], text.buffers()[2]])
    batch = pa.record_batch({"instruction": wrong, "output": text})
    with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(tmp_path / "a.arrow", batch.schema) as out:
        out.write_batch(batch)
    kept, _, errors = ingest_here(tmp_path / "a.arrow", tmp_path / "work")
    assert kept == 0 and "a.arrow" in next(iter(errors.values()))


def test_a_process_that_dies_over_a_file_takes_no_other_with_it(tmp_path, monkeypatch):
    from raysift.pool import foreign_arrow

    table = pa.table({"messages": _messages(3)})
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as out:
        out.write_table(table)
    (tmp_path / "bin").write_text("#!/bin/sh\nkill -SEGV $$\n")
    (tmp_path / "bin").chmod(0o755)
    monkeypatch.setattr(foreign_arrow.sys, "executable", str(tmp_path / "bin"))
    with pytest.raises(BadFile, match=r"a\.arrow: .*ended the process .*signal 11"):
        plan_file(find_files([str(tmp_path / "a.arrow")])[0], 2**20)
