"""Selected rows in the shape a trainer reads: messages, alpaca, sharegpt, each record as it came, or Parquet.

`messages` records hold id, source, messages and meta (JSON text, so that records of many origins have one schema), and, where a
row has tools, their JSON text in a column `tools`, where TRL and LLaMA-Factory look for it. `original` gives back each record's
own text, byte for byte where it came from JSON lines; a row that had none (plain messages in Parquet) is rebuilt from messages,
source and meta. `alpaca` knows no tools: a row with a tool's message is an error, not a guess.

Beside the file lie `dataset_info.json` for LLaMA-Factory and a dataset card. The file's name ends with a hash of its content:
`datasets` keeps what it has loaded under the names of files, and would give the rows of one selection for those of another.

Ingested again, `messages` and `parquet` give the same rows (id, source, messages, meta; `parquet` the original text, too),
`alpaca` the same but for source and meta, of which it keeps the input, and `sharegpt` ids and messages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from raysift.errors import ConfigError, DataError
from raysift.fingerprint import file_fingerprint
from raysift.pool.card import Card, write_card
from raysift.pool.given_input import conversation_of, split_input
from raysift.pool.id_text import id_text
from raysift.pool.json_text import dump, original_text
from raysift.pool.llama_factory import ALPACA, OUR_TAGS, Entry, RecordShape
from raysift.records import ID, MESSAGES, META, RAW, ROWS, SOURCE, TOOLS
from raysift.storage import Location

Row = dict[str, Any]
BATCH_ROWS = 2000
INFO = "dataset_info.json"
SHAREGPT_NAMES = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def write_export(files: Sequence[Location], folder: Location, shape: str, card: Card) -> list[Location]:
    """Write the rows of Parquet files (records.ROWS), in their order, with dataset_info.json and a card."""
    tools = shape == "messages" and _have_tools(files)
    found = RecordShape()
    draft = folder / "draft"
    count = write_rows(read_row_tables(files), draft, shape, tools, found.look_at if shape == "original" else None)
    name = f"{card.method}-{file_fingerprint(draft)[:8]}"
    data = folder / f"{name}.{'parquet' if shape == 'parquet' else 'jsonl'}"
    data.copy_from(draft)
    draft.delete()
    info, readme = folder / INFO, folder / "README.md"
    entry = found.entry(data.name) if shape == "original" else dataset_info(data.name, shape, tools)
    info.write(json.dumps({name: entry} if entry else {}, indent=2) + "\n")
    columns = found.fields if shape == "original" else COLUMNS[shape] + [TOOLS] * tools
    readme.write(write_card(card, data.name, shape, count, columns, entry))
    return [data, info, readme]


def write_rows(
    rows: Iterable[pa.RecordBatch | pa.Table],
    path: Location,
    shape: str = "messages",
    tools: bool = False,
    look_at: Callable[[bytes], None] | None = None,
) -> int:
    """Write rows (records.ROWS) to one file; gives their number. `tools` adds the column to `messages` records."""
    if shape == "parquet":
        return _write_parquet(rows, path)
    if shape not in SHAPES:
        raise ConfigError(
            f"export: output format '{shape}' is unknown. Known: {', '.join(sorted([*SHAPES, 'parquet']))}."
        )
    spell, count = as_messages_with_tools if tools else SHAPES[shape], 0
    with path.open_output() as stream:
        for row in _each(rows):
            text = spell(row)
            if look_at:
                look_at(text)
            stream.write(text + b"\n")
            count += 1
    return count


def read_row_tables(files: Sequence[Location]) -> Iterator[pa.Table]:
    """Rows of Parquet files, in order, a bounded number at a time."""
    for file in files:
        with file.open_input() as stream:
            for batch in pq.ParquetFile(stream).iter_batches(BATCH_ROWS, columns=ROWS.names):
                yield pa.Table.from_batches([batch])


def as_messages(row: Row) -> bytes:
    """id, source, messages and meta."""
    return dump(_messages_of(row))


def as_messages_with_tools(row: Row) -> bytes:
    """The same columns and the tools, null where a row has none."""
    return dump(_messages_of(row) | {TOOLS: _tools_of(row[META]) or None})


def _messages_of(row: Row) -> Row:
    return {ID: id_text(row[ID]), SOURCE: row[SOURCE], MESSAGES: row[MESSAGES], META: row[META] or "{}"}


def _tools_of(meta: str | None) -> str:
    """The row's tools as JSON text, empty where it has none."""
    tools = (orjson.loads(meta) if meta and f'"{TOOLS}"' in meta else {}).get(TOOLS) or ""
    return tools if isinstance(tools, str) else dump(tools).decode("utf-8")


