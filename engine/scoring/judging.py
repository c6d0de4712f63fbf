"""The LLM judge without the model: its prompt, and the rating that it is expected to give.

With p(r) the probability that the reply begins with rating r, over the scale `low` to `high`:

    score = sum_r r p(r) / sum_r p(r),   mass = sum_r p(r)

A score of 3.7 says more than the rating 4 that sampling would give, and costs one token. Several tokens may spell one
rating (`4` and a space before it); their probabilities add up. Where the mass is small the model was about to say
something else, and the score means nothing: such a reply is unparsable.

A row's texts stand between marker lines. What could close that frame is broken up: our markers become parentheses, the
model's own special tokens get a space inside. That keeps the frame; it does not keep a judge from being talked into a
rating by what it reads, so scores of adversarial data need another guard.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from raysift.errors import ModelError
from raysift.scoring.questions import Exchange, Message, fit_exchange, question_text
from raysift.scoring.settings import JudgeSettings

CUT_MARK = "\n[cut here for length; the original goes on]"
_MARKER = re.compile(r"\[(\s*(?:BEGIN|END)\s+(?:REQUEST|ANSWER)\s*)\]", re.IGNORECASE)
T = TypeVar("T")
WORD_STARTS = " \t\r\n\u00a0ĠĊĉ▁"
"""White space, and how the vocabularies of byte-level and sentencepiece tokenizers spell it."""


class Rating(NamedTuple):
    """The expected rating, None where no rating has any probability, and the probability of all ratings together."""

    score: float | None
    mass: float


def rating_of(token: str, low: int, high: int) -> int | None:
    """The rating that a token spells, as text or as it stands in a vocabulary, with or without white space around."""
    bare = token.strip(WORD_STARTS)
    return (
        int(bare) if bare.isascii() and bare.isdigit() and str(int(bare)) == bare and low <= int(bare) <= high else None
    )


def expected_rating(logprobs: Mapping[str, float] | Iterable[tuple[str, float]], low: int, high: int) -> Rating:
    """The score and mass of the module's formulas, from next-token log-probabilities by token.

    Tokens that spell no rating are passed over, so all of a vocabulary or its most probable part will do; of a part,
    the mass is a lower bound. One text may come several times, as pairs, where several tokens spell it.
    """
    pairs = logprobs.items() if isinstance(logprobs, Mapping) else logprobs
    mass = weighted = 0.0
    for token, logprob in pairs:
        rating = rating_of(token, low, high)
        if rating is not None:
            probability = math.exp(logprob)
            mass += probability
            weighted += rating * probability
    return Rating(weighted / mass if mass > 0 else None, mass)


def check_rating(rating: Rating, settings: JudgeSettings) -> str | None:
    """Why this reply is no rating, or None where it is one."""
    if not math.isfinite(rating.mass):
        return "the judge gave no finite probabilities"
    if rating.score is None or rating.mass < settings.min_mass:
        return (
            f"unparsable: the ratings {settings.low} to {settings.high} together have probability {rating.mass:.3g}, "
            f"expected at least {settings.min_mass:g}"
        )
    return None


def rating_tokens(tokenizer: Any, low: int, high: int) -> dict[int, list[int]]:
    """The tokens that spell each rating, all spellings; a rating without a token of its own is refused."""
    found, lacking = spellings(tokenizer, range(low, high + 1), lambda token: rating_of(token, low, high))
    if lacking:
        raise ModelError(
            f"judge: the tokenizer has no single token for {', '.join(map(str, lacking))}, so these ratings cannot be "
            "weighed by the first token of a reply. Set judge.low and judge.high to a scale of single digits."
        )
    return found


def spellings(
    tokenizer: Any, replies: Iterable[T], read: Callable[[str], T | None]
) -> tuple[dict[T, list[int]], list[T]]:
    """The tokens that `read` takes for each reply, in rising order, and the replies that no token spells."""
    found: dict[T, list[int]] = {reply: [] for reply in replies}
    for token, number in tokenizer.get_vocab().items():
        if (reply := read(token)) in found:
            found[reply].append(number)
    return {reply: sorted(numbers) for reply, numbers in found.items()}, [one for one in found if not found[one]]


# --- the prompt ------------------------------------------------------------------------------------------------------


def special_texts(tokenizer: Any) -> tuple[str, ...]:
    """Texts that the tokenizer reads as special tokens, which a row's own text must not hold."""
    names = {str(token) for token in tokenizer.all_special_tokens}
    names |= {str(t.content) for t in getattr(tokenizer, "added_tokens_decoder", {}).values() if t.special}
    return tuple(sorted(names - {""}, key=lambda name: (-len(name), name)))


def frame(name: str, text: str, special: Sequence[str] = ()) -> str:
    """The text between marker lines that nothing in it can close."""
    return f"[BEGIN {name}]\n{defuse(text, special)}\n[END {name}]"


def defuse(text: str, special: Sequence[str] = ()) -> str:
    """The text with our markers turned into parentheses and special tokens broken up by a space."""
    text = _MARKER.sub(r"(\1)", text)
    for name in filter(str.strip, special):
        broken = f"{name[0]} {name[1:]}" if len(name) > 1 else " "
        text = text.replace(name, broken)
        while name in text and name not in broken:  # overlapping ones, as `<<` in `<<<`
            text = text.replace(name, broken)
    return text


def judge_message(exchange: Exchange, settings: JudgeSettings, special: Sequence[str] = ()) -> Message:
    """What the judge is asked about a question and its answer."""
    content = settings.prompt.format(
        low=settings.low,
        high=settings.high,
        request=frame("REQUEST", question_text(exchange.before), special),
        answer=frame("ANSWER", exchange.answer, special),
    )
    return {"role": "user", "content": content}


def fit_judge_message(
    exchange: Exchange,
    settings: JudgeSettings,
    tokenizer: Any,
    encode: Callable[[Message], list[int]],
    longest: int,
) -> tuple[list[int], bool]:
    """Token ids of the question to the judge, at most `longest`, and whether the row's texts had to be cut for it.

    Where texts are cut a mark tells the judge. No ids are given where even the bare question does not fit.
    """
    special = special_texts(tokenizer)

    def ask(each: Exchange) -> list[int]:
        return encode(judge_message(each, settings, special))

    ids = ask(exchange)
    if len(ids) <= longest:
        return ids, False
    return fit_exchange(exchange, ask, tokenizer, longest, CUT_MARK) or [], True
