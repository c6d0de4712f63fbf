"""Rows that are at fault themselves never end a run, however many follow one another; a wrong setting or model does."""

import pyarrow as pa
import pytest

from raysift.actors.comparer import Comparer
from raysift.actors.difficulty import Difficulty
from raysift.actors.embedder import Embedder
from raysift.actors.generator import Generator
from raysift.actors.ifd import Ifd
from raysift.actors.judge import Judge
from raysift.actors.lengths import TokenLengths
from raysift.actors.likelihood import AnswerLoss, Likelihood
from raysift.actors.loaded import LoadedModel, load
from raysift.actors.responder import ENGINE_ERROR, GENERATED, NOT_ASKED, Asker, Reader, Responder
from raysift.actors.reward import Reward
from raysift.actors.vllm_judge import JudgeAsker
from raysift.errors import StageError
from raysift.records import ERROR, ID, MESSAGE, MESSAGES
from raysift.scoring.settings import IfdSettings

from ..tiny_models import CHAT_TEMPLATE, tiny_llama  # noqa: TID252

LONG = "word " * 2000
REFUSING = "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def loaded(folder) -> LoadedModel:
    found = load(folder, threads=1)
    found.tokenizer.chat_template = REFUSING + CHAT_TEMPLATE
    return found


def talk(*turns):
    return [{"role": role, "content": text} for role, text in turns]


TOO_LONG = talk(("user", LONG), ("assistant", "yes"))
NO_ANSWER = talk(("user", "hello"))
A_TOOL = talk(("user", "hello"), ("tool", "4"), ("assistant", "yes"))


def three(messages, **columns):
    """More such rows than the breaker lets pass."""
    data = {ID: [1, 2, 3], MESSAGES: pa.array([messages] * 3, pa.list_(MESSAGE))}
    return pa.table(data | {name: [value] * 3 for name, value in columns.items()})


def strict(actor):
    actor.max_failures_in_a_row = 1
    return actor


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        (Generator, three(TOO_LONG)),
        (Generator, three(A_TOOL)),
        (Responder, three(TOO_LONG)),
        (Ifd, three(TOO_LONG)),
        (Ifd, three(NO_ANSWER)),
        (Difficulty, three(talk(("user", "hello"), ("assistant", "")))),
        (AnswerLoss, three(TOO_LONG)),
        (AnswerLoss, three(A_TOOL)),
        (Likelihood, three(TOO_LONG, choices=["a", "b"])),
        (Likelihood, three(A_TOOL[:2], choices=["a", "b"])),
        (Judge, three(NO_ANSWER)),
        (Comparer, three(NO_ANSWER, own_answer=None, against_answer="yes")),
    ],
)
def test_rows_that_cannot_be_answered_are_set_aside_one_after_the_other(loaded, kind, rows):
    assert None not in strict(kind(loaded))(rows)[ERROR].to_pylist()


@pytest.mark.parametrize(
    ("kind", "rows"),
    [(Asker, three(TOO_LONG)), (JudgeAsker, three(NO_ANSWER)), (Reward, three(NO_ANSWER)), (Embedder, three(talk()))],
)
def test_so_are_those_of_actors_that_load_models_of_their_own(folder, kind, rows):
    made = {
        Asker: lambda: Asker(folder, template="auto", max_new_tokens=8, max_length=64),
        Reward: lambda: Reward("nano:reward"),
        Embedder: Embedder,
    }.get(kind, lambda: kind(folder))
    assert None not in strict(made())(rows)[ERROR].to_pylist()


def test_a_conversation_that_the_template_refuses_has_no_length_and_ends_nothing(folder, loaded):
    actor = strict(TokenLengths(folder))
    actor.tokenizer = loaded.tokenizer
    assert None not in actor(three(A_TOOL))[ERROR].to_pylist()


def test_what_never_reached_an_engine_was_counted_before_it_and_what_failed_in_it_counts(folder):
    def answers(error):
        return pa.table({ID: [1, 2, 3], GENERATED: pa.array([[]] * 3, pa.list_(pa.int64())), ENGINE_ERROR: [error] * 3})

    reader = strict(Reader(folder, template="auto", max_new_tokens=8))
    assert reader(answers(f"{NOT_ASKED}the prompt is too long"))[ERROR].to_pylist() == ["the prompt is too long"] * 3
    with pytest.raises(StageError, match="2 rows failed one after the other, the last with 'out of memory'"):
        reader(answers("out of memory"))


@pytest.mark.parametrize(
    "make",
    [
        lambda loaded: Generator(loaded, max_new_tokens=10**6),
        lambda loaded: Judge(loaded, max_length=8),
        lambda loaded: Reward("nano:reward", max_length=2),
        lambda loaded: Ifd(loaded, max_length=3),
        lambda loaded: Ifd(loaded, max_length=3, settings=IfdSettings(without_prompt="bos")),
        lambda loaded: Difficulty(loaded, max_length=3),
        lambda loaded: AnswerLoss(loaded, max_length=3),
        lambda loaded: Likelihood(loaded, max_length=3),
    ],
)
def test_settings_that_leave_no_room_for_any_row_end_the_run(loaded, make):
    with pytest.raises(StageError, match="rows failed one after the other"):
        strict(make(loaded))(three(talk(("user", "hello there"), ("assistant", "yes")), choices=["a", "b"]))


@pytest.mark.parametrize("kind", [Ifd, Difficulty, AnswerLoss, Likelihood])
def test_where_the_shortest_rows_have_room_the_others_are_at_fault_themselves(loaded, kind):
    actor = strict(kind(loaded, max_length=5))
    assert None not in actor(three(TOO_LONG, choices=["a", "b"]))[ERROR].to_pylist()
    short = three(talk(("user", ""), ("assistant", "y"))[: 1 if kind is Likelihood else 2], choices=["a", "b"])
    assert actor(short)[ERROR].to_pylist() == [None] * 3
