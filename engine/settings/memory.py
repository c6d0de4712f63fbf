"""How much memory a worker needs, estimated from its model's configuration before anything is loaded, and what follows.

    weights        P x b                             b: bytes of a number, 4 in float32, 2 in bfloat16
    trained        16 x numbers                      in float32: the number, its gradient and Adam's two moments
    activations    L (12 h + 3 f) b a token          what the backward pass reads: norms, projections, attention, feed-forward
                   + L (6 h + f) 4, only if b = 2    float32 copies of the inputs of layers with an adapter
    logits         8 V a token                       logits and the gradient at them, one of them in float32;
                   (2 b + 12) V in a training        transformers' loss keeps more copies of them
    accumulators   the gradients of rows side by side

with L layers of width h, f in the feed-forward, V tokens in the vocabulary. A worker holds the bytes that do not depend on its
pass and those of the tokens in one pass, of which a long row alone has many. The figures are upper estimates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

GIB = 2**30
PROCESS_BYTES = 3 * GIB // 4
"""Python with torch, transformers and Ray, before a model is loaded."""
SMALL = 50_000_000
"""Models of fewer parameters gain nothing from a second thread, and their memory hardly counts."""
THREADS_EACH = 4
"""Threads of a worker for a larger model: fewer workers load it less often, and many threads wait for each other."""
PASS_BYTES = 5 * GIB // 4
"""A pass on CPUs takes no more, if its rows allow: larger ones are not faster."""
MOST_TOKENS, FEWEST_TOKENS = 4096, 128
CARD_SHARE = 0.92
"""Of a GPU's memory, what a plan may fill; the rest is lost between torch's blocks."""
CARD_PROCESS_BYTES = GIB
"""CUDA's context and the workspaces of its libraries, before a model is loaded."""
ACCUMULATED_BYTES = GIB // 4
"""Rows of a pass whose gradients add up side by side take no more than this, or are one row."""

_NAMES = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "vocabulary": ("vocab_size",),
    "heads": ("num_attention_heads", "n_head"),
}


@dataclass(frozen=True)
class Shape:
    """The widths of a transformer."""

    hidden: int
    layers: int
    vocabulary: int
    attention: int
    """Width of all queries together."""
    keys: int
    """Width of all keys together; less than `attention` if heads share them."""
    feed_forward: int
    gated: bool
    tied: bool
    positions: int

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a layer's linear maps, under the names that Llama gives them."""
        h, f = self.hidden, self.feed_forward
        found = {"q_proj": (h, self.attention), "k_proj": (h, self.keys), "v_proj": (h, self.keys)}
        found |= {"o_proj": (self.attention, h), "up_proj": (h, f), "down_proj": (f, h)}
        return found | ({"gate_proj": (h, f)} if self.gated else {})

    @property
    def parameters(self) -> int:
        """All weights, without biases and norms."""
        layer = sum(rows * columns for rows, columns in self.linears.values())
        return self.layers * layer + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def adapter(self, rank: int, targets: str | tuple[str, ...]) -> int:
        """Numbers of a LoRA adapter of this rank on the named layers, or on all that are linear."""
        known = {name: sizes for name, sizes in self.linears.items() if targets == "all-linear" or name in targets}
        return self.layers * rank * sum(map(sum, (known or self.linears).values()))