def _have_tools(files: Sequence[Location]) -> bool:
    for file in files:
        with file.open_input() as stream:
            for batch in pq.ParquetFile(stream).iter_batches(BATCH_ROWS, columns=[META]):
                if any(map(_tools_of, batch[0].to_pylist())):
                    return True
    return False


def as_sharegpt(row: Row) -> bytes:
    """Conversations of from and value; an assistant's message that a tool answers is a function_call."""
    turns = row[MESSAGES]
    names = [SHAREGPT_NAMES[turn["role"]] for turn in turns]
    for number in range(len(turns) - 1):
        if names[number] == "gpt" and names[number + 1] == "observation":
            names[number] = "function_call"
    system = turns[0]["content"] if names[:1] == ["system"] else ""
    spoken = list(zip(names, turns, strict=True))[1 if system else 0 :]
    return dump(
        {
            "id": id_text(row[ID]),
            "conversations": [{"from": name, "value": turn["content"]} for name, turn in spoken],
            "system": system,
            "tools": _tools_of(row[META]),
        }
    )


def as_alpaca(row: Row) -> bytes:
    """The last question and answer as instruction, input and output, what was said before them as system and history."""
    turns = [(turn["role"], turn["content"]) for turn in row[MESSAGES]]
    system = "\n".join(content for role, content in turns if role == "system")
    spoken = [turn for turn in turns if turn[0] != "system"]
    asks, answers = spoken[0::2], spoken[1::2]
    in_turn = all(role == "user" for role, _ in asks) and all(role == "assistant" for role, _ in answers)
    if not spoken or len(asks) != len(answers) or not in_turn:
        raise DataError(
            f"export: row {id_text(row[ID])} is no alternation of user and assistant ({', '.join(role for role, _ in turns)}), "
            "which alpaca records cannot hold. Use the output format messages, sharegpt or original."
        )
    pairs = [[ask, answer] for (_, ask), (_, answer) in zip(asks, answers, strict=True)]
    asked = [turn for turn in conversation_of(row) if turn["role"] == "user"][-1]
    instruction, given = split_input(asked)
    record = {"instruction": instruction, "input": given, "output": pairs[-1][1], "system": system}
    return dump(record | {"history": pairs[:-1]})


def as_original(row: Row) -> bytes:
    """The record's own text."""
    return str(row[RAW] if row[RAW] is not None else original_text(row)).encode("utf-8")


SHAPES: dict[str, Callable[[Row], bytes]] = {
    "messages": as_messages,
    "sharegpt": as_sharegpt,
    "alpaca": as_alpaca,
    "original": as_original,
}


COLUMNS = {
    "messages": [ID, SOURCE, MESSAGES, META],
    "sharegpt": ["id", "conversations", "system", "tools"],
    "alpaca": ["instruction", "input", "output", "system", "history"],
    "parquet": ROWS.names,
}


def dataset_info(file: str, shape: str, tools: bool = False) -> Entry:
    """What LLaMA-Factory needs to know about a file of a shape of ours."""
    if shape == "alpaca":
        return {"file_name": file, "columns": ALPACA}
    if shape == "sharegpt":
        columns = {"messages": "conversations", "system": "system", "tools": "tools"}
        return {"file_name": file, "formatting": "sharegpt", "columns": columns}
    columns = {"messages": MESSAGES} | ({"tools": TOOLS} if tools else {})
    return {"file_name": file, "formatting": "sharegpt", "columns": columns, "tags": OUR_TAGS}


def _write_parquet(rows: Iterable[pa.RecordBatch | pa.Table], path: Location) -> int:
    count = 0
    with path.open_output() as stream, pq.ParquetWriter(stream, ROWS, compression="zstd") as writer:
        for group in _even(rows):
            writer.write_table(group)
            count += len(group)
    return count


def _even(rows: Iterable[pa.RecordBatch | pa.Table]) -> Iterator[pa.Table]:
    """The rows in tables of BATCH_ROWS, so that a file's bytes do not depend on how its rows were handed over."""
    held = ROWS.empty_table()
    for part in rows:
        table = part if isinstance(part, pa.Table) else pa.Table.from_batches([part])
        held = pa.concat_tables([held, table.select(ROWS.names).cast(ROWS)])
        while len(held) >= BATCH_ROWS:
            yield held.slice(0, BATCH_ROWS).combine_chunks()
            held = held.slice(BATCH_ROWS)
    if len(held):
        yield held.combine_chunks()


def _each(rows: Iterable[pa.RecordBatch | pa.Table]) -> Iterator[Row]:
    for part in rows:
        for start in range(0, part.num_rows, BATCH_ROWS):
            yield from part.slice(start, BATCH_ROWS).to_pylist()
