"""The skills of the nano world: problems with one exact answer, several ways to ask, and a plausible wrong answer.

A skill draws a *payload* (the strings that fill a phrasing) together with its answer. The payload identifies the
problem: the same payload asked in another phrasing is still the same problem, which is what keeps evaluation apart
from the pool (see `world`). A phrasing with a blank line has an *input* part, joined as Alpaca joins it.

To add a skill: write `draw` (and `wrong`, if none of those here suits), then one entry in `SKILLS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from raysift.nano.words import ENDINGS, NOUNS, SYLLABLES, WEEKDAYS

Payload = tuple[str, ...]
T = TypeVar("T")

STYLES = ("plain", "sentence")
SENTENCE_START, SENTENCE_END = "The answer is ", "."


@dataclass(frozen=True)
class Skill:
    """One kind of problem; every phrasing takes the same payload."""

    name: str
    phrasings: tuple[str, ...]
    draw: Callable[[Random], tuple[Payload, str]]
    wrong: Callable[[Random, Payload, str], str]
    """A plausible answer that differs from the right one."""

    def ask(self, payload: Payload, phrasing: int) -> str:
        return self.phrasings[phrasing].format(*payload)


def style_answer(answer: str, style: str) -> str:
    """The same answer as the given style words it; `extract_answer` undoes every style."""
    return answer if style == "plain" else f"{SENTENCE_START}{answer}{SENTENCE_END}"


def extract_answer(text: str) -> str:
    """The bare answer inside a response of any style, so that exact match does not depend on style."""
    text = text.strip()
    if text.startswith(SENTENCE_START) and text.endswith(SENTENCE_END):
        return text[len(SENTENCE_START) : -len(SENTENCE_END)]
    return text


def is_exact_match(response: str, reference: str) -> bool:
    return extract_answer(response) == extract_answer(reference)


# Draws use int(random() * n) rather than randrange: three times as fast, and a pool may have ten million rows.


def pick(rng: Random, items: Sequence[T]) -> T:
    """One of the items, each with the same chance."""
    return items[int(rng.random() * len(items))]


def number(rng: Random, low: int, high: int) -> int:
    """Uniform over low..high, both included."""
    return low + int(rng.random() * (high - low + 1))


def several_nouns(rng: Random, count: int) -> list[str]:
    """Distinct nouns."""
    nouns: list[str] = []
    while len(nouns) < count:
        noun = pick(rng, NOUNS)
        if noun not in nouns:
            nouns.append(noun)
    return nouns


def code_word(rng: Random) -> str:
    """An invented word of four or five letters."""
    return pick(rng, SYLLABLES) + pick(rng, SYLLABLES) + pick(rng, ENDINGS)


def near_number(rng: Random, payload: Payload, answer: str) -> str:
    value = int(answer)
    shifted = value + pick(rng, (-10, -2, -1, 1, 2, 10))
    return str(shifted if shifted >= 0 else value + 3)


def other_order(rng: Random, payload: Payload, answer: str) -> str:
    """The same words in an order that is not the answer's; a random word when all are alike."""
    words = answer.split()
    shuffled = words[:]
    for _ in range(8):
        rng.shuffle(shuffled)
        if shuffled != words:
            return " ".join(shuffled)
    return pick(rng, NOUNS) + "y"


def misspelt(rng: Random, payload: Payload, answer: str) -> str:
    """Two neighbouring letters swapped, or a letter doubled where swapping changes nothing."""
    place = int(rng.random() * (len(answer) - 1)) if len(answer) > 1 else 0
    swapped = answer[:place] + answer[place + 1 : place + 2] + answer[place] + answer[place + 2 :]
    return swapped if swapped != answer else answer[: place + 1] + answer[place:]


def other_of_payload(rng: Random, payload: Payload, answer: str) -> str:
    """Another number (or word) that the question itself mentions."""
    mentioned = " ".join(payload).replace(",", "").replace(":", "").split()
    words = [word for word in mentioned if word != answer and word.isdigit() == answer.isdigit()]
    return pick(rng, words) if words else misspelt(rng, payload, answer)