@dataclass(frozen=True)
class Need:
    """What a worker takes, part by part: bytes that it always holds, and those of each token in a pass."""

    weights: int
    """The model as it is loaded."""
    process: int = PROCESS_BYTES
    trained: int = 0
    """Trained numbers with their gradients and moments."""
    accumulators: int = 0
    rows: int = 0
    """Data that stays in memory."""
    activations: int = 0
    """Of each token in a pass."""
    logits: int = 0
    """Of each token in a pass."""
    longest: int = 1
    """Tokens of the longest row; a pass holds one row at least."""
    between: int = 0
    """Of a pass without gradients between the others, which leaves nothing behind."""
    small: bool = False

    @property
    def fixed(self) -> int:
        """Bytes that do not depend on the pass."""
        return self.process + self.weights + self.trained + self.accumulators + self.rows

    @property
    def by_token(self) -> int:
        """Bytes of a token in a pass."""
        return self.activations + self.logits

    def bytes(self, tokens: int) -> int:
        """With passes of so many tokens."""
        return self.fixed + max(self.by_token * max(tokens, self.longest), self.between)

    def parts(self, tokens: int) -> dict[str, int]:
        """The parts of `bytes`, the largest first."""
        size = max(tokens, self.longest)
        names = ("process", "weights", "trained", "accumulators", "rows")
        found = {name: getattr(self, name) for name in names}
        if self.between > self.by_token * size:
            found["validation"] = self.between
        else:
            found |= {"activations": self.activations * size, "logits": self.logits * size}
        return {name: found[name] for name in sorted(found, key=lambda name: -found[name]) if found[name]}


