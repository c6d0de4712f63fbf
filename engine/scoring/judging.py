"""The LLM judge without the model: its prompt, and the expected rating.

With p(r) the probability that the reply begins with rating r, over the scale `low` to `high`:

    score = sum_r r p(r) / sum_r p(r),   mass = sum_r p(r)

A score of 3.7 is more precise than the rating 4 that sampling would give, and costs one token. Several tokens may spell one
rating (`4` with or without a space before it); their probabilities add up. With a small mass the model was about to reply
something else and the score means nothing: such a reply is unparsable.

A row's texts stand between marker lines. Text that could close this frame is broken up: our markers become parentheses, and
the model's special tokens get a space inside. That protects the frame, but does not stop a text from persuading the judge,
so scores of adversarial data need another guard.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from raysift.errors import ModelError
from raysift.records import ChatMessage
from raysift.scoring.questions import Exchange, fit_exchange, question_text
from raysift.scoring.settings import JudgeSettings

CUT_MARK = "\n[cut here for length; the original goes on]"
_MARKER = re.compile(r"\[(\s*(?:BEGIN|END)\s+(?:REQUEST|ANSWER)\s*)\]", re.IGNORECASE)
T = TypeVar("T")
WORD_STARTS = " \t\r\n\u00a0ĠĊĉ▁"
"""White space, plus its spelling in the vocabularies of byte-level and sentencepiece tokenizers."""


class Rating(NamedTuple):
    """The expected rating (None if no rating has any probability), and the total probability of all ratings."""

    score: float | None
    mass: float


def rating_of(token: str, low: int, high: int) -> int | None:
    """The rating that a token spells, given as text or in vocabulary spelling, with or without white space around it."""
    bare = token.strip(WORD_STARTS)
    return (
        int(bare) if bare.isascii() and bare.isdigit() and str(int(bare)) == bare and low <= int(bare) <= high else None
    )


def expected_rating(logprobs: Mapping[str, float] | Iterable[tuple[str, float]], low: int, high: int) -> Rating:
    """The score and mass of the module's formulas, from next-token log-probabilities by token.

    Tokens that spell no rating are ignored, so pass the whole vocabulary or only its most probable part; with a part, the
    mass is a lower bound. Pairs allow a text to occur several times, when several tokens spell it.
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
    """Why this reply is not a rating, or None if it is one."""
    if not math.isfinite(rating.mass):
        return "the judge gave no finite probabilities"
    if rating.score is None or rating.mass < settings.min_mass:
        return (
            f"unparsable: the ratings {settings.low} to {settings.high} together have probability {rating.mass:.3g}, "
            f"expected at least {settings.min_mass:g}"
        )
    return None


def rating_tokens(tokenizer: Any, low: int, high: int) -> dict[int, list[int]]:
    """All tokens that spell each rating; refuses a rating that no single token spells."""
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
    """The tokens that `read` maps to each reply, in rising order, and the replies without a token."""
    found: dict[T, list[int]] = {reply: [] for reply in replies}
    for token, number in tokenizer.get_vocab().items():
        if (reply := read(token)) in found:
            found[reply].append(number)
    return {reply: sorted(numbers) for reply, numbers in found.items()}, [one for one in found if not found[one]]


# --- the prompt ------------------------------------------------------------------------------------------------------


def special_texts(tokenizer: Any) -> tuple[str, ...]:
    """Texts that the tokenizer reads as special tokens, which a row's text must not contain."""
    names = {str(token) for token in tokenizer.all_special_tokens}
    names |= {str(t.content) for t in getattr(tokenizer, "added_tokens_decoder", {}).values() if t.special}
    return tuple(sorted(names - {""}, key=lambda name: (-len(name), name)))


def frame(name: str, text: str, special: Sequence[str] = ()) -> str:
    """The text between marker lines; nothing in it can close the frame."""
    return f"[BEGIN {name}]\n{defuse(text, special)}\n[END {name}]"


def defuse(text: str, special: Sequence[str] = ()) -> str:
    """The text with our markers' brackets turned into parentheses, and special tokens broken up by a space."""
    text = _MARKER.sub(r"(\1)", text)
    for name in filter(str.strip, special):
        broken = f"{name[0]} {name[1:]}" if len(name) > 1 else " "
        text = text.replace(name, broken)
        while name in text and name not in broken:  # overlaps, such as `<<` in `<<<`
            text = text.replace(name, broken)
    return text


def judge_message(exchange: Exchange, settings: JudgeSettings, special: Sequence[str] = ()) -> ChatMessage:
    """The message to the judge about a question and its answer."""
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
    encode: Callable[[ChatMessage], list[int]],
    longest: int,
) -> tuple[list[int], bool]:
    """Token ids of the message to the judge, at most `longest`, and whether the row's texts had to be cut.

    A mark shows the judge where a text was cut. The ids are empty if the message does not fit even without texts.
    """
    special = special_texts(tokenizer)

    def ask(each: Exchange) -> list[int]:
        return encode(judge_message(each, settings, special))

    ids = ask(exchange)
    if len(ids) <= longest:
        return ids, False
    return fit_exchange(exchange, ask, tokenizer, longest, CUT_MARK) or [], True