def one_of(*options: str) -> Callable[[Random, Payload, str], str]:
    def wrong(rng: Random, payload: Payload, answer: str) -> str:
        return pick(rng, [option for option in options if option != answer])

    return wrong


def other_letters(rng: Random, payload: Payload, answer: str) -> str:
    """As many letters from elsewhere in the word, or from the alphabet when the word offers none."""
    word, count = payload[-1], len(answer)
    for _ in range(8):
        start = int(rng.random() * (len(word) - count + 1))
        if word[start : start + count] != answer:
            return word[start : start + count]
    return "".join(pick(rng, "bcdfghjklm") for _ in range(count)) + "q"


def draw_add(rng: Random) -> tuple[Payload, str]:
    a, b = number(rng, 1, 999), number(rng, 1, 9)
    return (str(a), str(b)), str(a + b)


def draw_subtract(rng: Random) -> tuple[Payload, str]:
    a, b = number(rng, 10, 999), number(rng, 1, 9)
    return (str(a), str(b)), str(a - b)


def draw_multiply(rng: Random) -> tuple[Payload, str]:
    a, b = number(rng, 2, 60), number(rng, 2, 9)
    return (str(a), str(b)), str(a * b)


def draw_larger(rng: Random) -> tuple[Payload, str]:
    a = number(rng, 1, 999)
    b = a + number(rng, 1, 90) if rng.random() < 0.5 else number(rng, 1, 999)
    return ((str(a), str(b)) if rng.random() < 0.5 else (str(b), str(a))), str(max(a, b))


def draw_maximum(rng: Random) -> tuple[Payload, str]:
    values = [number(rng, 1, 99) for _ in range(4)]
    return (" ".join(map(str, values)),), str(max(values))


def draw_parity(rng: Random) -> tuple[Payload, str]:
    value = number(rng, 1, 9999)
    return (str(value),), ("odd" if value % 2 else "even")


def draw_sort_words(rng: Random) -> tuple[Payload, str]:
    nouns = several_nouns(rng, 3)
    return (" ".join(nouns),), " ".join(sorted(nouns))


def draw_sort_numbers(rng: Random) -> tuple[Payload, str]:
    values = [number(rng, 1, 99) for _ in range(3)]
    return (" ".join(map(str, values)),), " ".join(map(str, sorted(values)))


def draw_reverse(rng: Random) -> tuple[Payload, str]:
    word = code_word(rng) if rng.random() < 0.5 else pick(rng, SYLLABLES) + code_word(rng)
    return (word,), word[::-1]


def draw_uppercase(rng: Random) -> tuple[Payload, str]:
    word = code_word(rng)
    return (word,), word.upper()


def draw_count_letter(rng: Random) -> tuple[Payload, str]:
    word = code_word(rng) + pick(rng, SYLLABLES)
    letter = pick(rng, word)
    return (letter, word), str(word.count(letter))


def draw_first_letters(rng: Random) -> tuple[Payload, str]:
    word, count = code_word(rng), number(rng, 2, 3)
    return (str(count), word), word[:count]


def draw_last_letters(rng: Random) -> tuple[Payload, str]:
    word, count = code_word(rng), number(rng, 2, 3)
    return (str(count), word), word[-count:]


def draw_lookup(rng: Random) -> tuple[Payload, str]:
    nouns = several_nouns(rng, 3)
    prices = [str(number(rng, 1, 99)) for _ in nouns]
    asked = int(rng.random() * 3)
    return (nouns[asked], ", ".join(f"{n}: {p}" for n, p in zip(nouns, prices, strict=True))), prices[asked]


def draw_remove(rng: Random) -> tuple[Payload, str]:
    nouns = several_nouns(rng, 4)
    gone = pick(rng, nouns)
    return (gone, " ".join(nouns)), " ".join(noun for noun in nouns if noun != gone)


def draw_repeat(rng: Random) -> tuple[Payload, str]:
    word, count = code_word(rng), number(rng, 2, 4)
    return (word, str(count)), " ".join([word] * count)


