"""Seeded pools, preference pairs and examples over the skills; each row carries its ground truth.

Row i of a pool is a pure function of (seed, i, config), so rows can be made in any order, in parallel, and in constant
memory. A duplicate row names the earlier index that it repeats.

A hash of skill and payload assigns each problem to exactly one *part*: validation, test, pairs, or pool. So no evaluation
problem ever occurs in a pool, whatever the seeds, sizes or phrasings.
"""

from __future__ import annotations

import os
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from zlib import crc32

from raysift.nano.noise import NOISE_KINDS, SPOILERS, edit_prompt
from raysift.nano.problems import Payload, pick
from raysift.nano.skills import SKILLS, TARGETS, Skill, find_skill
from raysift.nano.styles import STYLES, is_exact_match, style_answer

__all__ = [
    "WorldConfig",
    "draw_problem",
    "examples",
    "generate_pool",
    "is_clean",
    "is_exact_match",
    "is_relevant",
    "pool_row",
    "preference_pairs",
    "write_pool",
]

# Each part gets one sixteenth of all problems; the rest belongs to the pool.
PARTS = {"validation": 0, "test": 1, "pairs": 2}

_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class WorldConfig:
    """The composition of a pool. Shares are weights: they need not sum to one."""

    skill_shares: tuple[tuple[str, float], ...] = tuple((name, 0.08 if name in TARGETS else 0.04) for name in SKILLS)
    """Skill and weight; each target gets 8 %, about two thirds of it clean."""
    noise_rate: float = 0.3
    """Share of spoilt responses over all sources; 0 makes a perfect pool."""
    noise_shares: tuple[tuple[str, float], ...] = (
        ("wrong", 0.40),
        ("truncated", 0.12),
        ("empty", 0.05),
        ("off_topic", 0.18),
        ("garbled", 0.10),
        ("rambling", 0.15),
    )
    """Kind of noise and its weight among spoilt rows; only knowledge of the skill detects `wrong`."""
    exact_duplicate_rate: float = 0.02
    """Share of rows that repeat an earlier row's messages exactly."""
    near_duplicate_rate: float = 0.03
    """Share of rows that repeat an earlier problem and response with an edited prompt."""
    sentence_share: float = 0.5
    """Share of answers in the style "The answer is X."; at 0 all answers are bare, at 1 all are sentences."""
    sources: tuple[tuple[str, float, float], ...] = (
        ("curated", 0.3, 0.3),
        ("forum", 0.4, 1.0),
        ("scraped", 0.3, 1.7),
    )
    """Name, weight, and the factor by which the source multiplies the noise rate (weighted mean 1)."""
    number_prompts: bool = False
    """Append the row's number to each original prompt. The number of problems is finite, so without it a pool beyond some
    100,000 rows repeats itself by chance, and ingest would drop the repetitions."""

    def __post_init__(self) -> None:
        for name, _ in self.skill_shares:
            find_skill(name)
        for kind, _ in self.noise_shares:
            if kind not in NOISE_KINDS:
                raise ValueError(f"nano world: unknown noise {kind!r}; known: {', '.join(sorted(NOISE_KINDS))}")
        for field in ("noise_rate", "exact_duplicate_rate", "near_duplicate_rate", "sentence_share"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"nano world: {field} is {getattr(self, field)}, expected 0 to 1")
        if self.exact_duplicate_rate + self.near_duplicate_rate > 0.9:
            raise ValueError("nano world: more than 90 % duplicates; lower exact_duplicate_rate or near_duplicate_rate")


class _Tables(NamedTuple):
    """A config prepared for drawing: choices with their cumulative shares."""

    skills: list[Skill]
    skill_edges: list[float]
    noises: list[str]
    noise_edges: list[float]
    sources: list[str]
    source_edges: list[float]
    source_noise: list[float]


class _Original(NamedTuple):
    """A row before duplication: all that a duplicate of it needs."""

    skill: Skill
    payload: Payload
    phrasing: int
    response: str
    noise: str | None
    style: str
    source: str


def part_of(skill: str, payload: Payload) -> int:
    """The sixteenth that a problem belongs to (see PARTS)."""
    return crc32(f"{skill}|{'|'.join(payload)}".encode()) & 15


def _edges(weights: Sequence[float]) -> list[float]:
    total = sum(weights)
    return [edge / total for edge in accumulate(weights)][:-1]


