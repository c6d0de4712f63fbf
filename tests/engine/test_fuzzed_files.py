"""1,200 mutations of files of every kind, in bytes and in records: each is read or refused in words, and none is lost."""

import csv
import gzip
import io
import json
import random

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysift.errors import RaysiftError
from raysift.jobs.pool import ingest_tasks
from raysift.pool.checks import IngestConfig
from raysift.pool.files import find_files
from raysift.storage import open_location

CASES = 150  # of each seed
ROWS = 60


def _ask(n):
    return f"Question {n}: what is {n} + {n}, é日\U0001f600?"


def _messages(n, role="role", content="content"):
    return [{role: "user", content: _ask(n)}, {role: "assistant", content: f'It is "{2 * n}",\nof course.'}]


ALPACA = [{"instruction": _ask(n), "input": "x" * (n % 3), "output": f"It is {2 * n}."} for n in range(ROWS)]
RECORDS = {
    "alpaca": ALPACA,
    "messages": [{"messages": _messages(n), "source": "s", "meta": {"n": n}} for n in range(ROWS)],
    "sharegpt": [{"conversations": _messages(n, "from", "value"), "tools": [{"name": "t"}]} for n in range(ROWS)],
    "preference": [{"prompt": _ask(n), "chosen": f"{2 * n}", "rejected": "no"} for n in range(ROWS)],
    "completion": [{"prompt": _ask(n), "completion": f"{2 * n}", "score": n / 7} for n in range(ROWS)],
}