def draw_plural(rng: Random) -> tuple[Payload, str]:
    """Invented words, so that the rule is learnt and not the list: -s, but -es after s."""
    word = code_word(rng)
    return (word,), word + ("es" if word.endswith("s") else "s")


def draw_weekday(rng: Random) -> tuple[Payload, str]:
    start, days = int(rng.random() * 7), number(rng, 1, 60)
    return (str(days), WEEKDAYS[start]), WEEKDAYS[(start + days) % 7]


def draw_roman(rng: Random) -> tuple[Payload, str]:
    value = number(rng, 1, 399)
    return (str(value),), roman_numeral(value)


def roman_numeral(value: int) -> str:
    hundreds, rest = divmod(value, 100)
    tens, ones = divmod(rest, 10)
    tens_text = ("", "X", "XX", "XXX", "XL", "L", "LX", "LXX", "LXXX", "XC")[tens]
    return "C" * hundreds + tens_text + ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")[ones]


def draw_hyphenate(rng: Random) -> tuple[Payload, str]:
    nouns = several_nouns(rng, 3)
    return (" ".join(nouns),), "-".join(nouns)


def draw_swap(rng: Random) -> tuple[Payload, str]:
    nouns = several_nouns(rng, 2)
    return (" ".join(nouns),), f"{nouns[1]} {nouns[0]}"


def draw_replace(rng: Random) -> tuple[Payload, str]:
    nouns = several_nouns(rng, 4)
    old, new = pick(rng, nouns[:3]), nouns[3]
    return (old, new, " ".join(nouns[:3])), " ".join(new if noun == old else noun for noun in nouns[:3])


def wrong_plural(rng: Random, payload: Payload, answer: str) -> str:
    word = payload[0]
    return pick(rng, [form for form in (word, word + "s", word + "es", word + "en") if form != answer])


def wrong_roman(rng: Random, payload: Payload, answer: str) -> str:
    return roman_numeral(int(payload[0]) + pick(rng, (1, 2, 4, 5, 10))) if rng.random() < 0.5 else answer + "I"


def wrong_case(rng: Random, payload: Payload, answer: str) -> str:
    word = payload[0]
    return pick(rng, (word, word.capitalize(), misspelt(rng, payload, answer)))


def wrong_repeat(rng: Random, payload: Payload, answer: str) -> str:
    word, count = payload[0], int(payload[1])
    return " ".join([word] * (count + pick(rng, (-1, 1, 2))))


def wrong_hyphens(rng: Random, payload: Payload, answer: str) -> str:
    return pick(rng, (payload[0], answer.replace("-", ""), "-".join(reversed(answer.split("-")))))


