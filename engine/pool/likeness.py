"""Whether a target speaks the pool's language, and whether its texts hold another chat template's marks.

Letters are told apart by Unicode script, words by how usual they are: a word of the target is *usual* in the pool where it
is at most RARER times rarer there. Scripts without spaces count characters as words. The share of the target's words,
repeats included, that are usual was measured on 2,000 rows of each of 15 English sources (Alpaca, P3, medicine, code,
mathematics, dialogues, ...) against targets of 30 and of 2,000 texts:

    English of any other domain, questions included      never below 0.34
    program text alone, without its questions            never below 0.26
    nine other languages, French and Spanish among them  never above 0.22

The plain share of words that the pool has at all does not tell them apart (French up to 0.45, program text from 0.39; of
distinct words French up to 0.19, English from 0.12): names and quotations bring a few words of every language into any pool.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

MOST_TEXTS, MOST_CHARS = 2_000, 10_000
RARER = 100
USUAL_SHARE = 0.25  # below: another language
SCRIPT_SHARE = 0.05  # of the pool's letters, below: another script
MARKED_SHARE = 0.01  # of the target's texts, from here on: rendered already
FEWEST_WORDS, FEWEST_POOL_WORDS = 20, 1_000  # of fewer nothing is said

MARKS: dict[str, re.Pattern[str]] = {
    "ChatML": re.compile(r"<\|im_(?:start|end)\|>"),
    "Llama 2": re.compile(r"\[/?INST\]|<</?SYS>>"),
    "Llama 3": re.compile(r"<\|(?:start_header_id|end_header_id|eot_id)\|>"),
    "Gemma": re.compile(r"<(?:start|end)_of_turn>"),
    "Tulu": re.compile(r"<\|(?:user|assistant|system)\|>"),
    "Alpaca": re.compile(r"^### (?:Instruction|Response|Input):", re.MULTILINE),
    "transcript": re.compile(r"^(?:Human|Assistant|USER|ASSISTANT): ?\S", re.MULTILINE),
}
"""What a conversation looks like that another template has turned into text."""

# Thai, Lao, Burmese, Khmer, kana, ideographs.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W\d_{_UNSPACED}]+")


@dataclass
class Sample:
    """Words and letters of a bounded number of texts, counted as they come."""

    texts: int = 0
    words: Counter[str] = field(default_factory=Counter)
    letters: Counter[str] = field(default_factory=Counter)
    """By script."""
    marked: Counter[str] = field(default_factory=Counter)
    """Texts that hold a template's marks."""


def sample_of(texts: Iterable[str]) -> Sample:
    """Counts of these texts, of each the first MOST_CHARS characters."""
    found, characters = Sample(), Counter[str]()
    for text in texts:
        text = text[:MOST_CHARS]
        found.texts += 1
        found.words.update(_WORD.findall(text.lower()))
        characters.update(text)
        found.marked.update(name for name, mark in MARKS.items() if mark.search(text))
    for character, count in characters.items():
        if character.isalpha():
            found.letters[script_of(character)] += count
    return found


def evenly(items: Sequence[T], most: int = MOST_TEXTS) -> list[T]:
    """At most so many of the items, from the first on at even distances."""
    return list(items) if len(items) <= most else [items[i * len(items) // most] for i in range(most)]


def usual_share(pool: Sample, target: Sample) -> float | None:
    """The share of the target's words that are usual in the pool; None where there are too few to tell."""
    asked, known = target.words.total(), pool.words.total()
    if asked < FEWEST_WORDS or known < FEWEST_POOL_WORDS:
        return None
    usual = (n for word, n in target.words.items() if 0 < n * known <= RARER * pool.words[word] * asked)
    return sum(usual) / asked


def compare_samples(pool: Sample, target: Sample) -> dict[str, Any]:
    """The figures of which `remarks` speaks."""
    script = min(target.letters, key=lambda name: (-target.letters[name], name), default=None)
    usual = usual_share(pool, target)
    return {
        "texts": target.texts,
        "pool_rows": pool.texts,
        "script": script,
        "script_share": _share(target.letters, script),
        "script_share_of_pool": _share(pool.letters, script),
        "usual_words": None if usual is None else round(usual, 4),
        "marked_texts": dict(sorted(target.marked.items())),
    }


def remarks(name: str, found: Mapping[str, Any]) -> list[str]:
    """What a user should know of the target called `name`: nothing, in the usual case."""
    said = []
    usual, script, of_pool = found["usual_words"], found["script"], found["script_share_of_pool"]
    looked = f"of {found['pool_rows']:,} rows of the pool"
    if usual is not None and script is not None and of_pool < SCRIPT_SHARE:
        said.append(
            f"{name}: {found['script_share']:.0%} of its letters are {script}, {of_pool:.1%} of those {looked}. If it was not "
            "meant to be in another language than the pool, give another target."
        )
    elif usual is not None and usual < USUAL_SHARE:
        said.append(
            f"{name}: {usual:.0%} of its words are usual in a sample {looked}; a target in the pool's language has more than "
            f"{USUAL_SHARE:.0%}. If it was not meant to be in another language, give another target."
        )
    for template, count in found["marked_texts"].items():
        if count >= MARKED_SHARE * found["texts"]:
            said.append(
                f"{name}: {count:,} of {found['texts']:,} texts hold marks of a template ({template}) as plain text, and the "
                "run's own template is put around them. Give messages, or texts without marks."
            )
    return said


def script_of(letter: str) -> str:
    """The first word of the letter's name, as in `LATIN SMALL LETTER A`; forms of a letter count as that letter."""
    plain = unicodedata.normalize("NFKC", letter)[0]
    name = unicodedata.name(plain, "UNKNOWN").partition(" ")[0]
    return name if name == "CJK" else name.capitalize()


def _share(letters: Counter[str], script: str | None) -> float:
    return round(letters[script] / letters.total(), 4) if script and letters else 0.0
