"""An engine of our own and the judge on it, against transformers, on the nano model."""

import os

import pyarrow as pa
import pytest

pytest.importorskip("vllm", reason="needs vLLM; see CONTRIBUTING.md for one without a GPU")

import psutil

from raysift.actors.judge import Judge
from raysift.actors.vllm_judge import VllmJudge
from raysift.errors import StageError
from raysift.records import ERROR, ID, MESSAGE, MESSAGES
from raysift.scoring.settings import JudgeSettings

pytestmark = pytest.mark.vllm

# A judge of 1.3M parameters rates nothing on its own accord: any mass will do.
SETTINGS = JudgeSettings(min_mass=0.0)


def rows(count):
    from raysift.nano.world import generate_pool

    records = [{ID: i, MESSAGES: row["messages"]} for i, row in enumerate(generate_pool(count, 0))]
    records += [{ID: count, MESSAGES: [{"role": "user", "content": "no answer"}]}]
    return pa.Table.from_pylist(records, schema=pa.schema([(ID, pa.int64()), (MESSAGES, pa.list_(MESSAGE))]))


def assert_alike(answers, wanted, rel):
    for name in answers.column_names:
        values, others = (table[name].to_pylist() for table in (answers, wanted))
        if pa.types.is_floating(answers.schema.field(name).type):
            assert [value is None for value in values] == [value is None for value in others]
            values, others = ([value for value in side if value is not None] for side in (values, others))
            assert values == pytest.approx(others, rel=rel)
        else:
            assert values == others


def engine_cores():
    return [p for p in psutil.Process().children(recursive=True) if "EngineCore" in " ".join(p.cmdline())]


def test_ratings_are_those_of_transformers_also_after_the_engine_died():
    table = rows(60)
    ours, theirs = VllmJudge("nano", settings=SETTINGS), Judge("nano", settings=SETTINGS, threads=1)
    try:
        prompts = [item[0] for item in map(theirs._encode, table.to_pylist()[:60])]
        found, expected = ours.next_logprobs(prompts), theirs.next_logprobs(prompts)
        for one, other in zip(found, expected, strict=True):
            assert [rating for rating, _ in one] == [rating for rating, _ in other]
            assert [value for _, value in one] == pytest.approx([value for _, value in other], abs=1e-3)
        answers, wanted = ours(table), theirs(table)
        assert answers.schema == wanted.schema
        assert_alike(answers, wanted, rel=1e-3)
        assert "expected an answer of the assistant" in answers[ERROR].to_pylist()[60]

        (core,) = engine_cores()
        core.kill()
        assert_alike(ours(table), answers, rel=1e-6)
        assert ours.engine.restarts == 2

        ours.engine.restarts = 0
        (core,) = engine_cores()
        core.kill()
        with pytest.raises(StageError, match="the engine died again and again"):
            ours(table)
    finally:
        ours.engine.close()
    assert engine_cores() == []


os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
