"""The performance P of a model in RAISE's rewards, from the losses of the validation rows."""

from __future__ import annotations

import math
from collections.abc import Mapping

from raysift.errors import StageError


def performance(row_losses: Mapping[int, tuple[float, int]]) -> float:
    """P = -(sum of nats) / (sum of tokens); `row_losses` maps each row's number to its (nats, tokens).

    `math.fsum` rounds the exact sum once, so P does not depend on how rows were split among workers.
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
