"""How an answer is judged: one pure function per metric, and the settings of an evaluation.

Metrics of a generated answer take the text and the example and give 0 to 1:
- exact_match: equal after `extract_answer` and `normalise`.
- numeric_match: the number of the answer equals the number of the reference.
- rouge_l: F1 of the longest common subsequence of words (Lin 2004), without stemming.

Metrics of a choice compare log-probabilities of the choices and generate nothing:
- mc_accuracy: the most probable choice is the right one.
- mc_truthful: the same (MC1 of TruthfulQA), for files in which the right choice always stands first: where choices are
  shown to the model they are shuffled by the example's id.

How probable a choice is: the log-probability of the whole assistant turn, its end included, so that `12` is not
preferred to `120` for being its beginning. By default it is divided by the UTF-8 bytes of the choice: the plain sum
favours short choices, and dividing by tokens makes the result depend on the tokenizer. TruthfulQA's own code takes the
sum.

A metric that is in neither list (judge, pass@1, instruction_checks, ...) is not scored here; such examples are counted.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Literal

from pydantic import Field

from raysift.records import Example
from raysift.settings.base import TRAIN, Seed, Settings, TaughtTemplate

Normalisation = Literal["byte", "token", "sum"]
ChoiceStyle = Literal["text", "letter"]

NUMBER_TOLERANCE = Fraction(1, 10**6)
MAX_DIGITS = 400

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class EvalConfig(Settings):
    """What decides the numbers of an evaluation."""

    split: str | None = None
    """Only the examples of this split (test, val, dev, ...); none takes the whole file, few-shot examples included."""
    max_new_tokens: int = Field(256, ge=1)
    """Length of a generated answer. Too small cuts reasoning off before its result, which then counts as wrong."""
    temperature: float = Field(0.0, ge=0)
    """0 takes the most probable token each time; above 0 samples, seeded by `seed` and the example's id."""
    seed: Seed = 0
    """Seeds the sampling and `limit`; unless it is named, it is the run's `seed`."""
    limit: int | None = Field(None, ge=1)
    """Most examples of each task, drawn by a hash of the id; none takes all."""
    template: TaughtTemplate = TRAIN
    """Chat template. `train`: the one that the model was trained under, or `train.template` where nothing tells."""
    choice_normalisation: Normalisation = "byte"
    """What a choice's log-probability is divided by: its `byte`s, its `token`s, or nothing (`sum`)."""
    choice_style: ChoiceStyle = "text"
    """`text` weighs the choices' words, which the prompt does not hold; `letter` lists them and weighs A, B, C."""
    max_length: int | None = Field(None, ge=8)
    """Tokens of prompt and answer together; none: what the model takes. A longer example fails with a message."""
    answer_loss: bool = True
    """Also measure the mean token loss of the reference answers; false saves a pass over the examples."""
    confidence: float = Field(0.95, gt=0, lt=1)
    """Of the intervals."""
    backend: Literal["auto", "vllm", "transformers"] = "auto"
    """What generates answers, as in `mods.generation.backend`; the one that answered is recorded. `compare` always takes
    transformers, since its cells must be alike."""

    def deciding(self) -> dict[str, Any]:
        """The settings that identify answers; a backend counts only if it is named, as in evaluations before there were two."""
        return self.model_dump(mode="json", exclude={"backend"} if self.backend == "auto" else set())


# --- a generated answer ----------------------------------------------------------------------------------------------

_MARKER = re.compile(r"(?:\banswer(?:\s+is\b\s*:?|\s*:)|####)[ \t]*", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_AROUND = " \t\"'`*“”‘’"
_AT_END = ".,;:!?。，！？"
_OPTION = re.compile(r"\(([A-Za-z])\)")
_OPTION_ANSWER = re.compile(r"(?:option\s+)?(?:\(([A-Za-z])\)|([A-Za-z])(?:[).:]|$))", re.IGNORECASE)


def extract_answer(text: str) -> str:
    """What follows the last `answer is`, `answer:` or `####` on its line, or inside the last `\\boxed{}`; else all."""
    boxed = _BOXED.findall(text)
    if boxed:
        return str(boxed[-1]).strip()
    marks = list(_MARKER.finditer(text))
    if marks:
        rest = text[marks[-1].end() :].strip()
        if rest:
            return rest.splitlines()[0].strip()
    return text.strip()


def normalise(text: str) -> str:
    """White space folded; quotes, emphasis and the punctuation that ends a sentence taken off."""
    folded = " ".join(text.split())
    bare = folded.strip(_AROUND).rstrip(_AT_END + _AROUND)
    return bare or folded


def exact_match(answer: str, example: Example) -> float:
    """1 for the same answer, else 0.

    Case is ignored, unless the reference is all capitals (of two letters or more): there capitals are what was asked
    for. Where the reference is an option such as `(B)`, the answers `B`, `B.` and `(B) the red one` are right too.
    """
    reference = normalise(extract_answer(example.reference or ""))
    found = normalise(extract_answer(answer))
    option = _OPTION.fullmatch(reference)
    if option:
        chosen = _OPTION_ANSWER.match(found)
        return float(chosen is not None and (chosen[1] or chosen[2]).upper() == option[1].upper())
    capitals = reference.isupper() and sum(character.isalpha() for character in reference) > 1
    return float(found == reference if capitals else found.casefold() == reference.casefold())


# A sign right after a digit or a closing bracket is a subtraction: 16-3 holds the numbers 16 and 3.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\d.)\w])[-−])?\s?[$€£]?\s?(?P<inner>(?<=[$€£])[-−])?"
    r"(?:(?P<whole>\d+)\s+(?P<part>\d+/0*[1-9]\d*)"
    r"|(?P<fraction>\d+/0*[1-9]\d*)"
    r"|(?P<decimal>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d{1,3}(?!\d))?|\.\d+))"
)