def _zstd(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def _sheet(delimiter):
    sheet = io.StringIO(newline="")
    writer = csv.DictWriter(sheet, list(ALPACA[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ALPACA)
    return sheet.getvalue().encode()


def _parquet(table):
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=20)
    return sink.getvalue()


def _arrow(table, new):
    sink = io.BytesIO()
    with new(sink, table.schema) as out:
        out.write_table(table, 20)
    return sink.getvalue()


def _base_files():
    bases = {}
    for name, records in RECORDS.items():
        bases[f"{name}.jsonl"] = b"".join(orjson.dumps(record) + b"\n" for record in records)
        bases[f"{name}.json"] = json.dumps(records, ensure_ascii=False, indent=2 if name == "alpaca" else None).encode()
    table, plain = pa.Table.from_pylist(RECORDS["messages"]), pa.Table.from_pylist(ALPACA)
    bases |= {"a.csv": _sheet(","), "a.tsv": _sheet("\t"), "m.parquet": _parquet(table), "a.parquet": _parquet(plain)}
    bases |= {"m.arrow": _arrow(table, pa.ipc.new_file), "s.arrow": _arrow(table, pa.ipc.new_stream)}
    bases |= {f"{name}.gz": gzip.compress(bases[name], mtime=0) for name in ("alpaca.jsonl", "alpaca.json", "a.csv")}
    return bases | {"messages.jsonl.zst": _zstd(bases["messages.jsonl"])}


BASES = _base_files()
BITS = [b"\0", b"\xef\xbb\xbf", b"\xff", b"\xed\xa0\x80", b"\r", b"\n", b"\r\n", b"\x85", b'"', b"\\", b"{", b"}"]
BITS += [b"[", b"]", b",", b":", b"\\ud800", b"NaN", b"1e999", b"9" * 5000, b"[" * 3000, b"\0" * 4096, b";", b"\x1b[2J"]
HEADS = [b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf" * 2, b"\n\n\n", b" \t\r\n", b"\0", b"# comment\n"]
TAILS = [b"\0" * 100, b"garbage", b"]", b"}", b"\n\n\n", b",", b"{", b'{"instruction": "x"']


def _mutated(data, draw):
    at, size = draw.randrange(len(data)), draw.choice([1, 2, 10, 1000])
    match draw.randrange(13):
        case 0:
            return data[:at]
        case 1:
            changed = bytearray(data)
            for _ in range(draw.choice([1, 2, 5, 20, 200])):
                changed[draw.randrange(len(data))] = draw.randrange(256)
            return bytes(changed)
        case 2:
            return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
        case 3:
            return data[:at] + data[at + size :]
        case 4:
            return data[: at + size] + data[at : at + size] + data[at + size :]
        case 5 | 6:
            return data[:at] + draw.choice(BITS) + data[at:]
        case 7:
            return draw.choice(HEADS) + data
        case 8:
            return data.replace(b"\n", draw.choice([b"\r\n", b"\r", b"\n\n", b"\n \n"]))
        case 9:
            return data + draw.choice([*TAILS, data[:300]])
        case 10:
            coding = draw.choice(["utf-16", "utf-16-le", "utf-32", "latin-1"])
            return data.decode("utf-8", "replace").encode(coding, "replace")
        case 11:
            parts = [data[start : start + 997] for start in range(0, len(data), 997)]
            draw.shuffle(parts)
            return b"".join(parts)
        case _:
            other = draw.choice(list(BASES.values()))
            return data[: len(data) // 2] + other[len(other) // 2 :]


VALUES = [
    None,
    0,
    -1,
    1.5,
    True,
    "",
    " ",
    "\u200b",
    [],
    {},
    [[]],
    [None],
    {"a": {"b": []}},
    "\0",
    2**63,
    2**64,
    10**400,
]
VALUES += [
    ["a"],
    [{"role": "user"}],
    {"role": "user", "content": "hi"},
    "null",
    "[]",
    "{}",
    "\u2028",
    "\ufeff",
    {"value": 3},
]
VALUES += [[{"type": "image_url"}], [{"type": "text", "text": None}], [{"tool_calls": [{"function": 3}], "role": "x"}]]
KEYS = ["messages", "conversations", "instruction", "input", "output", "prompt", "completion", "response", "chosen"]
KEYS += ["rejected", "system", "history", "tools", "source", "meta", "id", "raw", "label", "", " ", "\0", "position"]
ENDS = [
    ', "k": NaN}',
    ', "k": 1e999}',
    ', "k": "\\ud800"}',
    f', "k": {"9" * 5000}}}',
    ', "instruction": "two"}',
    ', "k": 1,}',
]


def _changed(record, draw):
    record = json.loads(json.dumps(record))
    holder, key = record, draw.choice(list(record))
    while isinstance(holder[key], dict | list) and holder[key] and draw.random() < 0.7:
        holder = holder[key]
        key = draw.choice(list(holder)) if isinstance(holder, dict) else draw.randrange(len(holder))
    match draw.randrange(6):
        case 0 | 1:
            holder[key] = draw.choice(VALUES)
        case 2:
            del holder[key]
        case 3:
            record[draw.choice(KEYS)] = draw.choice(VALUES)
        case 4:
            deep = 1
            for _ in range(draw.choice([5, 100, 240, 260, 495, 520, 900])):
                deep = draw.choice([[deep], {"k": deep}])
            record[draw.choice(["extra", "meta", "tools", "source"])] = deep
        case _:
            return draw.choice(VALUES)
    return record


def _records_case(draw):
    name = draw.choice(list(RECORDS))
    chosen = set(draw.sample(range(ROWS), draw.choice([1, 1, 3, 10, ROWS])))
    texts = []
    for number, record in enumerate(RECORDS[name]):
        text = json.dumps(_changed(record, draw) if number in chosen else record, ensure_ascii=draw.random() < 0.5)
        if number in chosen and text.endswith("}") and len(text) > 2 and draw.random() < 0.2:
            text = text[:-1] + draw.choice(ENDS)
        texts.append(text.encode("utf-8", "surrogatepass"))
    return ("f.jsonl", b"\n".join(texts)) if draw.random() < 0.6 else ("f.json", b"[" + b",\n".join(texts) + b"]")


def _bytes_case(draw):
    name = draw.choice(list(BASES))
    data = BASES[name]
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        data = _mutated(data, draw) if data else data
    return "f" + name[name.index(".") :], data


def _ingest(path, work, config):
    """Records seen, rows, records that are none, and the error where the file is refused."""
    (file,) = find_files([str(path)])
    plan = ingest_tasks.plan_and_recognise(file, 4000, config)
    if isinstance(plan, RaysiftError):
        return 0, 0, 0, plan
    seen = rows = problems = 0
    for number, chunk in enumerate(plan[0].chunks):
        part = ingest_tasks.read_part(number, chunk, plan[1], config, work)
        if isinstance(part, RaysiftError):
            return 0, 0, 0, part
        seen += part["seen"]
        rows += sum(count for _, count in part["shards"])
        problems += sum(part["reasons"].values())
    return seen, rows, problems, None


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8))])
def test_no_mutation_ends_in_anything_but_rows_reasons_or_a_named_file(tmp_path, monkeypatch, seed):
    def expected_nothing(file, error):
        raise error

    monkeypatch.setattr(ingest_tasks, "_unexpected", expected_nothing)
    draw = random.Random(seed)
    read = 0
    for number in range(CASES):
        name, data = (_records_case if draw.random() < 0.5 else _bytes_case)(draw)
        (tmp_path / str(number)).mkdir()
        path = tmp_path / str(number) / name
        path.write_bytes(data)
        config = IngestConfig(trailing_user=draw.choice(["reject", "trim"]))
        seen, rows, problems, error = _ingest(path, open_location(tmp_path / str(number)), config)
        if error is not None:
            assert name in str(error), f"case {number} of seed {seed}"
            continue
        read += 1
        whole = seen
        if name == "f.jsonl" and not data.lstrip(b"\xef\xbb\xbf \n\r\t").startswith(b"["):
            lines = [line.lstrip(b"\xef\xbb\xbf") for line in data.split(b"\n")]
            whole = sum(bool(line) and not line.isspace() for line in lines)
        assert rows + problems == whole, f"case {number} of seed {seed}"
    assert read > CASES / 4, "most mutations leave a file that can be read"
