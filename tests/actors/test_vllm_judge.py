"""The two ends of a judge whose model is in an engine, around the judge's own pass in the engine's place."""

import pyarrow as pa
import pytest

from raysift.actors.judge import Judge, flatten
from raysift.actors.loaded import LoadedModel, load
from raysift.actors.responder import ENGINE_ERROR, LOGPROBS, NOT_ASKED, PROMPT
from raysift.actors.vllm_judge import JudgeAsker, JudgeReader
from raysift.records import ERROR, ID, MESSAGE, MESSAGES
from raysift.scoring.settings import JudgeSettings

from ..tiny_models import tiny_llama  # noqa: TID252

SETTINGS = JudgeSettings(prompt="{request}\n{answer}\nRate {low} to {high}.", min_mass=0, reply_prefix="Rating: ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return tiny_llama(tmp_path_factory.mktemp("model"), initializer_range=0.2)


@pytest.fixture(scope="module")
def loaded(folder) -> LoadedModel:
    return load(folder, threads=1)


def talk(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


CONVERSATIONS = [
    talk("2 + 3?", "5"),
    talk("Ünï", ""),
    talk("q" * 400, "a" * 400),
    talk("hi", "there"),
    talk("?", "x " * 40),
    [{"role": "user", "content": "no answer"}],
    [{"role": "assistant", "content": "nobody asked"}],
]


def table(conversations):
    records = [{ID: i, MESSAGES: each} for i, each in enumerate(conversations)]
    return pa.Table.from_pylist(records, schema=pa.schema([(ID, pa.int64()), (MESSAGES, pa.list_(MESSAGE))]))


@pytest.mark.parametrize(("batch", "min_mass"), [(1, 0), (7, 0), (7, 0.9)])
def test_asker_engine_reader_give_what_a_judge_gives(folder, loaded, batch, min_mass):
    settings = SETTINGS.model_copy(update={"min_mass": min_mass})
    judge, rows = Judge(loaded, settings=settings, batch_tokens=1), table(CONVERSATIONS)
    expected = judge(rows)
    errors = expected[ERROR].to_pylist()
    assert all(errors[5:]) and [error is None for error in errors[:5]] == [min_mass == 0] * 5
    assert expected["truncated"].to_pylist()[:5] == [None if min_mass else i == 2 for i in range(5)]
    asker = JudgeAsker(folder, settings=settings)
    asked = pa.concat_tables([asker(rows[i : i + batch]) for i in range(0, 7, batch)])
    replies = []
    for row in asked.to_pylist():
        reply = {**row, LOGPROBS: [], ENGINE_ERROR: NOT_ASKED + row[ERROR] if row[ERROR] else ""}
        if row[PROMPT]:
            (found,) = judge.next_logprobs([row[PROMPT]])
            reply[LOGPROBS] = [logprob for _, logprob in found]
        replies.append(reply)
    assert JudgeReader(folder, settings=settings)(pa.Table.from_pylist(replies)).equals(expected)


def test_errors_of_the_engine_stay_with_their_rows_and_what_is_no_number_is_no_rating(folder):
    reader = JudgeReader(folder, settings=SETTINGS.model_copy(update={"min_mass": 0.01}))
    tokens = len(flatten(reader.rater.spellings))
    beside = {"n_tokens": 9, "truncated": False}
    replies = [
        {ID: 0, LOGPROBS: [-1.7] * tokens, ENGINE_ERROR: "", **beside},
        {ID: 1, LOGPROBS: [], ENGINE_ERROR: "ValueError: too long", **beside},
        {ID: 2, LOGPROBS: [None] * tokens, ENGINE_ERROR: "", **beside},
        {ID: 3, LOGPROBS: [-9.0] * tokens, ENGINE_ERROR: "", **beside},
        {ID: 4, LOGPROBS: [], ENGINE_ERROR: "", **beside},
    ]
    rows = reader(pa.Table.from_pylist(replies)).to_pylist()
    assert rows[0]["judge_score"] == pytest.approx(3.0) and rows[0]["n_tokens"] == 9
    assert rows[1][ERROR] == "ValueError: too long"
    assert rows[2][ERROR] == "the judge gave no finite probabilities"
    assert rows[3][ERROR].startswith("unparsable: the ratings 1 to 5 together have probability 0.000")
    assert rows[4][ERROR].startswith("ValueError"), "a reply without numbers was rated"
    assert [row["judge_score"] is None for row in rows] == [False] + [True] * 4
