"""What a model makes of the held-out examples or pairs: the loss of each right answer, and its score or margin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raysift.evaluation.check import LOSSES, SCORES
from raysift.evaluation.metrics import EvalConfig, is_scored
from raysift.jobs.check.held_out import Member, conversations
from raysift.jobs.gradients.targeting import content_key
from raysift.pool.given_input import input_meta
from raysift.records import ERROR, ID, MESSAGE, MESSAGES, META, Example, Pair
from raysift.scoring.columns import LABEL_TOKENS

if TYPE_CHECKING:
    from raysift.actors.loaded import LoadedModel


def measure(loaded: LoadedModel, members: Sequence[Member], asked: EvalConfig) -> dict[str, Mapping[str, Any]]:
    """Mean loss and tokens, and the score, of each; those that a model cannot read are left out."""
    from raysift.actors.likelihood import LOSS, AnswerLoss

    shared: dict[str, Any] = {"template": asked.template, "max_length": asked.max_length}
    read = _sound(AnswerLoss(loaded, **shared)(conversations(members)))
    losses = {str(row[ID]): [row[LOSS], row[LABEL_TOKENS]] for row in read}
    pairs = [member for member in members if isinstance(member, Pair)]
    examples = [member for member in members if isinstance(member, Example) and is_scored(member.metric)]
    if pairs:
        return {LOSSES: losses, SCORES: _margins(loaded, pairs, shared)}
    return {LOSSES: losses, SCORES: _scores(loaded, examples, asked) if examples else {}}


def _margins(loaded: LoadedModel, pairs: Sequence[Pair], shared: Mapping[str, Any]) -> dict[str, float]:
    """log p(chosen) - log p(rejected) of each pair."""
    from raysift.actors.likelihood import CHOICE_LOGPROBS, CHOICES, Likelihood

    schema = pa.schema(
        [(ID, pa.int64()), (MESSAGES, pa.list_(MESSAGE)), (META, pa.string()), (CHOICES, pa.list_(pa.string()))]
    )
    rows = [
        {
            ID: content_key(pair),
            MESSAGES: [{"role": message.role, "content": message.content} for message in pair.prompt],
            META: input_meta(pair),
            CHOICES: [pair.chosen, pair.rejected],
        }
        for pair in pairs
    ]
    answers = _sound(Likelihood(loaded, **shared)(pa.Table.from_pylist(rows, schema=schema)))
    return {str(row[ID]): row[CHOICE_LOGPROBS][0] - row[CHOICE_LOGPROBS][1] for row in answers}


def _scores(loaded: LoadedModel, examples: Sequence[Example], asked: EvalConfig) -> dict[str, float]:
    from raysift.jobs.training.evaluate import evaluate_here

    return evaluate_here(examples, loaded, asked).scores()


def _sound(answers: pa.Table) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = answers.filter(answers[ERROR].is_null()).to_pylist()
    return found
