"""Layouts: each kind of record becomes the conversation it means, or says why not; checks name their reason."""

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from raysift.errors import ConfigError
from raysift.pool.checks import FAILURES, REASONS, IngestConfig, find_reasons, trim_trailing
from raysift.pool.chunks import plan_file
from raysift.pool.files import find_files
from raysift.pool.formats import LAYOUTS, recognise
from raysift.pool.normalise import Normaliser
from raysift.pool.pairs import PAIR_PROBLEMS, read_pairs
from raysift.pool.reading import read_chunk
from raysift.pool.row_ids import row_id
from raysift.records import ROLES, Message

USER, ANSWER = {"role": "user", "content": "q\n\ni"}, {"role": "assistant", "content": "a"}

SAME = {
    "alpaca": {"instruction": "q", "input": "i", "output": "a"},
    "messages": {"messages": [USER, ANSWER]},
    "parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "q\n"}, {"type": "text", "value": "\ni"}]},
            {"role": "assistant", "content": {"type": "text", "text": "a"}},
        ]
    },
    "messages as text": {"messages": json.dumps([USER, ANSWER])},
    "kto": {"messages": [USER, ANSWER], "label": True},
    "sharegpt": {"conversations": [{"from": "human", "value": "q\n\ni"}, {"from": "gpt", "value": "a"}]},
    "prompt_completion": {"prompt": "q\n\ni", "completion": "a"},
    "prompt_response": {"prompt": [USER], "response": [ANSWER]},
    "self_instruct": {"instruction": "q", "instances": [{"input": "i", "output": "a"}]},
    "preference": {"prompt": "q\n\ni", "chosen": "a", "rejected": "b"},
    "implicit": {"chosen": [USER, ANSWER], "rejected": [USER, {"role": "assistant", "content": "b"}]},
    "repeated prompt": {"prompt": [USER], "chosen": [USER, ANSWER], "rejected": [USER, ANSWER]},
    "dpo": {
        "conversations": [{"from": "human", "value": "q\n\ni"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    },
    "prompt_messages": {"prompt": "Human: q", "prompt_messages": [USER], "chosen": "a", "rejected": "b"},
}


def _ingest(tmp_path, records, **settings):
    """Rows and problems of records written as JSON lines; a record may be given as text."""
    path = tmp_path / "pool.jsonl"
    lines = [
        r if isinstance(r, bytes) else r.encode() if isinstance(r, str) else json.dumps(r).encode() for r in records
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return _normalise(path, **settings)


def _normalise(path, **settings):
    config = IngestConfig(**settings)
    rows, problems = [], []
    for file in find_files([str(path)]):
        plan = plan_file(file, 2**22)
        normalise = Normaliser(file, recognise(plan.columns, config.format, config.columns, file.name), config)
        for chunk in plan.chunks:
            for batch in read_chunk(chunk):
                result = normalise(batch)
                rows += result.rows.to_pylist()
                problems += result.problems
    return rows, problems


@pytest.mark.parametrize("name", SAME)
def test_every_layout_gives_the_same_id(tmp_path, name):
    rows, problems = _ingest(tmp_path, [SAME[name]])
    assert not problems
    assert [row["id"] for row in rows] == [row_id([Message("user", "q\n\ni"), Message("assistant", "a")])]
    assert rows[0]["raw"] == json.dumps(SAME[name])


def test_tools_system_and_history_find_their_place(tmp_path):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    rows, _ = _ingest(
        tmp_path,
        [
            {"system": "S", "tools": "[]", "conversations": [
                {"from": "human", "value": "q"}, {"from": "function_call", "value": "f"},
                {"from": "observation", "value": "o"}, {"from": "gpt", "value": "a"}]},
        ],
    )  # fmt: skip
    assert [m["role"] for m in rows[0]["messages"]] == ["system", "user", "assistant", "tool", "assistant"]
    assert json.loads(rows[0]["meta"]) == {"tools": "[]"}
    rows, _ = _ingest(
        tmp_path,
        [{"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]},
                       {"role": "tool", "content": "7"}, ANSWER]}],
    )  # fmt: skip
    assert rows[0]["messages"][1] == {"role": "assistant", "content": '{"name":"f","arguments":{"x":1}}'}
    rows, _ = _ingest(
        tmp_path, [{"instruction": "q", "input": "", "output": "a", "system": "S", "history": [["h", "g"]]}]
    )
    assert [m["content"] for m in rows[0]["messages"]] == ["S", "h", "g", "q", "a"]


def test_an_instance_of_a_nested_task_is_a_row_of_its_own(tmp_path):
    task = {"name": "t", "instruction": "q", "instances": [{"input": "", "output": "1"}, {"input": "x", "output": "2"}]}
    rows, _ = _ingest(tmp_path, [task])
    assert [(r["messages"][0]["content"], r["meta"]) for r in rows] == [
        ("q", '{"name":"t"}'),
        ("q\n\nx", '{"input":"x","name":"t"}'),
    ]


BAD = [
    (b'{"messages": [{"role": "user", "content": "\xff"}]}', "broken_utf8"),
    (r'{"messages": [{"role": "user", "content": "\ud800"}]}', "broken_utf8"),
    ('{"messages": [', "not_json"),
    ("[1]", "wrong_type"),
    ({"messages": None}, "wrong_type"),
    ({"messages": "hello"}, "wrong_type"),
    ({"messages": [1]}, "wrong_type"),
    ({"messages": [{"role": "user"}]}, "wrong_type"),
    ({"messages": [{"role": 1, "content": "x"}]}, "wrong_type"),
    ({"messages": [{"role": "user", "content": 3}, ANSWER]}, "wrong_type"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, ANSWER]},
        "unsupported_content",
    ),
    ({"other": 1}, "wrong_type"),
    ({"messages": []}, "no_messages"),
    ({"messages": [{"role": "narrator", "content": "x"}, ANSWER]}, "unknown_role"),
    ({"messages": [USER]}, "no_assistant"),
    ({"messages": [USER, ANSWER, USER]}, "ends_with_user"),
    ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "empty_response"),
    ({"messages": [{"role": "user", "content": " "}, ANSWER]}, "empty_prompt"),
    ({"messages": [ANSWER]}, "empty_prompt"),
    ({"messages": [{"role": "user", "content": "x" * 300}, ANSWER]}, "too_long"),
]


