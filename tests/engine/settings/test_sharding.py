"""What a full fine-tune of 8 billion weights takes of each of eight cards, and when its weights are divided."""

from __future__ import annotations

import pytest
from wide_models import LLAMA_8B, SHAPE_8B

from raysift.settings.memory import CARD_SHARE, GIB, Shape, fit_card, training
from raysift.settings.sharding import full_training, is_divided, state_of
from raysift.settings.training import recipe

MODS = recipe("mods", dtype="bf16")
CARD = 80 * 10**9
ROOM = int(CARD * CARD_SHARE)


def test_the_parts_of_8b_weights_are_bytes_a_number():
    billions = {name: size / SHAPE_8B.parameters for name, size in state_of(SHAPE_8B, MODS).items()}
    assert billions == pytest.approx({"weights": 4, "gradients": 4, "moments": 8, "copies in bfloat16": 2})
    eight = state_of(SHAPE_8B, MODS.model_copy(update={"optimizer": "adamw8bit"}), 8)
    assert eight["moments"] / SHAPE_8B.parameters == pytest.approx(2 / 8, rel=0.02)


def test_a_whole_training_takes_what_the_general_estimate_says_and_the_copies():
    general = training(SHAPE_8B, "bf16", 1024, SHAPE_8B.parameters, whole=True)
    own = full_training(SHAPE_8B, MODS, 1024)
    assert own.trained == pytest.approx(general.trained) and own.accumulators == 2 * SHAPE_8B.parameters


@pytest.mark.parametrize("recomputed", [False, True])
def test_mods_as_published_fits_eight_cards_of_80_gb_divided_and_not_whole(recomputed):
    whole, divided = (full_training(SHAPE_8B, MODS, MODS.max_length, ranks, recomputed) for ranks in (1, 8))
    assert fit_card(whole, CARD, 8, 10**12).too_large
    found = fit_card(divided, CARD, 8, 10**12)
    assert not found.too_large and found.tokens >= (4096 if recomputed else 1024)
    assert is_divided("auto", MODS, 8, whole, ROOM) and not is_divided("auto", MODS, 1, whole, ROOM)


def test_weights_are_divided_where_they_must_be_or_where_it_is_asked():
    small = full_training(Shape(2048, 16, 32000, 2048, 512, 5632, True, True, 4096), MODS, 1024)
    assert small.bytes(1024) < ROOM < full_training(SHAPE_8B, MODS, 1024).bytes(1024)
    assert not is_divided("auto", MODS, 8, small, ROOM)
    assert is_divided("full", MODS, 8, small, ROOM) and is_divided("full", MODS, 2, None, None)
    for shard, config, workers in (
        ("none", MODS, 8),
        ("full", MODS, 1),
        ("full", recipe("less"), 8),
        ("auto", MODS.model_copy(update={"method": "lora"}), 8),
    ):
        assert not is_divided(shard, config, workers, full_training(SHAPE_8B, MODS, 1024), ROOM)
    assert not is_divided("auto", MODS, 8, None, ROOM) and not is_divided("auto", MODS, 8, small, None)


def test_the_parts_add_up_to_what_is_held():
    for ranks in (1, 8):
        need = full_training(SHAPE_8B, MODS, 1024, ranks)
        assert need.fixed - need.process == sum(state_of(SHAPE_8B, MODS, ranks).values())
        assert need.fixed / GIB < 140


def test_a_rank_s_share_is_counted_on_the_meta_device():
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(**LLAMA_8B)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # A rank holds its rows of each weight, one more where they do not divide evenly.
    share = sum(-(-len(weight) // 8) * weight[:1].numel() * weight.element_size() for weight in model.parameters())
    assert share == pytest.approx(state_of(SHAPE_8B, MODS, 8)["weights"], rel=0.001)
