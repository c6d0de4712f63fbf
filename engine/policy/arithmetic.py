"""What a step of RAISE takes on given hardware, by counted operations and bytes: a bound that a real step comes near.

    train      tokens x FLOP of a token / ranks, or the launches of its passes if these take longer, and the exchange:
               log2(ranks) times 4 bytes of each trained number
    validate   tokens x 2 FLOP of each parameter / ranks
    choose     bytes that the first process reads and writes for each row of the pool, or its FLOP

FLOP of a token with P parameters: 2 P forward, 2 P back to the activations, and 2 P for the gradients of what is trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from raysift.settings.memory import Shape


@dataclass(frozen=True)
class Card:
    """What a GPU attains, not what its sheet says."""

    products: float
    """FLOP a second of bfloat16 products."""
    single: float
    """FLOP a second of float32 products."""
    memory: float
    """Bytes a second from its own memory."""
    link: float
    """Bytes a second to another GPU of the machine."""
    launch_s: float = 6e-6


H100 = Card(products=450e12, single=45e12, memory=2.7e12, link=300e9)


@dataclass(frozen=True)
class StepSeconds:
    """Seconds of a step, part by part."""

    train: float
    exchange: float
    validate: float
    choose: float

    @property
    def total(self) -> float:
        return self.train + self.exchange + self.validate + self.choose


def step_seconds(
    shape: Shape,
    trained: int,
    batch_tokens: int,
    validation_tokens: int,
    pool_rows: int,
    ranks: int = 8,
    card: Card = H100,
    hidden: Sequence[int] = (64, 64),
    balance: float = 0.9,
    launches: int = 220,
) -> StepSeconds:
    """A step that trains `trained` numbers of the model on padded `batch_tokens`; `launches` kernels a layer and pass."""
    parameters = shape.parameters - shape.vocabulary * shape.hidden  # embeddings are looked up
    flop = batch_tokens * (4 * parameters + 6 * min(trained, parameters))
    passes = math.ceil(batch_tokens / (4096 * ranks))
    return StepSeconds(
        train=max(flop / ranks / balance / card.products, passes * launches * shape.layers * card.launch_s)
        + 28 * trained / card.memory,
        exchange=math.log2(ranks) * 4 * trained / card.link,
        validate=validation_tokens * 2 * parameters / ranks / balance / card.products,
        choose=max(choosing_bytes(hidden) * pool_rows / card.memory, choosing_flop(hidden) * pool_rows / card.single),
    )


def choosing_bytes(hidden: Sequence[int]) -> int:
    """Bytes that `DevicePicker` reads and writes for each row of the pool in a step with a draw.

    The network adds to the first layer and takes its tanh in place, then reads and writes each layer twice. About 480 bytes are
    the noise, three rounds of whole numbers and two logarithms, and the comparisons of the keys.
    """
    layers = 4 * hidden[0] + sum(width + 3 * following for width, following in pairwise(hidden)) + hidden[-1]
    return 4 * layers + 480


def choosing_flop(hidden: Sequence[int]) -> int:
    """Products' FLOP for each row of the pool in a step."""
    return 2 * (sum(width * following for width, following in pairwise(hidden)) + hidden[-1])
