"""Evaluation files: the shared ones whole, small ones in every format, and broken ones by their messages."""

import gzip
import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysift.errors import DataError
from raysift.evaluation.examples import example_key, read_examples, reference_answer, sample_examples
from raysift.records import Message

RECORDS = [
    {"id": "a", "task": "sums", "split": "test", "prompt": "1 + 1?", "reference": "2", "metric": "numeric_match"},
    {
        "id": "b",
        "split": "dev",
        "prompt": [{"role": "system", "content": "Short."}, {"role": "user", "content": "Sky?"}],
        "choices": ["blue", "red"],
        "answer_index": 0,
        "metric": "mc_accuracy",
        "meta": {"from": "x"},
    },
    {"id": "c", "split": "test", "prompt": "Write a poem.", "metric": "judge"},
]


def write(path, records):
    if path.name.endswith(".parquet"):
        rows = [dict.fromkeys(("task", "reference", "choices", "answer_index", "meta")) | record for record in records]
        rows = [r | {"meta": json.dumps(r["meta"]), "prompt": r["prompt"]} for r in rows]
        for row in rows:
            if isinstance(row["prompt"], str):
                row["prompt"] = [{"role": "user", "content": row["prompt"]}]
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    text = json.dumps(records) if ".jsonl" not in path.name else "\n".join(map(json.dumps, records)) + "\n\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.jsonl.gz", "mine.json", "mine.json.gz", "mine.parquet"])
def test_every_format_gives_the_same_examples(tmp_path, name):
    sums, sky, poem = read_examples(str(write(tmp_path / name, RECORDS)))
    assert (sums.task, sums.prompt, sums.reference) == ("sums", (Message("user", "1 + 1?"),), "2")
    assert sky.task == "mine"
    assert sky.prompt[0] == Message("system", "Short.")
    assert (sky.choices, sky.answer_index, sky.meta) == (("blue", "red"), 0, {"from": "x"})
    assert [reference_answer(e) for e in (sums, sky, poem)] == ["2", "blue", None]


def test_a_folder_is_all_its_files_and_split_chooses(tmp_path):
    write(tmp_path / "one.jsonl", RECORDS[:1])
    write(tmp_path / "two.json", RECORDS[1:])
    (tmp_path / "README.md").write_text("not examples")
    assert [e.id for e in read_examples(str(tmp_path))] == ["a", "b", "c"]
    assert [e.id for e in read_examples(str(tmp_path), split="test")] == ["a", "c"]
    with pytest.raises(DataError, match=r"none of split 'val' \(found: dev, test\)"):
        read_examples(str(tmp_path), split="val")


def test_limit_draws_from_the_whole_file_and_does_not_know_its_order(tmp_path):
    records = [RECORDS[0] | {"id": str(i), "task": f"t{i % 2}"} for i in range(200)]
    examples = read_examples(str(write(tmp_path / "m.jsonl", records)))
    kept = sample_examples(examples, 20)
    assert Counter(e.task for e in kept) == {"t0": 20, "t1": 20}
    assert max(int(e.id) for e in kept) > 150
    assert {e.id for e in sample_examples(examples[::-1], 20)} == {e.id for e in kept}
    assert {e.id for e in sample_examples(examples, 20, seed=1)} != {e.id for e in kept}
    assert [e.id for e in read_examples(str(tmp_path), limit=20)] == [e.id for e in kept]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": ""}, "line 2: field 'metric' is missing"),
        ({"prompt": 7}, "line 2: field 'prompt' is a int"),
        ({"prompt": " "}, "line 2: field 'prompt' is empty"),
        ({"prompt": [{"role": "robot", "content": "x"}]}, "role is not one of"),
        ({"reference": None}, "line 2: field 'reference' is empty; metric 'numeric_match'"),
        ({"metric": "mc_accuracy"}, "field 'choices': metric 'mc_accuracy' needs two"),
        ({"metric": "mc_accuracy", "choices": ["x", "y"], "answer_index": 2}, "'answer_index' is 2, expected 0 to 1"),
        ({"metric": "mc_accuracy", "choices": ["x", ""], "answer_index": 0}, "a choice is empty"),
        ({"choices": "x"}, "field 'choices' is a str"),
        ({"answer_index": "B"}, "field 'answer_index' is a str"),
        ({"meta": 3}, "field 'meta' is a int"),
        ({"id": "a"}, "id 'a' stands already in .*line 1"),
    ],
)
def test_a_wrong_field_is_named_with_file_and_line_and_without_its_text(tmp_path, change, message):
    record = RECORDS[0] | {"id": "z", "prompt": "secret words"} | change
    path = write(tmp_path / "mine.jsonl", [RECORDS[0], record])
    with pytest.raises(DataError, match=f"mine.jsonl, .*{message}") as caught:
        read_examples(str(path), scored=True)
    assert "secret" not in str(caught.value)