def test_every_bad_record_has_its_reason_and_none_takes_a_good_one_along(tmp_path):
    good = {"messages": [USER, ANSWER]}
    records = [good, *[record for record, _ in BAD], good]
    rows, problems = _ingest(tmp_path, records, max_chars=200)
    assert [row["position"] for row in rows] == [0, len(records) - 1]
    assert [(p.position, p.reason) for p in sorted(problems, key=lambda p: p.position)] == [
        (number, reason) for number, (_, reason) in enumerate(BAD, 1)
    ]
    assert {problem.reason for problem in problems} <= REASONS.keys() and REASONS.keys() >= FAILURES
    assert all(problem.raw for problem in problems), "what is not a row is still stored"


def test_messages_of_errors_hold_no_text_of_rows(tmp_path):
    _, problems = _ingest(
        tmp_path, [SAME["messages"], *({"messages": [{"role": "user", "content": {"secret": 1}}]},) * 2, '{"secret'],
    )  # fmt: skip
    assert len(problems) == 3 and not any("secret" in problem.message for problem in problems)


def test_columns_and_records_come_to_the_same_rows(tmp_path):
    import pyarrow.parquet as pq

    records = [
        {"id": 'x"1', "n": 1, "subset": None, "source": "s", "messages": [USER, ANSWER]},
        {"id": "x2", "n": None, "subset": "é", "source": None, "messages": [USER, ANSWER, USER]},
        {"id": "x3", "n": 3, "subset": "t", "source": "", "messages": [USER, {"role": "assistant", "content": " "}]},
    ]
    rows, problems = _ingest(tmp_path, records)
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "pool.parquet")
    columnar, columnar_problems = _normalise(tmp_path / "pool.parquet")
    assert columnar == [{**row, "raw": None} for row in rows]
    assert [(p.position, p.reason) for p in columnar_problems] == [(p.position, p.reason) for p in problems]


@pytest.mark.parametrize("poison", [None, b"\xff"])
def test_a_broken_value_in_a_column_fails_alone(tmp_path, poison):
    import pyarrow.parquet as pq

    contents = pa.array([b"q", b"a", b"q", poison, b"q", b"b"], pa.binary()).view(pa.string())
    structs = pa.StructArray.from_arrays([pa.array(["user", "assistant"] * 3), contents], ["role", "content"])
    lists = pa.ListArray.from_arrays(pa.array([0, 2, 4, 6], pa.int32()), structs)
    pq.write_table(pa.table({"messages": lists, "k": [1, 2, 3]}), tmp_path / "pool.parquet")
    rows, problems = _normalise(tmp_path / "pool.parquet")
    assert [row["position"] for row in rows] == [0, 2]
    assert [(p.position, p.reason) for p in problems] == [(1, "wrong_type" if poison is None else "broken_utf8")]


