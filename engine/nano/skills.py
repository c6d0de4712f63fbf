"""The skills of the nano world: problems with one exact answer, several ways to ask, and a plausible wrong answer.

A skill draws a *payload* (the strings that fill a phrasing) together with its answer. The payload identifies the
problem: in another phrasing it is still the same problem. This keeps evaluation problems out of the pool (see `world`). A
phrasing with a blank line has an *input* part, joined as Alpaca joins it.

To add a skill: write a `draw_*` function in `problems` (and one for wrong answers, if none fits), then an entry in `_ALL`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from raysift.nano.problems import (
    Payload,
    draw_add,
    draw_count_letter,
    draw_first_letters,
    draw_hyphenate,
    draw_larger,
    draw_last_letters,
    draw_lookup,
    draw_maximum,
    draw_multiply,
    draw_parity,
    draw_plural,
    draw_remove,
    draw_repeat,
    draw_replace,
    draw_reverse,
    draw_roman,
    draw_sort_numbers,
    draw_sort_words,
    draw_subtract,
    draw_swap,
    draw_uppercase,
    draw_weekday,
    misspelt,
    near_number,
    one_of,
    other_letters,
    other_of_payload,
    other_order,
    pick,
    wrong_case,
    wrong_hyphens,
    wrong_plural,
    wrong_repeat,
    wrong_roman,
)
from raysift.nano.words import WEEKDAYS


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
"""Skills that the foundation model has rarely seen, so that selecting the right rows makes a visible difference."""


def find_skill(name: str) -> Skill:
    if name not in SKILLS:
        raise KeyError(f"nano: unknown skill {name!r}; known: {', '.join(sorted(SKILLS))}")
    return SKILLS[name]
