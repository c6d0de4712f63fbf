"""RAISE (arXiv 2504.07282): a policy, trained by reinforcement learning, picks every batch of the training.

1. Features of each row: lengths, log-probability of the answer with and without the prompt, an embedding of 32 numbers.
2. Rounds: the model is trained from the start under the policy; each step's gain in validation performance is its
   reward, and PPO updates the policy (see `raysift.policy`).
3. With the policy frozen the model is trained once more. The batches of that training, in order, are the curriculum. It
   makes as many steps as `epochs` passes over the budget would, so it may see more distinct rows than the budget has.
   The selection is the rows picked first, by step and then by id, up to the budget. The curriculum keeps them all.

The paper gives no batch size, number of steps, exploration, critic or class default, and there is no code. The preset
`paper` has all values that it gives; the defaults depart from it where its literal settings learn nothing (see
`raysift.policy.settings`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from raysift.ids import look_up
from raysift.methods.base import Selector
from raysift.methods.choose import choose_in_order
from raysift.policy.settings import RaiseConfig
from raysift.records import FATE, ID, ORDER, SCORE
from raysift.settings.budget import Budget
from raysift.settings.training import TrainConfig
from raysift.topk import Ids, Scores

FIRST_STEP, PICKS = "first_step", "picks"

PICKED, PASSED_OVER = "picked", "never picked"
NO_FEATURES, NOTHING_TO_LEARN = "no features: the auxiliary model or the encoder failed", "nothing to train on"


_PAPER: dict[str, Any] = {
    "features": {
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "embedding": {"model": "meta-llama/Llama-3.1-8B-Instruct", "text": "conversation", "pooling": "mean"},
    },
    "policy": {"exploration": "none", "deploy": "highest", "hidden": [128, 128], "critic_hidden": [128, 128]},
    "learning": {
        "keep": "last",
        "actor_rate": 0.1,
        "critic_rate": 0.2,
        "rate_schedule": "constant",
        "ratio": "product",
        "advantage": "gae",
        "gamma": 0.99,
        "lam": 1.0,
    },
}
_LETTER = {key: _PAPER[key] for key in ("policy", "learning")}
_SILENT = {
    "classes",
    "hidden",
    "critic_hidden",
    "temperature",
    "rounds",
    "passes",
    "steps",
    "validation_rows",
    "report_share",
}
"""Settings for which the paper gives no single value, or which it does not cover."""


class Raise(Selector):
    """The recipe picks and ranks the rows; `choose` takes the first of them."""

    name = "raise"
    summary = "Learn a policy that picks every batch; select what it picked (RAISE)."
    needs = "a pool, and --target: examples with a right answer, in any layout that a pool may have"
    main_settings = ("learning.rounds", "episode.epochs", "policy.max_repeats", "features.model")
    Config = RaiseConfig
    reading = (
        "score (and picks): how often the final training picked the row; first step: when it did so first, which is the order "
        "of the selection."
    )
    trains_itself = True
    takes_target = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": _PAPER, "letter": _LETTER}
    columns: ClassVar[pa.Schema] = pa.schema(
        [(FIRST_STEP, pa.int64()), (PICKS, pa.int64()), (ORDER, pa.int64()), (FATE, pa.string())]
    )
    config: RaiseConfig

    def choose(self, scores: Iterable[pa.Table], budget: Budget, pool_rows: int) -> tuple[Ids, Scores]:
        """The rows picked first, by first step, up to the budget."""
        return choose_in_order(scores, budget.rows_of(pool_rows))


def departures(config: RaiseConfig) -> dict[str, Any]:
    """Settings of policy, learning and episode that differ from the paper's, with their values; for the manifest."""
    paper = RaiseConfig.model_validate(_LETTER)
    found = {}
    for part in ("policy", "learning", "episode"):
        for name, value in getattr(config, part):
            if name not in _SILENT and value != getattr(getattr(paper, part), name):
                found[f"{part}.{name}"] = value
    return found


def count_policy_steps(config: RaiseConfig, train: TrainConfig, rows: int) -> int:
    """Steps of one training: `episode.steps`, or as many as `epochs` passes over a fixed choice of `rows` rows."""
    if config.episode.steps is not None:
        return config.episode.steps
    return max(1, round(-(-rows // train.batch_size) * config.episode.epochs))


def place_picks(ids: Ids, picks: Sequence[Ids], with_features: Ids, trainable: Ids) -> pa.Table:
    """For every row, how often and when it was picked, or why it could not be."""
    every = np.concatenate([np.empty(0, np.int64), *picks])
    steps = np.repeat(np.arange(1, len(picks) + 1), [len(batch) for batch in picks])
    chosen, first, counts = np.unique(every, return_index=True, return_counts=True)
    order = np.lexsort((chosen, steps[first]))
    place = np.empty(len(chosen), np.int64)
    place[order] = np.arange(1, len(chosen) + 1)
    fate = np.full(len(ids), PASSED_OVER, object)
    fate[np.isin(ids, chosen)] = PICKED
    fate[~np.isin(ids, with_features)] = NO_FEATURES
    fate[~np.isin(ids, trainable)] = NOTHING_TO_LEARN
    could = np.isin(ids, with_features) & np.isin(ids, trainable)
    number = np.zeros(len(ids), np.int64)
    number[np.isin(ids, chosen)] = counts[np.searchsorted(chosen, ids[np.isin(ids, chosen)])]
    return pa.table(
        {
            ID: ids,
            SCORE: pa.array(number.astype(np.float64), mask=~could),
            FIRST_STEP: look_up(ids, chosen, pa.array(steps[first])),
            PICKS: pa.array(number, mask=~could),
            ORDER: look_up(ids, chosen, pa.array(place)),
            FATE: pa.array(fate, pa.string()),
        },
        schema=Raise.score_schema(),
    )
