"""The base class of all settings, and the kinds of values that several of them take."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Read-only values with a sentence each; unknown names are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""The range that every library we seed accepts; numpy and transformers take no larger numbers."""

Template = Literal["auto", "chatml", "alpaca", "tulu"]
"""A chat template: the tokenizer's own (`auto`), or one of raysift.templates."""

TRAIN: Final = "train"
TaughtTemplate = Literal["train", "auto", "chatml", "alpaca", "tulu"]
"""A chat template, or (`train`) the one that the model was trained with."""
