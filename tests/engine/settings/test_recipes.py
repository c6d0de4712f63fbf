"""Schedules against transformers' own, presets against the papers."""

from __future__ import annotations

import math
import warnings

import pytest

from raysift.errors import ConfigError
from raysift.settings.training import (
    RECIPES,
    TrainConfig,
    count_steps,
    epoch_mean_learning_rates,
    learning_rates,
    recipe,
)

THEIRS = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


@pytest.mark.parametrize("schedule", sorted(THEIRS))
@pytest.mark.parametrize("steps", [1, 7, 156])
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.03, 0.5])
def test_rates_are_those_of_transformers(schedule, steps, warmup_ratio):
    import torch
    from transformers import get_scheduler

    config = TrainConfig(schedule=schedule, warmup_ratio=warmup_ratio, learning_rate=2e-5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-5)
    scheduler = get_scheduler(THEIRS[schedule], optimizer, math.ceil(steps * warmup_ratio), steps)
    expected = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            expected.append(scheduler.get_last_lr()[0])
            scheduler.step()
    assert learning_rates(config, steps) == pytest.approx(expected, rel=1e-12, abs=1e-20)


def test_mean_rates_of_less_are_its_published_checkpoint_weights():
    means = epoch_mean_learning_rates(recipe("less"), 105, 420)
    assert means == pytest.approx([1.6877e-5, 1.2859e-5, 7.7030e-6, 2.5616e-6], rel=3e-3)
    assert [round(mean / sum(means), 2) for mean in means] == [0.42, 0.32, 0.19, 0.06]


def test_mean_rates_cover_every_step_once():
    config = TrainConfig(schedule="cosine", epochs=3)
    means = epoch_mean_learning_rates(config, 10, 25)
    rates = learning_rates(config, 25)
    assert len(means) == 3
    # Rates after the steps are those of the next steps; after the last one the cosine is at zero.
    assert means[0] * 10 + means[1] * 10 + means[2] * 5 == pytest.approx(sum(rates[1:]))


def test_steps_count_the_smaller_last_batch_and_stop_at_max_steps():
    assert count_steps(TrainConfig(batch_size=16, epochs=12), 200) == (13, 156)
    assert count_steps(TrainConfig(batch_size=16, epochs=12, max_steps=20), 200) == (13, 20)


def test_presets_hold_what_the_papers_say():
    less, rose, mods = RECIPES["less"], RECIPES["rose-official"], RECIPES["mods"]
    assert (less.lora_rank, less.lora_alpha, less.lora_dropout) == (128, 512, 0.1)
    assert (less.learning_rate, less.schedule, less.warmup_ratio, less.batch_size) == (2e-5, "linear", 0.03, 128)
    assert rose.model_dump() | {"batch_size": 128} == less.model_dump() and rose.batch_size == 4
    assert (mods.method, mods.epochs, mods.batch_size, mods.template) == ("full", 3, 128, "alpaca")
    assert RECIPES["mods-official"].batch_size == 512
    assert (RECIPES["raise"].schedule, RECIPES["raise"].warmup_ratio) == ("cosine", 0.0)


def test_a_recipe_takes_changes_and_refuses_unknown_ones():
    assert recipe("less", epochs=1).epochs == 1
    with pytest.raises(ConfigError, match="known: less, mods, mods-official, nano, nano-warmup, raise, rose-official"):
        recipe("lima")
    with pytest.raises(ConfigError, match="'learning_rat'"):
        recipe("less", learning_rat=1.0)


def test_four_bits_are_for_frozen_weights_alone():
    assert recipe("less", quantization="4bit").quantization == "4bit"
    assert recipe("less").quantization == recipe("mods").quantization == "none"
    with pytest.raises(ConfigError, match=r"'quantization': .*set method to lora"):
        recipe("mods", quantization="4bit")
    with pytest.raises(ConfigError, match="'quantization': "):
        recipe("less", quantization="4bit", method="full")
    with pytest.raises(ConfigError, match="'quantization'"):
        recipe("less", quantization="8bit")