def find_numbers(text: str) -> list[Fraction]:
    """All numbers in the text, exactly: 1,200 and 3/4 and 1 1/2 and -$5 and 2e3; a percent sign changes nothing.

    A model that repeats a digit for ever has not written a number: longer ones than MAX_DIGITS are passed over.
    """
    return [_value(match) for match in _NUMBER.finditer(text) if len(match[0]) <= MAX_DIGITS]


def _value(match: re.Match[str]) -> Fraction:
    if match["whole"]:
        size = int(match["whole"]) + Fraction(match["part"])
    else:
        size = Fraction((match["fraction"] or match["decimal"]).replace(",", ""))
    return -size if match["sign"] or match["inner"] else size


def numeric_match(answer: str, example: Example) -> float:
    """1 where the answer's number is the reference's.

    It is the first number after the last `answer is`, `answer:`, `####` or inside `\\boxed{}`, and without such a mark
    the last number of the text.
    """
    expected = find_numbers(extract_answer(example.reference or ""))
    extracted = extract_answer(answer)
    marked = extracted != answer.strip()
    found = find_numbers(extracted)[:1] if marked else []
    found = found or find_numbers(answer)[-1:]
    if not found or not expected:
        return 0.0
    return float(abs(found[0] - expected[-1]) <= max(abs(expected[-1]) * NUMBER_TOLERANCE, NUMBER_TOLERANCE**2))


# One word, or one character of a script that puts no spaces between words.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


def rouge_l(answer: str, example: Example) -> float:
    """F1 of the longest common subsequence of lower-case words."""
    found, expected = (_WORD.findall(text.lower()) for text in (answer, example.reference or ""))
    if not found or not expected:
        return 0.0
    common = common_subsequence(found, expected)
    return 2 * common / (len(found) + len(expected))


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence; a row of the table is the bits of one integer (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for i, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << i
    everything = (1 << len(first)) - 1
    row = everything
    for word in second:
        hit = row & places.get(word, 0)
        row = (row + hit | row - hit) & everything
    return len(first) - row.bit_count()


METRICS: dict[str, Callable[[str, Example], float]] = {
    "exact_match": exact_match,
    "numeric_match": numeric_match,
    "rouge_l": rouge_l,
}
"""Metrics of a generated answer."""

GRADED = frozenset({"rouge_l"})
"""Metrics with values between right and wrong; the others get Wilson's interval."""


# --- a choice --------------------------------------------------------------------------------------------------------

CHOICE_METRICS = ("mc_accuracy", "mc_truthful")
"""Metrics of the log-probabilities of given choices."""

SHUFFLED = frozenset({"mc_truthful"})
"""Metrics in whose files the place of a choice gives it away."""


JUDGED_ELSEWHERE = ("instruction_checks", "judge", "pass@1")
"""Metrics of usual test sets that need a judge or run code: such examples are answered and counted as not scored."""


def is_scored(metric: str) -> bool:
    """Whether this package judges the metric itself."""
    return metric in METRICS or metric in CHOICE_METRICS


def choice_order(example: Example) -> list[int]:
    """The order in which choices are shown: the file's, or one drawn by id where the file's gives the answer away."""
    order = list(range(len(example.choices or ())))
    return sorted(order, key=lambda i: _draw(example, i)) if example.metric in SHUFFLED else order


def normalised_scores(
    logprobs: Sequence[float], n_tokens: Sequence[int], n_bytes: Sequence[int], normalisation: Normalisation
) -> list[float]:
    """Log-probabilities of the choices made comparable."""
    divisors = {"sum": [1] * len(logprobs), "token": n_tokens, "byte": n_bytes}[normalisation]
    return [logprob / max(1, divisor) for logprob, divisor in zip(logprobs, divisors, strict=True)]


def pick_choice(scores: Sequence[float], example: Example) -> int:
    """The choice with the highest score; of equal ones the one that a hash of id and text names, not the first."""
    return max(range(len(scores)), key=lambda i: (scores[i], _draw(example, i)))


def _draw(example: Example, choice: int) -> bytes:
    """A number that depends on the example and the words of the choice, never on the place of the choice."""
    assert example.choices is not None
    return hashlib.blake2b(f"{example.id}\x00{example.choices[choice]}".encode(), digest_size=8).digest()


def score_choice(picked: int, example: Example) -> float:
    """1 for the right choice, or for another one with the same words."""
    assert example.choices is not None and example.answer_index is not None
    return float(example.choices[picked] == example.choices[example.answer_index])
