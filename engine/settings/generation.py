"""Settings of generation that decide the answers. Light: reading them imports neither torch nor ray."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from raysift.settings.base import TRAIN, Seed, Settings, TaughtTemplate

AUTO, VLLM, TRANSFORMERS = "auto", "vllm", "transformers"


class GenerationSettings(Settings):
    """How a model answers, and on which backend. Backends differ in the last bits, so their answers may differ."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Maximum tokens of an answer, including its end token. Longer answers are cut off and marked as not finished."""
    temperature: float = Field(default=0.0, ge=0)
    """0 always takes the most probable token; above 0 tokens are drawn, with a separate seed for each row."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draws from the fewest tokens whose probabilities reach this sum. No effect at temperature 0."""
    seed: Seed = 0
    """Seeds the draws, together with the row's id. No effect at temperature 0."""
    beams: int = Field(default=1, ge=1)
    """Above 1, a beam search of this width looks for the most probable answer (mean over its tokens), as MoDS' code does
    with 4. It multiplies memory and work by the width, draws nothing, and needs transformers."""
    template: TaughtTemplate = TRAIN
    """How messages become text: as the model was trained (`train`), by the tokenizer's own chat template (`auto`), or by
    `chatml`, `alpaca` or `tulu`. If it is unknown how the model was trained, `train` means `train.template`."""
    max_length: int | None = Field(default=None, ge=2)
    """Maximum tokens of prompt and answer together, within the model's positions. vLLM reserves room for one row of this
    length, so set it for models of very long context if memory is scarce."""
    backend: Literal["auto", "vllm", "transformers"] = "auto"
    """`auto` uses vLLM if it is installed for the workers' device, else transformers; beams always use transformers.
    Both give the same columns, and the one that answered is recorded."""

    @model_validator(mode="after")
    def _room_for_a_prompt(self) -> GenerationSettings:
        if self.max_length is not None and self.max_length <= self.max_new_tokens:
            raise ValueError(
                f"max_length={self.max_length} counts prompt and answer together and leaves no room for a prompt beside "
                f"max_new_tokens={self.max_new_tokens}; raise the one or lower the other"
            )
        return self

    @model_validator(mode="after")
    def _beams_go_together_with_the_rest(self) -> GenerationSettings:
        if self.beams > 1 and self.temperature > 0:
            raise ValueError(
                f"beams={self.beams} looks for the most probable answer and temperature={self.temperature:g} draws one; set "
                "temperature=0, or beams=1"
            )
        if self.beams > 1 and self.backend == VLLM:
            raise ValueError(
                f"beams={self.beams} with backend=vllm: vLLM's engines have no beam search of their own (its `LLM.beam_search` "
                "is a loop around them, which ray.data.llm does not offer); set backend=transformers or auto, or beams=1"
            )
        return self

    def deciding(self) -> dict[str, Any]:
        """The settings that identify answers. A field added later counts only if it is set, so that answers of older runs
        keep their identity."""
        return self.model_dump(mode="json", exclude={"beams"} if self.beams == 1 else set())
