"""A reward model: a sequence classifier of transformers that scores the last answer of a conversation.

MoDS calls OpenAssistant/reward-model-deberta-v3-large-v2 row by row, as tokenizer(question, answer), without a limit on
length, and drops rows that raise. Here rows of similar length share a batch, and a row that cannot be scored carries
the reason. Rows that are too long are cut and marked: first the oldest turns are dropped, then the longer of the last
question and the answer loses its end. The template's own text stays, and so does the token that closes the answer,
where a causal model gives its score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

from raysift.actors.contract import Failed, Row, RowActor
from raysift.actors.loaded import LoadedModel, budget_on, takes
from raysift.actors.text_models import BATCH_TOKENS, TextTokens, load_text_model, pad_texts, text_limit
from raysift.errors import DataError, ModelError
from raysift.records import MESSAGES
from raysift.scoring.columns import INPUT_TOKENS, REWARD, REWARD_SCHEMA, TRUNCATED
from raysift.scoring.questions import Exchange, exchange_of, fit_exchange, question_text
from raysift.scoring.settings import RewardSettings
from raysift.templates import render_chat

Made = TypeVar("Made")


class Reward(RowActor):
    """Scores the last answer of `messages`, or instead the text in `answer_column` (such as a model's own answer).

    An empty answer is scored like any other. `truncated` marks rows that did not fit.
    """

    inputs: ClassVar[Sequence[str]] = (MESSAGES,)
    outputs = REWARD_SCHEMA

    def __init__(
        self,
        model: str | LoadedModel = "nano:reward",
        *,
        settings: RewardSettings | None = None,
        answer_column: str | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        **loading: Any,
    ) -> None:
        if not isinstance(model, LoadedModel):
            model = load_text_model("AutoModelForSequenceClassification", model, **loading)
        self.model, self.tokenizer = model
        self.settings, self.answer_column = settings or RewardSettings(), answer_column
        self.template = resolve_reward_template(self.tokenizer, self.settings.template)
        self.output = pick_output(self.model.config, self.settings.label)
        self.longest = text_limit(self.model, self.tokenizer, max_length)
        self.batch_tokens = batch_tokens or budget_on(self.model, BATCH_TOKENS)
        self.text_config = self.model.config.get_text_config()
        self.pad: int | None = self.text_config.pad_token_id
        self.extra = {"use_cache": False} if takes(self.model, "use_cache") else {}

    @classmethod
    def reads_meta(cls, arguments: Mapping[str, Any]) -> bool:
        settings = arguments.get("settings") or RewardSettings()
        return bool(settings.input_join == "newline" or settings.trailing_newline)

    def answer(self, rows: list[Row]) -> list[Row | Failed]:
        exchanges = [self._exchange(row) for row in rows]
        sound = [item for item in exchanges if not isinstance(item, Failed)]
        encoded = iter(self._encode(sound))
        texts = [item if isinstance(item, Failed) else next(encoded) for item in exchanges]
        scores = iter(self.score([text for text in texts if not isinstance(text, Failed)]))
        return [text if isinstance(text, Failed) else _reward_row(text, next(scores)) for text in texts]

    def score(self, texts: Sequence[TextTokens]) -> list[float]:
        """The model's output for each text, in the order given."""
        import torch

        from raysift.gradients.cpu_products import quick_products

        self.tokens_read += sum(map(len, texts))
        scores = [0.0] * len(texts)

        def score_pass(members: list[int]) -> None:
            batch = [texts[i] for i in members]
            logits = self.model(**pad_texts(batch, self.model, self._padding(batch)), **self.extra).logits
            for i, score in zip(members, logits[:, self.output].double().tolist(), strict=True):
                scores[i] = score

        with torch.inference_mode(), quick_products(self.model):
            self.run_passes([len(text) for text in texts], score_pass)
        return scores

    def _padding(self, batch: Sequence[TextTokens]) -> int:
        """The padding token for this batch; a causal classifier scores at the last token that is not padding.

        Without a configured padding token it takes the very last token, and one text at a time. To score a whole batch
        with the same result, a token that occurs in none of its texts is configured as padding.
        """
        if self.pad is not None:
            return self.pad
        used = {token for text in batch for token in text.ids}
        self.text_config.pad_token_id = next(token for token in range(len(used) + 1) if token not in used)
        return int(self.text_config.pad_token_id)

    def _exchange(self, row: Row) -> Exchange | Failed:
        try:
            return exchange_of(row, self.answer_column)
        except DataError as error:
            return Failed(str(error), of_the_row=True)

    # --- from conversations to tokens ---

    def _encode(self, exchanges: Sequence[Exchange]) -> list[TextTokens | Failed]:
        """Tokens of each exchange; one tokenizer call serves all that fit, which is nearly all."""
        texts = [self._try(self._texts, exchange) for exchange in exchanges]
        tokens = iter(self._tokenize([text for text in texts if not isinstance(text, Failed)]))
        encoded: list[TextTokens | Failed] = []
        for exchange, text in zip(exchanges, texts, strict=True):
            found = text if isinstance(text, Failed) else next(tokens)
            if not isinstance(found, Failed) and len(found) > self.longest:
                found = self._try(self._shorten, exchange)
            encoded.append(found)
        return encoded

    def _try(self, make: Callable[[Exchange], Made], exchange: Exchange) -> Made | Failed:
        try:
            return make(exchange)
        except DataError as error:
            return Failed(str(error), of_the_row=True)

    def _texts(self, exchange: Exchange) -> tuple[str, ...]:
        """The tokenizer's input: one text, or two with the template `pair`."""
        if self.template == "chat":
            return (render_chat(self.tokenizer, exchange.messages),)
        question = question_text(exchange.before, self.settings.input_join, self.settings.trailing_newline)
        return (question, exchange.answer) if self.template == "pair" else (f"{question}\n\n{exchange.answer}",)

    def _tokenize(self, texts: Sequence[tuple[str, ...]]) -> list[TextTokens]:
        if not texts:
            return []
        encoding = self.tokenizer(
            *map(list, zip(*texts, strict=True)),
            add_special_tokens=self.template != "chat",
            return_attention_mask=False,
            verbose=False,
        )
        types = encoding.get("token_type_ids") or [None] * len(texts)
        return [TextTokens(*each) for each in zip(encoding["input_ids"], types, strict=True)]

    def _shorten(self, exchange: Exchange) -> TextTokens | Failed:
        found = fit_exchange(
            exchange, lambda each: self._tokenize([self._texts(each)])[0], self.tokenizer, self.longest
        )
        if found is None:
            return Failed(f"nothing of the question and the answer fits into {self.longest} tokens")
        return replace(found, truncated=True)


def resolve_reward_template(tokenizer: Any, template: str) -> str:
    """Resolve `auto`: the chat template if the tokenizer has one, else question and answer as a pair."""
    has_own = bool(getattr(tokenizer, "chat_template", None))
    if template == "chat" and not has_own:
        raise ModelError(
            "reward: template is 'chat', but the model's tokenizer has no chat template. Use 'pair' or 'text'."
        )
    if template == "auto":
        return "chat" if has_own else "pair"
    return template


def pick_output(config: Any, label: int | str | None) -> int:
    """Which of a classifier's outputs is the reward; several outputs without a valid label raise, with their names."""
    names = [str(config.id2label.get(number, number)) for number in range(config.num_labels)]
    if label is None and len(names) == 1:
        return 0
    if isinstance(label, int) and 0 <= label < len(names):
        return label
    if isinstance(label, str) and names.count(label) == 1:
        return names.index(label)
    asked = "none is chosen" if label is None else f"reward.label is {label!r}"
    raise ModelError(
        f"reward: the classifier has {len(names)} outputs ({', '.join(names)}) and {asked}. Name one of them."
    )


def _reward_row(text: TextTokens, score: float) -> Row | Failed:
    if not math.isfinite(score):
        return Failed("the model gave no finite score")
    return {REWARD: score, INPUT_TOKENS: len(text), TRUNCATED: text.truncated}