def test_trailing_turns_can_be_cut_instead(tmp_path):
    records = [{"messages": [USER, ANSWER, USER]}, {"messages": [USER]}, {"messages": [USER, ANSWER]}]
    rows, problems = _ingest(tmp_path, records, trailing_user="trim")
    assert rows[0]["id"] == rows[1]["id"] and rows[0]["raw"] == json.dumps(records[0])
    assert [problem.reason for problem in problems] == ["no_assistant"]


def test_checks_agree_with_a_slow_reference():
    draw = np.random.default_rng(0)
    conversations = [
        [
            (int(draw.integers(-1, 4)), str(draw.choice(["", " ", "x", "longer text"])))
            for _ in range(draw.integers(0, 5))
        ]
        for _ in range(500)
    ]
    config = IngestConfig(max_chars=20, min_response_chars=2)

    def slow(turns):
        answers = [n for n, (code, _) in enumerate(turns) if code == ROLES.index("assistant")]
        if not turns:
            return "no_messages"
        if any(code < 0 for code, _ in turns):
            return "unknown_role"
        if not answers:
            return "no_assistant"
        if answers[-1] != len(turns) - 1:
            return "ends_with_user"
        if not turns[-1][1].strip():
            return "empty_response"
        if not any(text.strip() for code, text in turns[:-1] if code != ROLES.index("assistant")):
            return "empty_prompt"
        if len(turns[-1][1]) < 2:
            return "too_short"
        return "too_long" if sum(len(text) for _, text in turns) > 20 else None

    codes = np.array([code for turns in conversations for code, _ in turns], np.int8)
    contents = pa.array([text for turns in conversations for _, text in turns], pa.string())
    offsets = np.cumsum([0] + [len(turns) for turns in conversations])
    reasons = find_reasons(codes, contents, offsets, config)
    assert reasons.tolist() == [slow(turns) for turns in conversations]
    assert len(Counter(reasons)) == 9, "every reason occurs"
    keep, cut = trim_trailing(codes, offsets)
    assert cut[-1] == keep.sum() < len(codes)


def test_named_columns_stand_in_for_the_usual_ones(tmp_path):
    records = [{"question": "q", "context": "i", "response": "a", "kind": "k"}]
    rows, _ = _ingest(
        tmp_path, records, columns={"instruction": "question", "input": "context", "output": "response"}, source="kind"
    )
    assert rows[0]["id"] == row_id([Message("user", "q\n\ni"), Message("assistant", "a")])
    assert rows[0]["source"] == "k" and rows[0]["raw"] == json.dumps(records[0])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"columns": {"instruction": "nope"}}, r"no column 'nope'.*found: question, response"),
        ({"format": "alpaca"}, r"does not look like 'alpaca'.*instruction \+ output.*found: question"),
        ({"format": "alpacca"}, "format 'alpacca' is unknown. Known: auto, alpaca"),
        ({}, r"no known layout \(found: question, response\)"),
    ],
)
def test_unknown_columns_and_formats_are_named_with_what_is_there(tmp_path, settings, said):
    with pytest.raises(ConfigError, match=said):
        _ingest(tmp_path, [{"question": "q", "response": "a"}], **settings)


def test_source_is_a_column_a_name_or_the_file(tmp_path):
    record = {**SAME["alpaca"], "source": "web", "kind": 7}
    assert [_ingest(tmp_path, [record], **s)[0][0]["source"] for s in ({}, {"source": "kind"}, {"source": "mine"})] == [
        "web", "7", "mine",
    ]  # fmt: skip
    assert _ingest(tmp_path, [SAME["alpaca"]])[0][0]["source"] == "pool"


def test_each_layout_claims_its_own_records():
    names = {name: recognise(record, "auto", {}, "f").name for name, record in SAME.items()}
    assert set(names.values()) == LAYOUTS.keys()
    assert (names["kto"], names["dpo"], names["self_instruct"]) == ("messages", "preference", "self_instruct")


def _pairs(tmp_path, records, **settings):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records))
    reader = read_pairs(str(path), **settings)
    return list(reader), reader


@pytest.mark.parametrize("name", ["preference", "implicit", "dpo", "prompt_messages"])
def test_pairs_of_all_layouts_are_the_same_pair(tmp_path, name):
    pairs, _ = _pairs(tmp_path, [SAME[name]])
    assert [(p.prompt, p.chosen, p.rejected) for p in pairs] == [((Message("user", "q\n\ni"),), "a", "b")]


