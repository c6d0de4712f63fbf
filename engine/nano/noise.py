"""Noise in responses of the nano world; each kind is labelled, so that the noise a selection keeps can be counted.

`wrong` is plausible but incorrect. `truncated` stops early. `empty` is empty. `off_topic` answers another problem. `garbled`
has characters replaced. `rambling` is long and never answers, a trap for selection by length. Near-duplicates leave the
response intact: `edit_prompt` rewords the prompt and keeps the problem.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from raysift.nano.problems import Payload, pick
from raysift.nano.skills import Skill
from raysift.nano.styles import style_answer

RAMBLING_STARTS = (
    "Well, that is a good question and there are many ways to look at it",
    "I am not sure what you mean, but let me think about it for a while",
    "As everybody knows, questions of this kind have a long history",
    "Thank you for asking, I would be happy to help you with this",
)
RAMBLING_ENDS = (
    ", so it all depends on how one sees it.",
    ", and some people would say otherwise.",
    ", but in the end nobody can tell for sure.",
    ", and that is really all there is to say.",
)
GARBLE = "#@%&*~^|<>?"


def wrong(rng: Random, skill: Skill, payload: Payload, answer: str, style: str) -> str:
    return style_answer(skill.wrong(rng, payload, answer), style)


def truncated(rng: Random, skill: Skill, payload: Payload, answer: str, style: str) -> str:
    """A proper prefix of the answer, maybe empty; a bare answer cut to nothing stays whole and trails off in `...`."""
    kept = int(rng.random() * len(answer))
    if style == "plain":
        return answer[:kept] or answer + "..."
    return style_answer(answer, style)[: len("The answer is ") + kept].rstrip()


def empty(rng: Random, skill: Skill, payload: Payload, answer: str, style: str) -> str:
    return ""


def garbled(rng: Random, skill: Skill, payload: Payload, answer: str, style: str) -> str:
    """A third of the characters replaced, at least one of them inside the answer."""
    hit = int(rng.random() * len(answer))
    damaged = "".join(
        pick(rng, GARBLE) if place == hit or rng.random() < 0.3 else letter for place, letter in enumerate(answer)
    )
    return style_answer(damaged, style)


def rambling(rng: Random, skill: Skill, payload: Payload, answer: str, style: str) -> str:
    return pick(rng, RAMBLING_STARTS) + pick(rng, RAMBLING_ENDS)


Spoiler = Callable[[Random, Skill, Payload, str, str], str]

SPOILERS: dict[str, Spoiler] = {
    "wrong": wrong,
    "truncated": truncated,
    "empty": empty,
    "garbled": garbled,
    "rambling": rambling,
}

# off_topic needs the answer to another problem, so `world` makes it.
NOISE_KINDS = ("wrong", "truncated", "empty", "off_topic", "garbled", "rambling")


def edit_prompt(rng: Random, skill: Skill, payload: Payload, phrasing: int) -> str:
    """The same problem worded differently: another phrasing, a space, `Please:`, or a lower-case start."""
    kind = int(rng.random() * 4)
    if kind == 0:
        return skill.ask(payload, (phrasing + 1) % len(skill.phrasings))
    prompt = skill.ask(payload, phrasing)
    if kind == 1:
        return prompt + " "
    if kind == 2:
        return "Please: " + prompt
    return prompt[0].lower() + prompt[1:]
