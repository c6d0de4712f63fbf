"""The reward model on vLLM: its pooling runner gives a classifier's logits, whole conversations batched as they come.

Rows, templates, cuts and failures are those of `Reward`; the numbers differ from transformers' in the last bits. vLLM
decides which architectures work; version 0.32 does not support the DeBERTa of the MoDS authors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raysift.actors.language_model import load_tokenizer
from raysift.actors.prompts import load_card
from raysift.actors.reward import Reward, pick_output, resolve_reward_template
from raysift.actors.text_models import TextTokens, text_limit
from raysift.actors.vllm_engine import Engine
from raysift.errors import ModelError
from raysift.scoring.settings import RewardSettings
from raysift.settings.resources import EngineResources


class VllmReward(Reward):
    """A `Reward` whose model is in a vLLM engine; `gpus` is the engine's share of the actor's GPU."""

    def __init__(
        self,
        model: str = "nano:reward",
        *,
        settings: RewardSettings | None = None,
        answer_column: str | None = None,
        max_length: int | None = None,
        gpus: float = 0.0,
        trust_remote_code: bool = False,
        engine: EngineResources | None = None,
        **arguments: Any,
    ) -> None:
        card = load_card(model, trust_remote_code)
        self.tokenizer = load_tokenizer(model, trust_remote_code)
        self.settings, self.answer_column = settings or RewardSettings(), answer_column
        self.template = resolve_reward_template(self.tokenizer, self.settings.template)
        self.output = pick_output(card.config, self.settings.label)
        self.longest = text_limit(card, self.tokenizer, max_length)
        self.engine = Engine(
            model,
            max_length=self.longest,
            gpus=gpus,
            trust_remote_code=trust_remote_code,
            engine=engine,
            **{"runner": "pooling", "convert": "classify", **arguments},
        )

    def score(self, texts: Sequence[TextTokens]) -> list[float]:
        """The model's output for each text, in the order given."""
        if any(any(text.types or ()) for text in texts):
            raise ModelError(
                "reward: this tokenizer marks question and answer as two segments, which are not handed to vLLM here. "
                "Score with transformers, or set reward.template to 'text' if the model was trained so."
            )
        return [float(logits[self.output]) for logits in self.engine.classify([text.ids for text in texts])]
