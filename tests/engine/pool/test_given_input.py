"""Alpaca's input from a record to the prompt: ids as before, the two published prompts, every layout that has an input."""

import json

import pyarrow as pa
import pytest

from raysift.pool.export import write_rows
from raysift.pool.given_input import INPUT, conversation_of, join_input, mark_input, split_input
from raysift.records import ID, MESSAGES, META, ROWS
from raysift.storage import open_location
from raysift.templates import encode_conversation, encode_prompt

from ...tiny_models import byte_tokenizer  # noqa: TID252
from .test_formats import _ingest

RECORDS = [
    {"instruction": "Sort.", "input": "b a", "output": "a b"},
    {"instruction": "Say hi.", "input": "", "output": "hi"},
    {"instruction": "Two\n\nparagraphs, no input.", "output": "yes"},
    {"instruction": "Two\n\nparagraphs.", "input": "And\n\ntwo more.", "output": "yes"},
    {"instruction": "", "input": "nothing but an input", "output": "fine"},
    {"instruction": "Go on.", "input": "x", "output": "y", "history": [["Sort.\n\nb a", "a b"]], "kind": 7},
]

# Spelled as tatsu-lab/stanford_alpaca and CASIA-LM/MoDS publish them (PROMPT_DICT).
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
WITHOUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


def published(record):
    return WITH_INPUT.format_map(record) if record.get("input", "") != "" else WITHOUT.format_map(record)


def test_prompts_and_trained_texts_are_those_of_stanford(tmp_path):
    tokenizer = byte_tokenizer(None)
    rows, _ = _ingest(tmp_path, RECORDS)
    for row, record in zip(rows[:5], RECORDS[:5], strict=True):
        messages = conversation_of(row)
        whole = encode_conversation(tokenizer, messages, 10_000, "alpaca")
        text = published(record) + record["output"] + "<|end|>"
        assert tokenizer.decode(encode_prompt(tokenizer, messages[:-1], "alpaca")) == published(record)
        assert tokenizer.decode(whole.input_ids) == text
        counted = [token for token, label in zip(whole.input_ids, whole.labels, strict=True) if label >= 0]
        assert tokenizer.decode(counted) == record["output"] + "<|end|>"


def test_an_input_is_the_last_questions_also_after_others(tmp_path):
    (row,), _ = _ingest(tmp_path, RECORDS[5:])
    messages = conversation_of(row)
    assert [message.get(INPUT) for message in messages] == [None, None, "x", None]
    text = byte_tokenizer(None).decode(encode_conversation(byte_tokenizer(None), messages, 10_000, "alpaca").input_ids)
    assert text.count("### Input:") == 1 and "### Instruction:\nSort.\n\nb a\n\n### Response:a b" in text
    assert text.endswith("### Instruction:\nGo on.\n\n### Input:\nx\n\n### Response:y<|end|>")
    assert json.loads(row[META]) == {"input": "x", "kind": 7}


@pytest.mark.parametrize("template", ["auto", "chatml", "tulu"])
def test_other_templates_pass_the_input_over(tmp_path, template):
    tokenizer = byte_tokenizer()
    rows, _ = _ingest(tmp_path, RECORDS)
    for row in rows:
        marked, plain = (
            encode_conversation(tokenizer, m, 10_000, template) for m in (conversation_of(row), row[MESSAGES])
        )
        assert marked == plain


def test_ids_and_messages_do_not_know_of_the_input_and_meta_has_it_where_there_is_one(tmp_path):
    joined = [
        {"messages": [{"role": "user", "content": join_input(r["instruction"], r.get("input", ""))}, _answer(r)]}
        for r in RECORDS[:5]
    ]
    rows, others = (_ingest(tmp_path, records)[0] for records in (RECORDS[:5], joined))
    for row, other in zip(rows, others, strict=True):
        assert (row[ID], row[MESSAGES], other[META]) == (other[ID], other[MESSAGES], None)
    assert [row[META] and json.loads(row[META]) for row in rows] == [
        {"input": "b a"}, None, None, {"input": "And\n\ntwo more."}, {"input": "nothing but an input"}
    ]  # fmt: skip


def _answer(record):
    return {"role": "assistant", "content": record["output"]}


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "q", "instances": [{"input": "i", "output": "a"}, {"input": "", "output": "b"}], "name": "n"},
        {"instruction": "q", "input": "i", "chosen": "a", "rejected": "b"},
    ],
    ids=["self_instruct", "preference"],
)
def test_other_layouts_with_an_input_keep_it_too(tmp_path, record):
    rows, problems = _ingest(tmp_path, [record])
    assert not problems
    assert [split_input(conversation_of(row)[0]) for row in rows] == [("q", "i"), ("q", "")][: len(rows)]
    assert all(json.loads(row[META]).keys() - {"input"} == record.keys() & {"name", "rejected"} for row in rows)


def test_an_instances_own_input_counts_beside_a_column_of_that_name(tmp_path):
    instances = [{"input": "i", "output": "a"}, {"input": "", "output": "b"}]
    rows, _ = _ingest(tmp_path, [{"instruction": "q", "input": "none of these", "instances": instances}])
    assert [split_input(conversation_of(row)[0]) for row in rows] == [("q", "i"), ("q", "")]


def test_renamed_columns_and_tables_have_inputs_as_well(tmp_path):
    import pyarrow.parquet as pq

    from .test_formats import _normalise

    path = tmp_path / "pool.parquet"
    pq.write_table(pa.table({"task": ["q", "q"], "given": ["i", None], "output": ["a", "b"]}), path)
    rows, _ = _normalise(path, columns={"instruction": "task", "input": "given"})
    assert [split_input(conversation_of(row)[0]) for row in rows] == [("q", "i"), ("q", "")]


@pytest.mark.parametrize(
    "meta", [None, "{}", '{"input":7}', '{"input":""}', '{"input":"other"}', '{"k":"\\"input\\""}']
)
def test_a_column_of_that_name_that_is_no_input_does_no_harm(meta):
    messages = [{"role": "user", "content": "q\n\ni"}, {"role": "assistant", "content": "a"}]
    assert conversation_of({MESSAGES: messages, META: meta}) == messages
    assert conversation_of({MESSAGES: messages}) == messages
    assert mark_input([], "i") == []


def test_alpaca_records_come_out_as_they_went_in(tmp_path):
    rows, _ = _ingest(tmp_path, RECORDS)
    table = pa.Table.from_pylist(rows).select(ROWS.names).cast(ROWS)
    write_rows([table], open_location(tmp_path / "out.jsonl"), "alpaca")
    for line, record in zip((tmp_path / "out.jsonl").read_text().splitlines(), RECORDS, strict=True):
        written = {key: value for key, value in json.loads(line).items() if key != "system"}
        assert written == {"input": "", "history": []} | {k: v for k, v in record.items() if k != "kind"}


def test_real_alpaca_rows_get_their_published_prompts(shared_data, tmp_path):
    tokenizer = byte_tokenizer(None)
    records = json.loads((shared_data / "formats/alpaca_data.json").read_text())[:3000]
    rows, problems = _ingest(tmp_path, records)
    prompts = {published(record) for record in records}
    assert len(rows) + len(problems) == len(records)
    assert sum(INPUT in conversation_of(row)[0] for row in rows) > 500
    for row in rows:
        assert tokenizer.decode(encode_prompt(tokenizer, conversation_of(row)[:-1], "alpaca")) in prompts
