"""The performance of a model on validation rows, from what each row lost: the P of RAISE's rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping

from raysift.errors import StageError


def performance(row_losses: Mapping[int, tuple[float, int]]) -> float:
    """P = -(sum of nats) / (sum of tokens) over rows, each given as (nats, tokens) under its number.

    The sum is exact before it is rounded (`math.fsum`), so it is the same however the rows were dealt to workers.
    """
    numbers = sorted(row_losses)
    nats = math.fsum(row_losses[number][0] for number in numbers)
    tokens = sum(row_losses[number][1] for number in numbers)
    if tokens <= 0 or not math.isfinite(nats):
        raise StageError(
            f"validation: {len(numbers)} rows have {tokens} tokens and a loss of {nats} nats in sum; there must be "
            "tokens, and every loss a number. A training that blew up needs a lower learning rate."
        )
    return -nats / tokens
