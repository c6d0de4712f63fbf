"""Styles of an answer: bare, or as a sentence; exact match ignores the style."""

from __future__ import annotations

STYLES = ("plain", "sentence")
SENTENCE_START, SENTENCE_END = "The answer is ", "."


def style_answer(answer: str, style: str) -> str:
    """The answer in the given style; `extract_answer` undoes every style."""
    return answer if style == "plain" else f"{SENTENCE_START}{answer}{SENTENCE_END}"


def extract_answer(text: str) -> str:
    """The bare answer inside a response of any style, so that exact match does not depend on style."""
    text = text.strip()
    if text.startswith(SENTENCE_START) and text.endswith(SENTENCE_END):
        return text[len(SENTENCE_START) : -len(SENTENCE_END)]
    return text


def is_exact_match(response: str, reference: str) -> bool:
    return extract_answer(response) == extract_answer(reference)
