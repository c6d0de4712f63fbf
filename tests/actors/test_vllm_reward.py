"""Rewards from a vLLM engine against those of transformers, on the nano reward model, also after the engine died."""

import contextlib

import pyarrow as pa
import pytest

pytest.importorskip("vllm", reason="needs vLLM; see CONTRIBUTING.md for one without a GPU")

import psutil

from raysift.actors.reward import Reward
from raysift.actors.vllm_reward import VllmReward
from raysift.errors import StageError
from raysift.records import ERROR, ID, MESSAGE, MESSAGES
from raysift.settings.resources import EngineResources

pytestmark = pytest.mark.extra

LONG = "three one two " * 400


def engine_cores():
    found = []
    for process in psutil.Process().children(recursive=True):
        # A worker of Ray that has just ended is a zombie, and has no command line.
        with contextlib.suppress(psutil.NoSuchProcess):
            if "EngineCore" in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_rewards_are_those_of_transformers_also_after_the_engine_died():
    from raysift.nano.world import generate_pool

    conversations = [row["messages"] for row in generate_pool(100, 0)]
    conversations += [
        [{"role": "user", "content": "count"}, {"role": "assistant", "content": LONG}],
        [{"role": "user", "content": "no answer"}],
    ]
    records = [{ID: i, MESSAGES: messages} for i, messages in enumerate(conversations)]
    table = pa.Table.from_pylist(records, schema=pa.schema([(ID, pa.int64()), (MESSAGES, pa.list_(MESSAGE))]))
    engine = EngineResources(arguments={"max_num_seqs": 8})
    ours, theirs = VllmReward("nano:reward", engine=engine, restarts=1), Reward("nano:reward", threads=1)
    try:
        answers, wanted = ours(table), theirs(table)
        (core,) = engine_cores()
        core.kill()
        again = ours(table)
        assert ours.engine.restarts == 0
        assert ours.engine.llm.llm_engine.vllm_config.scheduler_config.max_num_seqs == 8

        (core,) = engine_cores()
        core.kill()
        with pytest.raises(StageError, match="the engine died again and again"):
            ours(table)
    finally:
        ours.engine.close()
    assert engine_cores() == []
    assert again.drop(["reward"]).equals(answers.drop(["reward"]))
    assert again["reward"].to_pylist()[:101] == pytest.approx(answers["reward"].to_pylist()[:101], abs=1e-5)
    assert answers.schema == wanted.schema
    assert answers.drop(["reward"]).equals(wanted.drop(["reward"]))
    assert answers["truncated"].to_pylist()[99:101] == [False, True]
    assert answers[ERROR].null_count == 101
    assert answers["reward"].to_pylist()[:101] == pytest.approx(wanted["reward"].to_pylist()[:101], abs=1e-4)
    assert answers["reward"].to_pylist()[101] is None