@lru_cache(maxsize=32)
def _tables(config: WorldConfig) -> _Tables:
    return _Tables(
        [SKILLS[name] for name, _ in config.skill_shares],
        _edges([share for _, share in config.skill_shares]),
        [kind for kind, _ in config.noise_shares],
        _edges([share for _, share in config.noise_shares]),
        [name for name, _, _ in config.sources],
        _edges([share for _, share, _ in config.sources]),
        [min(1.0, factor * config.noise_rate) for _, _, factor in config.sources],
    )


def _reseed(rng: Random, seed: int, index: int) -> Random:
    """Seed the random stream of one row; splitmix64's finaliser decorrelates neighbouring indices."""
    z = (seed * 0xD1342543DE82EF95 + (index + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    rng.seed(z ^ (z >> 31))
    return rng


def draw_problem(rng: Random, skill: Skill, part: str) -> tuple[Payload, str]:
    """A problem of the skill that belongs to the given part, with its answer."""
    wanted = PARTS.get(part)
    while True:
        payload, answer = skill.draw(rng)
        found = part_of(skill.name, payload)
        if found == wanted or (wanted is None and found >= len(PARTS)):
            return payload, answer


def _draw_original(rng: Random, tables: _Tables, config: WorldConfig) -> _Original:
    skill = tables.skills[bisect(tables.skill_edges, rng.random())]
    payload, answer = draw_problem(rng, skill, "pool")
    source = bisect(tables.source_edges, rng.random())
    style = STYLES[rng.random() < config.sentence_share]
    noise = None
    if rng.random() < tables.source_noise[source]:
        noise = tables.noises[bisect(tables.noise_edges, rng.random())]
        response = _spoil(rng, tables, skill, payload, answer, style, noise)
    else:
        response = style_answer(answer, style)
    return _Original(
        skill, payload, int(rng.random() * len(skill.phrasings)), response, noise, style, tables.sources[source]
    )


def _spoil(rng: Random, tables: _Tables, skill: Skill, payload: Payload, answer: str, style: str, noise: str) -> str:
    if noise != "off_topic":
        return SPOILERS[noise](rng, skill, payload, answer, style)
    while True:
        other = pick(rng, tables.skills)
        _, other_answer = draw_problem(rng, other, "pool")
        if other_answer != answer:
            return style_answer(other_answer, style)


def _make_row(rng: Random, index: int, seed: int, config: WorldConfig, tables: _Tables) -> dict[str, Any]:
    """One row; traces a duplicate back to its original, which takes a few hops at the usual rates."""
    exact_below = config.exact_duplicate_rate
    near_below = exact_below + config.near_duplicate_rate
    at, kind = index, None
    while True:
        fate = _reseed(rng, seed, at).random()
        if fate >= near_below or at == 0:
            break
        if kind != "near":
            kind = "exact" if fate < exact_below else "near"
        at = int(rng.random() * at)
    original = _draw_original(rng, tables, config)
    skill = original.skill
    source = original.source
    if kind is None:
        prompt = skill.ask(original.payload, original.phrasing)
    else:
        _reseed(rng, seed + 1, ~index)
        source = tables.sources[bisect(tables.source_edges, rng.random())]
        prompt = (
            skill.ask(original.payload, original.phrasing)
            if kind == "exact"
            else edit_prompt(rng, skill, original.payload, original.phrasing)
        )
    if config.number_prompts:
        prompt += f" (request {at})"
    return {
        "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": original.response}],
        "source": source,
        "skill": skill.name,
        "noise": original.noise,
        "style": original.style,
        "duplicate": kind,
        "duplicate_of": None if kind is None else at,
    }


def pool_row(index: int, seed: int, config: WorldConfig = WorldConfig()) -> dict[str, Any]:
    """Row `index` of a pool, without making the rows before it.

    `noise` is the kind of noise in the response (None if it is right); `duplicate` is "exact" or "near" if the row
    repeats row `duplicate_of`, whose noise it shares.
    """
    return _make_row(Random(), index, seed, config, _tables(config))


def generate_pool(
    rows: int, seed: int, config: WorldConfig = WorldConfig(), start: int = 0
) -> Iterator[dict[str, Any]]:
    """Rows start .. start+rows-1 of the pool, so that each worker can make one stretch of it."""
    rng, tables = Random(), _tables(config)
    for index in range(start, start + rows):
        yield _make_row(rng, index, seed, config, tables)


