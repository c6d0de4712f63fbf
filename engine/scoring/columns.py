"""Columns that a scorer adds to a row, whatever computes them: the actors here on transformers, or another engine."""

from __future__ import annotations

import pyarrow as pa

from raysift.scoring.settings import Kind

REWARD = "reward"
JUDGE_SCORE = "judge_score"
RATING_MASS = "rating_mass"
IFD = "ifd"
CONDITIONAL_LOSS = "conditional_loss"
DIRECT_LOSS = "direct_loss"
LABEL_TOKENS = "n_label_tokens"
INPUT_TOKENS = "n_tokens"
TRUNCATED = "truncated"
PROMPT_TOKENS = "prompt_tokens"
ANSWER_TOKENS = "answer_tokens"
LOGPROB_GIVEN = "logprob_given"
LOGPROB_ALONE = "logprob_alone"
EMBEDDING = "embedding"

SCORE_COLUMN: dict[Kind, str] = {"reward": REWARD, "judge": JUDGE_SCORE, "ifd": IFD}
"""The one of a scorer's columns that thresholds and ranks look at; higher is better, for `ifd` harder."""

REWARD_SCHEMA = pa.schema(
    [
        (REWARD, pa.float64()),
        (INPUT_TOKENS, pa.int64()),  # tokens that the model read, special ones included
        (TRUNCATED, pa.bool_()),
    ]
)
JUDGE_SCHEMA = pa.schema(
    [
        (JUDGE_SCORE, pa.float64()),
        (RATING_MASS, pa.float64()),  # probability of all ratings together, 0 to 1
        (INPUT_TOKENS, pa.int64()),
        (TRUNCATED, pa.bool_()),
    ]
)
IFD_SCHEMA = pa.schema(
    [
        (IFD, pa.float64()),
        (CONDITIONAL_LOSS, pa.float64()),  # per token of the answer, given what precedes it
        (DIRECT_LOSS, pa.float64()),  # of the same tokens, without
        (LABEL_TOKENS, pa.int64()),
        (TRUNCATED, pa.bool_()),
    ]
)
DIFFICULTY_SCHEMA = pa.schema(
    [
        (PROMPT_TOKENS, pa.int64()),  # all that precedes the answer, the chat template's own included
        (ANSWER_TOKENS, pa.int64()),
        (LOGPROB_GIVEN, pa.float64()),  # of the whole answer, given what precedes it
        (LOGPROB_ALONE, pa.float64()),  # of the same tokens, without
        (TRUNCATED, pa.bool_()),
    ]
)
EMBEDDING_SCHEMA = pa.schema([(EMBEDDING, pa.list_(pa.float32())), (INPUT_TOKENS, pa.int64()), (TRUNCATED, pa.bool_())])
