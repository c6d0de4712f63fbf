"""Actors that batch by tokens, with a model that holds few tokens at once: the same answers, by smaller passes for good."""

import numpy as np
import pyarrow as pa
import pytest

from raysift.actors.comparer import Comparer
from raysift.actors.difficulty import Difficulty
from raysift.actors.embedder import Embedder
from raysift.actors.generator import Generator
from raysift.actors.judge import Judge
from raysift.actors.likelihood import AnswerLoss
from raysift.actors.loaded import LoadedModel, load
from raysift.actors.responder import Responder
from raysift.actors.reward import Reward
from raysift.actors.state_match import StateMatch
from raysift.pairwise.settings import ComparisonSettings
from raysift.records import ERROR, ID, MESSAGE, MESSAGES
from raysift.scoring.settings import EmbeddingSettings, JudgeSettings

from ..tiny_classifiers import tiny_classifier, tiny_encoder  # noqa: TID252
from ..tiny_models import tiny_llama  # noqa: TID252

TALK = [{"role": "user", "content": "how many?"}, {"role": "assistant", "content": "seven, it says"}]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> LoadedModel:
    return load(tiny_llama(tmp_path_factory.mktemp("model")), threads=1)


def rows(count, **columns):
    talks = [[TALK[0], {"role": "assistant", "content": TALK[1]["content"] * (1 + i % 3)}] for i in range(count)]
    data = {ID: pa.array(range(count), pa.int64()), MESSAGES: pa.array(talks, pa.list_(MESSAGE))}
    return pa.table(data | {name: [value] * count for name, value in columns.items()})


@pytest.mark.parametrize(
    "kind", [AnswerLoss, Difficulty, Judge, Comparer, Generator, Responder, StateMatch, Reward, Embedder]
)
def test_passes_that_do_not_fit_are_halved_once(loaded, tmp_path, kind, monkeypatch):
    made = {
        Reward: lambda: Reward(tiny_classifier(tmp_path, "bert")),
        Embedder: lambda: Embedder(EmbeddingSettings(model=tiny_encoder(tmp_path))),
        StateMatch: lambda: StateMatch(loaded, [TALK]),
        Judge: lambda: Judge(
            loaded, settings=JudgeSettings(prompt="{request}\n{answer}\n{low} to {high}?", min_mass=0)
        ),
        Comparer: lambda: Comparer(
            loaded, settings=ComparisonSettings(prompt="{request}\n{first}\n{second}", min_mass=0)
        ),
        Generator: lambda: Generator(loaded, max_new_tokens=4),
        Responder: lambda: Responder(loaded, max_new_tokens=4),
    }
    actor = made.get(kind, lambda: kind(loaded))()
    actor.batch_tokens = 2**20
    table = rows(24, own_answer="one", against_answer="two") if kind is Comparer else rows(24)
    expected, sizes = actor(table), []
    body = actor.model.base_model if kind is StateMatch else actor.model
    forward = body.forward

    def with_little_room(*given, **named):
        tokens = (given[0] if given else named["input_ids"]).numel()
        sizes.append(tokens)
        if tokens > room:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(*given, **named)

    room = 2**20
    monkeypatch.setattr(body, "forward", with_little_room)
    actor(table)
    room = max(sizes) // 5
    answers = actor(table)
    assert answers[ERROR].null_count == 24
    assert [row[ID] for row in answers.to_pylist()] == list(range(24))
    for name in set(answers.column_names) - {ID, ERROR}:
        found, wanted = answers[name].to_pylist(), expected[name].to_pylist()
        assert found == wanted or np.asarray(found) == pytest.approx(np.asarray(wanted), rel=1e-3, abs=1e-5)
    assert actor.most_rows is None and actor.batch_tokens < 2**20
    sizes.clear()
    actor(table)
    assert max(sizes) <= room
