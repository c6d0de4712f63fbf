"""A language model as judge of answers: its expected rating (formulas and prompt in raysift.scoring.judging)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from raysift.actors.contract import Failed, Row
from raysift.actors.language_model import load_tokenizer
from raysift.actors.likelihood import Scorer
from raysift.actors.loaded import LoadedModel, longest_input
from raysift.actors.prompts import load_card, vocabulary_size
from raysift.errors import DataError
from raysift.records import MESSAGES, ChatMessage
from raysift.scoring.columns import INPUT_TOKENS, JUDGE_SCHEMA, JUDGE_SCORE, RATING_MASS, TRUNCATED
from raysift.scoring.judging import check_rating, expected_rating, fit_judge_message, rating_tokens
from raysift.scoring.questions import exchange_of
from raysift.scoring.settings import JudgeSettings
from raysift.templates import IGNORED, encode_prompt


class Rater:
    """Writes a row's question to a judge and reads the rating from the reply; for every backend."""

    def __init__(
        self,
        tokenizer: Any,
        longest: int,
        vocabulary: int | None,
        settings: JudgeSettings | None = None,
        answer_column: str | None = None,
    ) -> None:
        self.tokenizer, self.longest, self.vocabulary = tokenizer, longest, vocabulary
        self.settings, self.answer_column = settings or JudgeSettings(), answer_column
        self.spellings = {
            str(rating): numbers
            for rating, numbers in rating_tokens(tokenizer, self.settings.low, self.settings.high).items()
        }
        self.prefix = tokenizer(self.settings.reply_prefix, add_special_tokens=False)["input_ids"]

    def encode(self, row: Row) -> tuple[list[int], bool] | Failed:
        """Tokens of the question, and whether the row's texts were cut to fit."""
        try:
            exchange = exchange_of(row, self.answer_column)
            ids, truncated = fit_judge_message(
                exchange, self.settings, self.tokenizer, self._encode_message, self.longest - 1
            )
        except DataError as error:
            return Failed(str(error), of_the_row=True)
        if not ids:
            return Failed(
                f"the question to the judge does not fit into {self.longest} tokens even without the row's texts"
            )
        if self.vocabulary is not None and max(ids) >= self.vocabulary:
            return Failed(f"the prompt has token {max(ids)}; the model knows those below {self.vocabulary}")
        return ids, truncated

    def rate(self, n_tokens: int, truncated: bool, logprobs: Sequence[tuple[str, float]]) -> Row | Failed:
        """A judge's columns from the log-probability of each rating's spellings after a question of `n_tokens`."""
        rating = expected_rating(logprobs, self.settings.low, self.settings.high)
        problem = check_rating(rating, self.settings)
        if problem is not None:
            return Failed(problem)
        return {JUDGE_SCORE: rating.score, RATING_MASS: rating.mass, INPUT_TOKENS: n_tokens, TRUNCATED: truncated}

    def _encode_message(self, message: ChatMessage) -> list[int]:
        return [*encode_prompt(self.tokenizer, [message], self.settings.template), *self.prefix]


def load_rater(
    model: str,
    settings: JudgeSettings | None = None,
    answer_column: str | None = None,
    max_length: int | None = None,
    trust_remote_code: bool = False,
) -> Rater:
    """Make a rater for a model whose weights are in another process."""
    tokenizer, card = load_tokenizer(model, trust_remote_code), load_card(model, trust_remote_code)
    return Rater(tokenizer, longest_input(card, max_length), vocabulary_size(card), settings, answer_column)


def flatten(spellings: Mapping[str, Sequence[int]]) -> list[tuple[str, int]]:
    """Every (text, token) pair in which the token spells the text."""
    return [(text, number) for text, numbers in spellings.items() for number in numbers]


class FirstTokens(Scorer):
    """A causal language model that gives the probability of each of `spellings` as the first token of its reply."""

    spellings: Mapping[str, Sequence[int]]

    def next_logprobs(self, prompts: Sequence[Sequence[int]]) -> list[list[tuple[str, float]]]:
        """Log-probability of each spelling of each text as the token that follows each prompt."""
        import numpy as np
        import torch

        from raysift.gradients.cpu_products import quick_products
        from raysift.gradients.loss import label_logits
        from raysift.gradients.rows import TokenRow, pad_rows

        spelt = flatten(self.spellings)
        columns = torch.tensor([number for _, number in spelt], device=self.model.device)
        self.tokens_read += sum(map(len, prompts))
        found: list[list[tuple[str, float]]] = [[] for _ in prompts]

        def ask_pass(members: list[int]) -> None:
            # A label after the prompt requests the logits there; which token it is does not matter.
            rows = [
                TokenRow(0, np.array([*prompts[i], 0]), np.array([*[IGNORED] * len(prompts[i]), 0])) for i in members
            ]
            logits = label_logits(self.model, pad_rows(rows, self.model.device), self.head).float()
            logprobs = (logits[:, columns] - logits.logsumexp(1, keepdim=True)).double().tolist()
            for i, values in zip(members, logprobs, strict=True):
                found[i] = [(text, value) for (text, _), value in zip(spelt, values, strict=True)]

        with torch.inference_mode(), quick_products(self.model):
            self.run_passes([len(prompt) + 1 for prompt in prompts], ask_pass)
        return found


class Judge(FirstTokens):
    """Rates the last answer of `messages`, or the text in `answer_column` instead."""

    inputs: ClassVar[Sequence[str]] = (MESSAGES,)
    outputs = JUDGE_SCHEMA

    def __init__(
        self,
        model: str | LoadedModel = "nano",
        *,
        settings: JudgeSettings | None = None,
        answer_column: str | None = None,
        **loading: Any,
    ) -> None:
        settings = settings or JudgeSettings()
        super().__init__(model, template=settings.template, **loading)
        self.rater = Rater(self.tokenizer, self.longest, vocabulary_size(self.model), settings, answer_column)
        self.spellings = self.rater.spellings

    def answer(self, rows: list[Row]) -> list[Row | Failed]:
        encoded = [self.rater.encode(row) for row in rows]
        replies = iter(self.next_logprobs([item[0] for item in encoded if not isinstance(item, Failed)]))
        return [
            item if isinstance(item, Failed) else self.rater.rate(len(item[0]), item[1], next(replies))
            for item in encoded
        ]
