"""Every actor that shows a model rows by a template tells Alpaca's input from its instruction where the rows' meta has it."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysift.actors.difficulty import Difficulty
from raysift.actors.effective_batches import EncodeRows
from raysift.actors.embedder import Embedder
from raysift.actors.generator import Generator
from raysift.actors.ifd import Ifd
from raysift.actors.judge import Judge
from raysift.actors.lengths import TokenLengths
from raysift.actors.likelihood import AnswerLoss, Likelihood
from raysift.actors.responder import Asker, Responder
from raysift.actors.reward import Reward
from raysift.actors.row_gradients import GradientVectors
from raysift.evaluation.examples import example_key
from raysift.jobs.runs.tables import columns_of
from raysift.pool.given_input import conversation_of
from raysift.records import ID, MESSAGES, META, ROWS, Example, Message
from raysift.scoring.settings import EmbeddingSettings, IfdSettings, JudgeSettings, RewardSettings
from raysift.storage import open_location
from raysift.templates import ALPACA_INPUT_PREAMBLE, ALPACA_PREAMBLE

from ..tiny_models import tiny_llama  # noqa: TID252

# A tiny model's tokens are bytes.
LONGER = len("### Input:\n") + len(ALPACA_INPUT_PREAMBLE) - len(ALPACA_PREAMBLE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return tiny_llama(tmp_path_factory.mktemp("model"), initializer_range=0.2)


def rows():
    talk = [{"role": "user", "content": "Sort.\n\nb a"}, {"role": "assistant", "content": "a b"}]
    records = [{ID: i, MESSAGES: talk, META: meta} for i, meta in enumerate(['{"input":"b a"}', None])]
    return pa.Table.from_pylist(records, schema=pa.schema([ROWS.field(name) for name in (ID, MESSAGES, META)]))


@pytest.mark.parametrize(
    ("actor", "arguments", "column"),
    [
        (TokenLengths, {"template": "alpaca"}, "n_tokens"),
        (EncodeRows, {"template": "alpaca", "max_length": 512}, "input_ids"),
        (Asker, {"template": "alpaca", "max_new_tokens": 4}, "tokenized_prompt"),
        (Difficulty, {"template": "alpaca"}, "prompt_tokens"),
    ],
)
def test_prompts_are_longer_by_the_words_of_the_other_form(folder, actor, arguments, column):
    told, joined = actor(folder, **arguments)(rows())[column].to_pylist()
    size = len if isinstance(told, list) else int
    assert size(told) - size(joined) == LONGER
    assert actor.renders_rows
    without = actor(folder, **arguments)(rows().drop_columns([META]))[column].to_pylist()
    assert without == [joined, joined]


@pytest.mark.parametrize(
    ("actor", "arguments", "columns"),
    [
        (Generator, {"template": "alpaca", "max_new_tokens": 12}, ["answer"]),
        (Responder, {"template": "alpaca", "max_new_tokens": 12}, ["answer"]),
        (AnswerLoss, {"template": "alpaca"}, ["loss"]),
        (Likelihood, {"template": "alpaca"}, ["choice_logprobs"]),
        (Ifd, {"settings": IfdSettings(template="alpaca")}, ["ifd"]),
    ],
)
def test_what_a_model_makes_of_both_forms_differs(folder, actor, arguments, columns):
    choices = pa.array([["a", "b"]] * 2)
    told, joined = actor(folder, **arguments)(rows().append_column("choices", choices)).select(columns).to_pylist()
    assert told != joined and actor.renders_rows
    assert GradientVectors.renders_rows


def test_examples_are_asked_and_measured_with_the_input_of_their_meta():
    from raysift.evaluation.metrics import EvalConfig
    from raysift.evaluation.report import question_rows
    from raysift.jobs.policy.stages import target_rows
    from raysift.pairwise.rows import rows_to_answer

    prompt = (Message("user", "Sort.\n\nb a"),)
    told = Example("1", "t", prompt, "exact_match", reference="a b", meta={"input": "b a", "other": 1})
    joined = Example("2", "t", prompt, "exact_match", reference="a b")
    asked = question_rows([told, joined], EvalConfig())
    tables = [*asked.values(), target_rows([told, joined])[0], rows_to_answer([told, joined])]
    assert len(asked) == 2
    for table in tables:
        inputs = {row[ID]: conversation_of(row)[0].get("input") for row in table.to_pylist()}
        assert inputs == {example_key("1"): "b a", example_key("2"): None}


def test_a_validation_row_is_measured_with_its_input(folder):
    from raysift.actors.effective_batches import Place
    from raysift.actors.validator import Validator
    from raysift.settings.training import TrainConfig

    config = TrainConfig(template="alpaca", max_length=512)
    lengths = Validator(rows(), config, folder, Place(device="cpu", threads=1)).rows.lengths.tolist()
    assert lengths[0] - lengths[1] == LONGER


def read_of(tmp_path, actor, arguments):
    place = open_location(tmp_path / "rows.parquet")
    pq.write_table(rows(), place.path)
    return columns_of([place], actor, arguments)


@pytest.mark.parametrize(
    ("actor", "settings", "reads"),
    [
        (Reward, None, False),
        (Reward, RewardSettings(input_join="newline"), True),
        (Reward, RewardSettings(trailing_newline=True), True),
        (Embedder, None, False),
        (Embedder, EmbeddingSettings(text="first_paragraph"), True),
        (Judge, JudgeSettings(template="alpaca"), False),
        (Ifd, IfdSettings(template="alpaca"), True),
        (Ifd, IfdSettings(), False),
    ],
)
def test_meta_is_read_where_the_settings_look_there(tmp_path, actor, settings, reads):
    assert (META in read_of(tmp_path, actor, {"settings": settings})) == reads


def test_rewards_and_vectors_know_a_told_input():
    """Of two rows of one text, one with the input told: questions and vectors differ by what the first blank line hides."""
    talk = [{"role": "user", "content": "Two\n\nparts.\n\nb a"}, {"role": "assistant", "content": "a b"}]
    table = pa.Table.from_pylist(
        [{ID: i, MESSAGES: talk, META: meta} for i, meta in enumerate(['{"input":"b a"}', None])], schema=rows().schema
    )
    reward = Reward(settings=RewardSettings(template="pair", input_join="newline"))
    asked = [reward._texts(reward._exchange(row))[0] for row in table.to_pylist()]
    assert asked == ["Two\n\nparts.\nb a", "Two\nparts.\n\nb a"]
    told, guessed = Embedder(EmbeddingSettings(text="first_paragraph"))(table)["embedding"].to_pylist()
    assert told != guessed
