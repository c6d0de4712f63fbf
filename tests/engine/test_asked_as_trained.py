"""A model is asked as it was trained: whatever method, preset and recipe, the prompt's tokens are those of its training."""

from __future__ import annotations

import pytest

from raysift.actors.train_checkpoints import template_of
from raysift.config import make_config
from raysift.methods import METHODS
from raysift.settings.base import TRAIN
from raysift.settings.training import RECIPES
from raysift.templates import IGNORED, encode_conversation, encode_prompt

from ..tiny_models import byte_tokenizer  # noqa: TID252

PROMPT = [{"role": "user", "content": "Sum.\n\n2 and 3", "input": "2 and 3"}]
CHOICES = [(method, preset) for method in METHODS for preset in (None, *METHODS[method].presets)]


@pytest.mark.parametrize("recipe", [None, *RECIPES])
@pytest.mark.parametrize(("method", "preset"), CHOICES)
@pytest.mark.parametrize("model", ["nano", "./llama"])
def test_the_prompt_at_evaluation_is_what_training_put_before_the_answer(model, method, preset, recipe):
    train = {"train": {"recipe": recipe}} if recipe else {}
    section = {method: {"preset": preset}} if preset else {}
    config = make_config({"method": method, "model": model} | section | train)
    asked = [(config.evaluate.template, config.train)]
    asked += [(config.mods.generation.template, config.mods.seed_train or config.train)] if method == "mods" else []
    tokenizer = byte_tokenizer(merges=((">", "("), (":", "("), ("Ċ", "(")))
    for template, training in asked:
        row = [*PROMPT, {"role": "assistant", "content": "(5)"}]
        seen = encode_conversation(tokenizer, row, 1000, training.template)
        first = next(number for number, label in enumerate(seen.labels) if label != IGNORED)
        used = template_of(template, model, None, training.template)
        assert encode_prompt(tokenizer, PROMPT, used) == seen.input_ids[:first]


@pytest.mark.parametrize("weights", ["adapter", "model"])
def test_the_record_beside_the_weights_tells_the_template(tmp_path, weights):
    place = tmp_path / "epoch-1" / weights
    place.mkdir(parents=True)
    given = ("nano", str(place)) if weights == "adapter" else (str(place), None)
    assert template_of(TRAIN, *given, "alpaca") == "alpaca", "nothing tells it"
    for record, expected in (('{"epoch": 1}', "alpaca"), ('{"epoch": 1, "template": "tulu"}', "tulu")):
        (tmp_path / "epoch-1/epoch.json").write_text(record)
        assert template_of(TRAIN, *given, "alpaca") == expected
        assert template_of("chatml", *given, "alpaca") == "chatml", "the user's own word"
