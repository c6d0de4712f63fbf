"""Settings of generation that decide the answers. Light: reading them imports neither torch nor ray."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from raysift.settings.base import TRAIN, Seed, Settings, TaughtTemplate

AUTO, VLLM, TRANSFORMERS = "auto", "vllm", "transformers"


class GenerationSettings(Settings):
    """How a model answers, and on which backend; those with numbers that differ in the last bits may answer differently."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Most tokens of an answer, its end token among them; one that needs more is cut off and marked as not finished."""
    temperature: float = Field(default=0.0, ge=0)
    """0 takes the most probable token each time; above it tokens are drawn, each row from a seed of its own."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draws from the fewest tokens whose probabilities reach this sum. Without effect at temperature 0."""
    seed: Seed = 0
    """Seeds the draws, together with the row's id. Without effect at temperature 0."""
    beams: int = Field(default=1, ge=1)
    """Above 1 a beam search of so many beams looks for the most probable answer (a mean over its tokens), as the code of MoDS
    does with 4; it costs as many times the memory and work, draws nothing, and needs transformers."""
    template: TaughtTemplate = TRAIN
    """How messages become text: as the model was trained (`train`), by the tokenizer's own chat template (`auto`), or by
    `chatml`, `alpaca` or `tulu`. Where nothing tells how it was trained, `train` is `train.template`."""
    max_length: int | None = Field(default=None, ge=2)
    """Most tokens of prompt and answer together, no more than the model has positions for. vLLM keeps room for one row
    of this length, so models of very long context want it set where memory is scarce."""
    backend: Literal["auto", "vllm", "transformers"] = "auto"
    """`auto` takes vLLM where it is installed for the device that the workers have, and transformers elsewhere and for
    beams. Both give the same columns; which one answered is recorded."""

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
        """What identifies answers. A field younger than runs that are kept counts only where it is set, or those would be
        taken for others."""
        return self.model_dump(mode="json", exclude={"beams"} if self.beams == 1 else set())