_ALL = [
    Skill(
        "add", ("Add {0} and {1}.", "What is {0} plus {1}?", "Compute the sum of {0} and {1}."), draw_add, near_number
    ),
    Skill(
        "subtract",
        ("Subtract {1} from {0}.", "What is {0} minus {1}?", "Take {1} away from {0}."),
        draw_subtract,
        near_number,
    ),
    Skill(
        "multiply",
        ("Multiply {0} by {1}.", "What is {0} times {1}?", "Compute the product of {0} and {1}."),
        draw_multiply,
        near_number,
    ),
    Skill(
        "larger",
        (
            "Which number is larger, {0} or {1}?",
            "Name the larger number: {0} or {1}.",
            "Compare {0} and {1}; give the larger.",
        ),
        draw_larger,
        other_of_payload,
    ),
    Skill(
        "maximum",
        ("Find the maximum.\n\n{0}", "What is the greatest number in this list?\n\n{0}", "Give the maximum of {0}."),
        draw_maximum,
        other_of_payload,
    ),
    Skill(
        "parity",
        ("Is {0} odd or even?", "Tell whether {0} is even or odd.", "Name the parity of {0}."),
        draw_parity,
        one_of("odd", "even"),
    ),
    Skill(
        "sort_words",
        (
            "Sort these words alphabetically: {0}",
            "Put these words into alphabetical order.\n\n{0}",
            "Arrange from A to Z: {0}",
        ),
        draw_sort_words,
        other_order,
    ),
    Skill(
        "sort_numbers",
        (
            "Sort these numbers: {0}",
            "Put these numbers into ascending order.\n\n{0}",
            "Arrange from small to large: {0}",
        ),
        draw_sort_numbers,
        other_order,
    ),
    Skill(
        "reverse",
        ("Reverse the word {0}.", "Write {0} backwards.", "Spell this word from right to left.\n\n{0}"),
        draw_reverse,
        misspelt,
    ),
    Skill(
        "uppercase",
        ("Write {0} in capital letters.", "Convert to upper case: {0}", "Capitalize every letter.\n\n{0}"),
        draw_uppercase,
        wrong_case,
    ),
    Skill(
        "count_letter",
        ("How many times does {0} occur in {1}?", "Count the letter {0} in {1}.", "How often is {0} used here?\n\n{1}"),
        draw_count_letter,
        one_of("1", "2", "3"),
    ),
    Skill(
        "first_letters",
        (
            "Give the first {0} letters of {1}.",
            "What are the first {0} letters of {1}?",
            "Show {0} letters at the start of {1}.",
        ),
        draw_first_letters,
        other_letters,
    ),
    Skill(
        "last_letters",
        (
            "Give the last {0} letters of {1}.",
            "What are the last {0} letters of {1}?",
            "Show {0} letters at the end of {1}.",
        ),
        draw_last_letters,
        other_letters,
    ),
    Skill(
        "lookup",
        ("What is the price of {0}?\n\n{1}", "Look up {0} in the table.\n\n{1}", "Read the value of {0} here.\n\n{1}"),
        draw_lookup,
        other_of_payload,
    ),
    Skill(
        "remove",
        ("Remove the word {0}.\n\n{1}", "Delete {0} from this text.\n\n{1}", "Write the text without {0}.\n\n{1}"),
        draw_remove,
        other_order,
    ),
    Skill(
        "repeat",
        ("Repeat {0} {1} times.", "Say {0} {1} times.", "Write the word {0} {1} times in a row."),
        draw_repeat,
        wrong_repeat,
    ),
    Skill(
        "plural",
        ("Give the plural of {0}.", "What do you call more than one {0}?", "Make this noun plural: {0}"),
        draw_plural,
        wrong_plural,
    ),
    Skill(
        "weekday",
        (
            "Which day comes {0} days after {1}?",
            "Today is {1}. Which day is it in {0} days?",
            "Count {0} days on from {1}.",
        ),
        draw_weekday,
        one_of(*WEEKDAYS),
    ),
    Skill(
        "roman",
        ("Write {0} as a Roman numeral.", "Convert {0} to Roman numerals.", "How did Romans write {0}?"),
        draw_roman,
        wrong_roman,
    ),
    Skill(
        "hyphenate",
        ("Join with hyphens: {0}", "Connect these words with hyphens.\n\n{0}", "Put a hyphen between the words: {0}"),
        draw_hyphenate,
        wrong_hyphens,
    ),
    Skill(
        "swap",
        ("Swap the two words: {0}", "Exchange the places of both words.\n\n{0}", "Put the second word first: {0}"),
        draw_swap,
        lambda rng, payload, answer: payload[0],
    ),
    Skill(
        "replace",
        ("Replace {0} by {1}.\n\n{2}", "Change {0} to {1} in this text.\n\n{2}", "Use {1} instead of {0}.\n\n{2}"),
        draw_replace,
        lambda rng, payload, answer: pick(rng, (payload[2], other_order(rng, payload, answer))),
    ),
]

SKILLS: dict[str, Skill] = {skill.name: skill for skill in _ALL}

TARGETS = ("sort_words", "reverse", "last_letters")
"""Skills that the foundation model has rarely seen, so that choosing the right rows for them shows."""


def find_skill(name: str) -> Skill:
    if name not in SKILLS:
        raise KeyError(f"nano: unknown skill {name!r}; known: {', '.join(sorted(SKILLS))}")
    return SKILLS[name]