def test_transcripts_share_their_beginning(tmp_path):
    start = "\n\nHuman: one\n\nAssistant: two\n\nHuman: three\n\nAssistant:"
    pairs, _ = _pairs(tmp_path, [{"chosen": start + " yes", "rejected": start + " no"}])
    assert [(m.role, m.content) for m in pairs[0].prompt] == [("user", "one"), ("assistant", "two"), ("user", "three")]
    assert (pairs[0].chosen, pairs[0].rejected) == ("yes", "no")


def test_records_without_a_pair_are_counted_by_reason(tmp_path):
    ask = "\n\nHuman: q\n\nAssistant:"
    pairs, reader = _pairs(
        tmp_path,
        [
            SAME["preference"],
            {"prompt": "q", "chosen": "a", "rejected": "a "},
            {"prompt": "q", "chosen": "", "rejected": "a"},
            {"prompt": "q", "chosen": "a", "rejected": " "},
            {"prompt": "q", "chosen": "a", "rejected": None},
            {"chosen": "a", "rejected": "b"},
            {"prompt": "q", "chosen": 1, "rejected": "b"},
            {"chosen": ask + " a", "rejected": ask + " b\n\nHuman: more\n\nAssistant: c"},
            {"prompt": [{"role": "narrator", "content": "q"}], "chosen": "a", "rejected": "b"},
            "{",
        ],
    )
    assert len(pairs) == reader.pairs == 1
    assert reader.problems == {
        "identical": 1, "empty_chosen": 1, "empty_rejected": 1, "one_sided": 1, "no_prompt": 1,
        "wrong_type": 1, "diverges_early": 1, "unknown_role": 1, "not_json": 1,
    }  # fmt: skip
    assert reader.problems.keys() <= PAIR_PROBLEMS.keys()
    assert reader.places[0].endswith("pairs.jsonl, line 2: identical")
    assert list(reader) == pairs, "a reader can be read again"


def test_subtasks_come_from_a_named_column(tmp_path):
    record = {**SAME["preference"], "domain": "math", "meta": '{"k": 1}'}
    assert _pairs(tmp_path, [record])[0][0].subtask == "all"
    pair = _pairs(tmp_path, [{**record, "input": "i"}], subtask="domain")[0][0]
    assert pair.meta == {"k": 1, "input": "i", "domain": "math"}
    assert pair.subtask == "math" and pair.meta["k"] == 1
    with pytest.raises(ConfigError, match=r"no column for \['nope'\]"):
        _pairs(tmp_path, [record], subtask="nope")
    with pytest.raises(ConfigError, match="no column for"):
        _pairs(tmp_path, [SAME["alpaca"]])


REAL_ROWS = {
    "real_hh_chosen_rejected_transcripts.jsonl": ("preference", 500, {}),
    "real_messages_content_parts.jsonl": ("messages", 500, {}),
    "real_messages_kto_label.json": ("messages", 300, {}),
    "real_self_instruct_seed_tasks_nested.jsonl": ("self_instruct", 175, {}),
    "real_sharegpt_dpo_pairs.json": ("preference", 300, {}),
    "real_sharegpt_identity.json": ("sharegpt", 500, {}),
    "real_sharegpt_multiturn.jsonl": ("sharegpt", 993, {"ends_with_user": 6, "no_assistant": 1}),
    "real_sharegpt_toolcall.json": ("sharegpt", 300, {}),
    "real_t0_prompt_completion_eot.jsonl": ("prompt_completion", 400, {}),
}


@pytest.mark.parametrize("name", REAL_ROWS)
def test_real_files_load(shared_data, name):
    path = shared_data / "formats" / name
    layout, kept, reasons = REAL_ROWS[name]
    assert recognise(plan_file(find_files([str(path)])[0], 2**22).columns, "auto", {}, name).name == layout
    rows, problems = _normalise(path)
    assert len(rows) == kept and Counter(problem.reason for problem in problems) == reasons


def test_seven_spellings_of_2000_conversations_have_the_same_ids(shared_data):
    files = sorted((shared_data / "formats").glob("same2k_*"))
    ids = {tuple(row["id"] for row in _normalise(path)[0]) for path in files}
    assert len(files) == 7 and len(ids) == 1 and len(set(ids.pop())) == 2000


def test_real_preferences_load_and_degenerate_ones_are_counted(shared_data):
    found = {}
    for path in sorted((shared_data / "preferences").glob("*.parquet")):
        reader = read_pairs(str(path), subtask="domain")
        assert {type(pair.prompt[0]) for pair in reader} == {Message}
        found[path.stem] = (reader.pairs, dict(reader.problems))
    assert found["hh_helpful_base"] == (2339, {"empty_rejected": 4, "identical": 2})
    assert found["hh_harmless_base"] == (2303, {"empty_chosen": 4})
    assert found["gsm8k_solutions"] == (3274, {})
