"""Every actor that shows a model rows by a template tells Alpaca's input from its instruction where the rows' meta has it."""

import pyarrow as pa
import pytest

from raysift.actors.difficulty import Difficulty
from raysift.actors.effective_batches import EncodeRows
from raysift.actors.ifd import Ifd
from raysift.actors.lengths import TokenLengths
from raysift.actors.responder import Asker, Responder
from raysift.actors.row_gradients import GradientVectors
from raysift.records import ID, MESSAGES, META, ROWS
from raysift.scoring.settings import IfdSettings
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
    assert actor.tells_inputs
    without = actor(folder, **arguments)(rows().drop_columns([META]))[column].to_pylist()
    assert without == [joined, joined]


@pytest.mark.parametrize(
    ("actor", "arguments", "columns"),
    [
        (Responder, {"template": "alpaca", "max_new_tokens": 12}, ["answer"]),
        (Ifd, {"settings": IfdSettings(template="alpaca")}, ["ifd"]),
    ],
)
def test_what_a_model_makes_of_both_forms_differs(folder, actor, arguments, columns):
    told, joined = actor(folder, **arguments)(rows()).select(columns).to_pylist()
    assert told != joined and actor.tells_inputs
    assert GradientVectors.tells_inputs