@dataclass(frozen=True)
class Fit:
    """How a stage uses its machines: workers at a time, threads of each, tokens of a pass, memory of each."""

    workers: int
    threads: int
    tokens: int
    bytes: int
    room: int
    """Memory that one machine, or a worker's GPU, has for workers."""
    small: bool = False
    host: int | None = None
    """Bytes of the machine's memory that a worker on a GPU takes; None on CPUs, where these are all."""

    @property
    def too_large(self) -> bool:
        """Whether not even one worker with the shortest passes fits, as far as the estimate goes."""
        return not self.small and self.bytes > self.room

    @property
    def reserved(self) -> int:
        """Bytes to reserve for a worker: none for a small one, and never more than a machine has, which would never come."""
        if self.host is not None:
            return self.host
        return 0 if self.small else min(self.bytes, self.room * 9 // 10)


def shape_of(card: Mapping[str, Any]) -> Shape | None:
    """The shape that a model's `config.json` describes; None if it names no widths that we know."""
    card = {**card, **(card.get("text_config") or {})}
    found = {key: next((int(card[name]) for name in names if card.get(name)), 0) for key, names in _NAMES.items()}
    if not all(found.values()):
        return None
    hidden, heads = found["hidden"], found["heads"]
    width = int(card.get("head_dim") or hidden // heads)
    return Shape(
        hidden=hidden,
        layers=found["layers"],
        vocabulary=found["vocabulary"],
        attention=width * heads,
        keys=width * int(card.get("num_key_value_heads") or heads),
        feed_forward=int(card.get("intermediate_size") or card.get("n_inner") or 4 * hidden),
        gated=card.get("hidden_act") == "silu",
        tied=bool(card.get("tie_word_embeddings", True)),
        positions=int(card.get("max_position_embeddings") or card.get("n_positions") or 2**31),
    )


def answering(shape: Shape, dtype: str) -> Need:
    """A worker that scores, embeds or answers: two layers' states at a time, and the logits. Its passes have their own size."""
    return Need(
        weights=shape.parameters * _bytes(dtype),
        activations=_passing(shape, dtype),
        logits=shape.vocabulary * 4,
        longest=MOST_TOKENS,
        small=shape.parameters < SMALL,
    )


def training(shape: Shape, dtype: str, longest: int, trained: int, whole: bool) -> Need:
    """A worker that trains `trained` numbers, each with gradient and two moments in float32; `whole`: no frozen weights."""
    return Need(
        weights=0 if whole else shape.parameters * _bytes(dtype),
        trained=16 * trained,
        activations=_kept(shape, dtype),
        logits=shape.vocabulary * (2 * _bytes(dtype) + 12),
        longest=min(longest, shape.positions),
        small=shape.parameters < SMALL,
    )


def stepping(training: Need, shape: Shape, dtype: str, rows: int, measured: int) -> Need:
    """A training that can start again and is measured between its steps, on `measured` tokens at a time. It keeps `rows` bytes
    of features, the first values of what it trains, and up to four sums of gradients beside the one in work."""
    between = (_passing(shape, dtype) + shape.vocabulary * 12) * measured
    return replace(training, trained=training.trained * 9 // 4, rows=rows, between=between)


def row_gradients(
    shape: Shape, dtype: str, longest: int, adapter: int, checkpoints: int, per_checkpoint: float, width: int
) -> Need:
    """A worker that takes row gradients: each checkpoint holds its weights and `per_checkpoint` further vectors of the size of
    the adapter (moments, targets), a pass the rows' accumulators of `width` numbers, their rotation and their host copy."""
    return Need(
        weights=shape.parameters * _bytes(dtype),
        trained=int(4 * adapter * checkpoints * (1 + per_checkpoint)),
        accumulators=3 * max(ACCUMULATED_BYTES, 4 * width),
        activations=_kept(shape, dtype),
        logits=shape.vocabulary * 8,
        longest=min(longest, shape.positions),
        small=shape.parameters < SMALL,
    )


def fit(
    need: Need,
    cores: int,
    memory: int,
    machines: int = 1,
    workers: int | None = None,
    tokens: int | None = None,
    most: int | None = None,
) -> Fit:
    """What each of these machines does with so many cores and bytes. A number that is given stays as it is.

    More than `most` workers would find nothing to do: fewer have more threads. Tokens of a pass change no result, and neither
    do workers and threads, up to rounding.
    """
    asked = tokens or _usual_tokens(need)
    while tokens is None and need.bytes(asked) > memory and asked > FEWEST_TOKENS:
        asked //= 2
    size = need.bytes(asked)
    if workers is None:
        each = cores if need.small else min(-(-cores // THREADS_EACH), memory // size)
        workers = min(machines * max(1, each), most or machines * cores)
    threads = 1 if need.small else max(1, cores // -(-workers // machines))
    return Fit(workers, threads, asked, size, memory, need.small)


def fit_card(need: Need, card: int, workers: int, host: int, tokens: int | None = None) -> Fit:
    """What workers with a GPU of `card` bytes each do, on a machine with `host` bytes for every worker that finds a GPU there."""
    asked, room = tokens or MOST_TOKENS, int(card * CARD_SHARE)
    on_card = replace(need, process=CARD_PROCESS_BYTES)
    while tokens is None and on_card.bytes(asked) > room and asked > FEWEST_TOKENS:
        asked //= 2
    held = need.process + need.weights + need.rows
    return Fit(workers, 1, asked, on_card.bytes(asked), room, need.small, host=min(held, host * 9 // 10))


def fewer(found: Fit, need: Need) -> Fit:
    """After a worker was killed for its memory: passes of half the tokens, or half the workers if passes are short."""
    if found.tokens > max(FEWEST_TOKENS, need.longest):
        tokens = found.tokens // 2
        return replace(found, tokens=tokens, bytes=need.bytes(tokens))
    fewer = max(1, found.workers // 2)
    threads = 1 if found.small else found.threads * found.workers // fewer
    return replace(found, workers=fewer, threads=threads)


def _usual_tokens(need: Need) -> int:
    """The largest power of two whose pass takes at most PASS_BYTES."""
    most = max(1, PASS_BYTES // max(1, need.by_token))
    return min(MOST_TOKENS, max(FEWEST_TOKENS, 1 << (most.bit_length() - 1)))


def _kept(shape: Shape, dtype: str) -> int:
    """Bytes of a token until its backward pass."""
    h, f = shape.hidden, shape.feed_forward
    captured = (6 * h + f) * 4 if _bytes(dtype) == 2 else 0
    return shape.layers * ((12 * h + 3 * f) * _bytes(dtype) + captured)


def _passing(shape: Shape, dtype: str) -> int:
    """Bytes of a token in a pass that keeps nothing for a backward pass: two layers at a time."""
    return (12 * shape.hidden + 3 * shape.feed_forward) * 2 * _bytes(dtype)


def _bytes(dtype: str) -> int:
    return 4 if dtype == "fp32" else 2
