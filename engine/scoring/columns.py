"""Columns that a scorer adds to a row, whether transformers actors or another engine computes them."""

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
"""The column of each scorer that thresholds and ranks use. Higher is better; for `ifd`, harder."""

REWARD_SCHEMA = pa.schema(
    [
        (REWARD, pa.float64()),
        (INPUT_TOKENS, pa.int64()),  # tokens that the model read, including special tokens
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
        (CONDITIONAL_LOSS, pa.float64()),  # per token of the answer, given the text before it
        (DIRECT_LOSS, pa.float64()),  # of the same tokens, without that text
        (LABEL_TOKENS, pa.int64()),
        (TRUNCATED, pa.bool_()),
    ]
)
DIFFICULTY_SCHEMA = pa.schema(
    [
        (PROMPT_TOKENS, pa.int64()),  # everything before the answer, the chat template's tokens included
        (ANSWER_TOKENS, pa.int64()),
        (LOGPROB_GIVEN, pa.float64()),  # of the whole answer, given the text before it
        (LOGPROB_ALONE, pa.float64()),  # of the same tokens, without that text
        (TRUNCATED, pa.bool_()),
    ]
)
EMBEDDING_SCHEMA = pa.schema([(EMBEDDING, pa.list_(pa.float32())), (INPUT_TOKENS, pa.int64()), (TRUNCATED, pa.bool_())])