def test_broken_files_say_where(tmp_path):
    (tmp_path / "bad.jsonl").write_text(json.dumps(RECORDS[0]) + '\n{"id": "secret", \n')
    with pytest.raises(DataError, match=r"bad\.jsonl, line 2: .*not_json") as caught:
        read_examples(str(tmp_path / "bad.jsonl"))
    assert "secret" not in str(caught.value)
    (tmp_path / "bad.parquet").write_bytes(b"PAR?")
    with pytest.raises(DataError, match=r"bad\.parquet: cannot be read as parquet"):
        read_examples(str(tmp_path / "bad.parquet"))
    (tmp_path / "one.json").write_text(json.dumps(RECORDS[0]))
    assert len(read_examples(str(tmp_path / "one.json"))) == 1, "content decides, not the ending"
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(DataError, match=r"none\.jsonl: no record"):
        read_examples(str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match=r"^examples: .*absent\.jsonl' does not exist"):
        read_examples(str(tmp_path / "absent.jsonl"))


def test_all_shared_files_are_read_whole(shared_data):
    examples = read_examples(str(shared_data / "eval"))
    assert len(examples) == sum(len(f.read_bytes().splitlines()) for f in (shared_data / "eval").glob("*.jsonl"))
    assert Counter(e.metric for e in examples)["mc_truthful"] == 817
    assert len({example_key(e.id) for e in examples}) == len(examples)


def test_nano_examples_are_read_like_a_file(tmp_path):
    from raysift.nano.world import examples as nano_examples

    records = [
        *nano_examples(20, 0, ["reverse", "sort_words"]),
        *nano_examples(9, 1, ["parity"], "test", "mc_accuracy"),
    ]
    assert Counter(e.task for e in read_examples(str(write(tmp_path / "n.jsonl", records)))) == {"nano": 29}


def test_right_answers_of_the_shared_files_score_one(shared_data):
    from raysift.evaluation.metrics import METRICS

    for example in read_examples(str(shared_data / "eval")):
        if example.metric in METRICS:
            answer = f"Let me see.\nSo the final answer is: {example.reference}"
            if example.metric == "rouge_l":
                answer = example.reference
            assert METRICS[example.metric](answer, example) == 1, example.id


QUESTIONS = [(f"What is {n} + {n}?", str(2 * n)) for n in range(3)]
LAYOUTS = {
    "e.jsonl": [{"prompt": q, "reference": a} for q, a in QUESTIONS],
    "q.csv": [{"question": q, "answer": a} for q, a in QUESTIONS],
    "a.jsonl.zst": [{"instruction": q, "output": a} for q, a in QUESTIONS],
    "p.arrow": [{"prompt": q, "completion": a} for q, a in QUESTIONS],
    "m.json": [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in QUESTIONS
    ],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_records_of_every_layout_are_the_same_examples(tmp_path, name):
    table = pa.Table.from_pylist(LAYOUTS[name])
    if name.endswith(".csv"):
        lines = [",".join(row.values()) for row in LAYOUTS[name]]
        (tmp_path / name).write_text("\n".join(["question,answer", *lines]))
    elif name.endswith(".arrow"):
        with pa.ipc.new_file(tmp_path / name, table.schema) as out:
            out.write_table(table)
    elif name.endswith(".zst"):
        text = "\n".join(map(json.dumps, LAYOUTS[name])).encode()
        with pa.CompressedOutputStream(str(tmp_path / name), "zstd") as out:
            out.write(text)
    else:
        write(tmp_path / name, LAYOUTS[name])
    found = read_examples(f"{tmp_path}/*{name[1:]}")
    assert [(e.prompt[0].content, reference_answer(e)) for e in found] == QUESTIONS
    write(tmp_path / "same.jsonl", [*LAYOUTS["e.jsonl"], LAYOUTS["e.jsonl"][0]])
    same = read_examples(str(tmp_path / "same.jsonl"))
    assert [e.id for e in found] == [e.id for e in same[:3]] and same[3].id == f"{same[0].id}-2"
    with pytest.raises(DataError, match="field 'metric' is missing"):
        read_examples(str(tmp_path / name), scored=True)