def write_pool(
    path: str | os.PathLike[str], rows: int, seed: int, config: WorldConfig = WorldConfig(), start: int = 0
) -> Path:
    """Write a pool as JSON lines, one row at a time."""
    import orjson

    path = Path(path)
    with path.open("wb", buffering=1 << 20) as out:
        for row in generate_pool(rows, seed, config, start):
            out.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    return path


def _user(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def preference_pairs(
    rows: int, seed: int, skills: Sequence[str], kind: str = "correctness"
) -> Iterator[dict[str, Any]]:
    """Preference pairs on problems that occur in no pool, cycling through the skills.

    "correctness": a right answer over a wrong one, in one style. "style": the sentence over the bare answer, both right.
    """
    if kind not in ("correctness", "style"):
        raise ValueError(f"nano world: unknown kind of pairs {kind!r}; known: correctness, style")
    chosen_skills = [find_skill(name) for name in skills]
    rng = Random()
    for index in range(rows):
        _reseed(rng, seed + 2, index)
        skill = chosen_skills[index % len(chosen_skills)]
        payload, answer = draw_problem(rng, skill, "pairs")
        prompt = skill.ask(payload, int(rng.random() * len(skill.phrasings)))
        style = pick(rng, STYLES)
        if kind == "correctness":
            chosen, rejected = style_answer(answer, style), style_answer(skill.wrong(rng, payload, answer), style)
        else:
            chosen, rejected = style_answer(answer, "sentence"), style_answer(answer, "plain")
        yield {"prompt": _user(prompt), "chosen": chosen, "rejected": rejected, "subtask": skill.name}


def examples(
    rows: int, seed: int, skills: Sequence[str], split: str = "validation", metric: str = "exact_match"
) -> Iterator[dict[str, Any]]:
    """Evaluation questions with references, cycling through the skills; no prompt occurs twice.

    `metric="mc_accuracy"` adds up to three wrong choices; the reference is then one of `choices`.
    """
    if split not in ("validation", "test"):
        raise ValueError(f"nano world: unknown split {split!r}; known: test, validation")
    if metric not in ("exact_match", "mc_accuracy"):
        raise ValueError(f"nano world: unknown metric {metric!r}; known: exact_match, mc_accuracy")
    chosen_skills = [find_skill(name) for name in skills]
    rng = Random()
    seen: set[str] = set()
    for index in range(rows):
        _reseed(rng, seed + 3, index)
        skill = chosen_skills[index % len(chosen_skills)]
        payload, answer, prompt = _unseen_problem(rng, skill, split, seen)
        choices = _choices(rng, skill, payload, answer) if metric == "mc_accuracy" else None
        yield {
            "id": f"{skill.name}-{split}-{seed}-{index}",
            "task": "nano",
            "subset": skill.name,
            "split": split,
            "prompt": prompt,
            "reference": answer,
            "choices": choices,
            "answer_index": choices.index(answer) if choices else None,
            "metric": metric,
        }


def _unseen_problem(rng: Random, skill: Skill, split: str, seen: set[str]) -> tuple[Payload, str, str]:
    for _ in range(1000):
        payload, answer = draw_problem(rng, skill, split)
        prompt = skill.ask(payload, int(rng.random() * len(skill.phrasings)))
        if prompt not in seen:
            seen.add(prompt)
            return payload, answer, prompt
    raise ValueError(
        f"nano world: skill {skill.name!r} has no further {split} problem after {len(seen)}; ask for fewer rows"
    )


def _choices(rng: Random, skill: Skill, payload: Payload, answer: str) -> list[str]:
    """The answer and up to three distinct wrong ones, shuffled."""
    choices = list(dict.fromkeys([answer, *(skill.wrong(rng, payload, answer) for _ in range(6))]))[:4]
    rng.shuffle(choices)
    return choices


def is_relevant(row: dict[str, Any], skill: str | Sequence[str]) -> bool:
    """Whether the row practises the skill (or one of them), right or wrong."""
    return row["skill"] == skill if isinstance(skill, str) else row["skill"] in skill


def is_clean(row: dict[str, Any]) -> bool:
    """Whether the response is right; a duplicate of a right row counts as right (see `duplicate_of`)."""
    return row["noise"] is None
