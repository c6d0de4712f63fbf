"""The judge on vLLM: one token a row, and the log-probabilities of its rating tokens alone.

Rows, prompts, ratings and failures are those of `Judge`; the numbers differ from transformers' in the last bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raysift.actors.judge import Judge
from raysift.actors.language_model import load_tokenizer
from raysift.actors.likelihood import Scorer
from raysift.actors.loaded import longest_input
from raysift.actors.prompts import load_card
from raysift.actors.vllm_engine import Engine
from raysift.errors import ModelError
from raysift.storage import Location

MOST_TOKENS = 128  # whose log-probabilities vLLM gives at once


class EngineScorer(Scorer):
    """Stands where a `Scorer` loads a model: the same model in an engine, which knows no losses of labels."""

    def __init__(
        self,
        model: str,
        *,
        adapter: str | Location | None = None,
        template: str = "auto",
        max_length: int | None = None,
        gpus: float = 0.0,
        trust_remote_code: bool = False,
        **arguments: Any,
    ) -> None:
        self.tokenizer, self.template = load_tokenizer(model, trust_remote_code), template
        self.longest = longest_input(load_card(model, trust_remote_code), max_length)
        self.engine = Engine(
            model,
            adapter=adapter,
            max_length=max_length,
            gpus=gpus,
            trust_remote_code=trust_remote_code,
            **arguments,
        )


class VllmJudge(Judge, EngineScorer):
    """A `Judge` whose model is in a vLLM engine; `gpus` says how much of the actor's GPU is the engine's."""

    def next_logprobs(self, prompts: Sequence[Sequence[int]]) -> list[list[tuple[str, float]]]:
        """Log-probability of each spelling of each rating as the token that follows each prompt."""
        from vllm import SamplingParams

        spelt = [(rating, number) for rating, numbers in self.spellings.items() for number in numbers]
        if len(spelt) > MOST_TOKENS:
            raise ModelError(
                f"judge: the ratings have {len(spelt)} spellings; vLLM gives log-probabilities of {MOST_TOKENS} tokens. "
                "Set judge.low and judge.high to a smaller scale, or judge with transformers."
            )
        if not prompts:
            return []
        sampling = SamplingParams(
            max_tokens=1, temperature=0.0, detokenize=False, logprob_token_ids=[number for _, number in spelt]
        )
        outputs = self.engine.generate(prompts, sampling)
        first = [output.outputs[0].logprobs[0] for output in outputs]
        return [[(rating, found[number].logprob) for rating, number in spelt] for found in first]
