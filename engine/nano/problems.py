"""Problems of the nano world's skills: functions that draw a problem with its answer, and that make a wrong answer.

`draw_*` gives a payload (the strings that fill a phrasing) and the right answer; the wrong-answer functions give a plausible
answer that differs from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

from raysift.nano.words import ENDINGS, NOUNS, SYLLABLES, WEEKDAYS

Payload = tuple[str, ...]
T = TypeVar("T")

# Draws use int(random() * n) rather than randrange: three times as fast, and a pool may have ten million rows.


def pick(rng: Random, items: Sequence[T]) -> T:
    """One of the items, with equal probability."""
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
    """The answer's words in another order; a random word if reordering changes nothing."""
    words = answer.split()
    shuffled = words[:]
    for _ in range(8):
        rng.shuffle(shuffled)
        if shuffled != words:
            return " ".join(shuffled)
    return pick(rng, NOUNS) + "y"


def misspelt(rng: Random, payload: Payload, answer: str) -> str:
    """Two neighbouring letters swapped, or a letter doubled if swapping changes nothing."""
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
    """As many letters from elsewhere in the word, or random ones if the word offers none."""
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
    """Invented words, so that a model learns the rule and not a list: -s, but -es after s."""
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
