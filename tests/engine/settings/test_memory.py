"""What a worker is expected to take, and how many, how large and with how many threads they are then."""

import pytest
from wide_models import LLAMA_8B

from raysift.settings.memory import (
    FEWEST_TOKENS,
    GIB,
    Need,
    answering,
    fewer,
    fit,
    row_gradients,
    shape_of,
    stepping,
    training,
)

SMOL = {
    "hidden_size": 576, "num_hidden_layers": 30, "vocab_size": 49152, "num_attention_heads": 9, "num_key_value_heads": 3,
    "intermediate_size": 1536, "hidden_act": "silu", "tie_word_embeddings": True, "max_position_embeddings": 8192,
}  # fmt: skip
BERT = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "vocab_size": 30522,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}


def gradient_actor(dtype="fp32", max_length=256):
    shape = shape_of(SMOL)
    return row_gradients(shape, dtype, max_length, shape.adapter(16, "all-linear"), 1, 3, 1)


@pytest.mark.parametrize(("card", "millions"), [(SMOL, 134.5), (LLAMA_8B, 8030), (BERT, 22.4)])
def test_parameters_follow_from_the_configuration(card, millions):
    tied = card | {"tie_word_embeddings": card.get("tie_word_embeddings", True)}
    assert shape_of(tied).parameters / 1e6 == pytest.approx(millions, rel=0.01)


def test_the_numbers_of_an_adapter_are_those_that_peft_makes():
    assert shape_of(SMOL).adapter(16, "all-linear") == 4_884_480
    assert shape_of(SMOL).adapter(16, ("q_proj", "v_proj")) == 16 * 30 * (576 + 576 + 576 + 192)


def test_a_model_inside_another_is_found_and_an_unknown_one_is_told():
    assert shape_of({"text_config": SMOL}) == shape_of(SMOL)
    assert shape_of({"model_type": "something"}) is None


def test_a_real_model_on_a_laptop_stays_below_three_gibibytes_with_every_core_at_work():
    found = fit(gradient_actor(), cores=2, memory=14 * GIB)
    assert (found.workers, found.threads, found.tokens) == (1, 2, 512)
    assert found.bytes < 3.2 * GIB and not found.too_large
    assert fit(gradient_actor("bf16"), cores=2, memory=14 * GIB).bytes < found.bytes


@pytest.mark.parametrize("cores", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("memory", [2, 5, 14, 60])
@pytest.mark.parametrize("machines", [1, 3])
def test_workers_take_no_core_and_no_memory_twice(cores, memory, machines):
    for need in (gradient_actor(), answering(shape_of(SMOL), "bf16"), answering(shape_of(BERT), "fp32")):
        found = fit(need, cores, memory * GIB, machines)
        on_one = -(-found.workers // machines)
        assert on_one * found.threads <= max(cores, found.workers if found.small else 1)
        assert on_one == 1 or found.small or on_one * found.bytes <= memory * GIB
        assert found.reserved <= memory * GIB


def test_a_number_that_is_given_stays():
    found = fit(gradient_actor(), cores=8, memory=60 * GIB, workers=2, tokens=3000)
    assert (found.workers, found.threads, found.tokens) == (2, 4, 3000)


def test_small_models_stay_as_they_are_one_thread_and_one_worker_for_each_core():
    found = fit(Need(GIB, activations=60_000, longest=512, small=True), cores=4, memory=2 * GIB)
    assert (found.workers, found.threads, found.tokens, found.reserved) == (4, 1, 4096, 0)


def test_passes_shrink_where_memory_is_short():
    short = fit(Need(GIB, process=0, activations=2 * 2**20), cores=2, memory=GIB + 300 * 2**20)
    assert short.tokens == FEWEST_TOKENS
    assert fit(Need(2 * GIB, activations=2**20), cores=2, memory=GIB).too_large


def test_after_a_kill_passes_then_workers_shrink_until_nothing_is_left_to_give_up():
    need = Need(GIB, activations=2**20, longest=200)
    found = fit(need, cores=8, memory=60 * GIB)
    seen = [found]
    while (smaller := fewer(found, need)) != found:
        assert smaller.bytes * smaller.workers < found.bytes * found.workers
        found = smaller
        seen.append(found)
    assert found.workers == 1 and found.tokens <= 256
    assert len(seen) < 10


def test_training_all_weights_takes_sixteen_bytes_for_each():
    shape = shape_of(LLAMA_8B)
    assert training(shape, "bf16", 2048, shape.parameters, whole=True).fixed > 16 * 8.0e9


@pytest.mark.parametrize("tokens", [128, 512, 4096])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_parts_of_a_forecast_add_up_to_it(tokens, dtype):
    shape = shape_of(SMOL)
    plain = training(shape, dtype, 300, shape.adapter(16, "all-linear"), whole=False)
    for need in (
        gradient_actor(dtype),
        plain,
        answering(shape, dtype),
        stepping(plain, shape, dtype, 9 * GIB, 2048),
    ):
        assert sum(need.parts(tokens).values()) == need.bytes(tokens)
        assert list(need.parts(tokens).values()) == sorted(need.parts(tokens).values(), reverse=True)
    assert plain.parts(512)["weights"] == shape.parameters * (4 if dtype == "fp32" else 2)


def test_a_short_pool_is_planned_by_its_longest_row_and_not_by_what_could_be_read():
    """A pass of 512 tokens: the row of 2,048 that the recipe allows is not there."""
    short, allowed = gradient_actor(max_length=300), gradient_actor(max_length=2048)
    found = fit(short, cores=2, memory=14 * GIB)
    assert found.tokens == 512 and found.bytes < 3.2 * GIB
    assert fit(allowed, cores=2, memory=14 * GIB).bytes > found.bytes + 2 * GIB


def raise_training(measured=2048):
    shape = shape_of(SMOL)
    plain = training(shape, "fp32", 300, shape.adapter(16, "all-linear"), whole=False)
    return stepping(plain, shape, "fp32", 50_000_000, measured)


@pytest.mark.parametrize("cores", [1, 2, 8, 64])
@pytest.mark.parametrize("memory", [6, 14, 60])
@pytest.mark.parametrize("trainings", [1, 3])
def test_trainings_share_cores_and_memory(cores, memory, trainings):
    found = fit(raise_training(), cores, memory * GIB, most=trainings)
    assert 1 <= found.workers <= trainings
    assert found.workers * found.threads <= max(cores, found.workers)
    assert found.workers == 1 or found.workers * found.bytes <= memory * GIB
    assert (found.workers * (found.threads + 1) > cores) or trainings > found.workers, "no core is left idle"


def test_one_training_uses_all_cores_although_there_is_room_for_more():
    assert fit(raise_training(), cores=16, memory=60 * GIB, most=1).threads == 16
    assert fit(raise_training(), cores=16, memory=60 * GIB).workers == 4


def test_a_validation_that_takes_more_than_a_pass_counts():
    need, long = raise_training(), raise_training(measured=20_000)
    assert long.bytes(512) > need.bytes(512) and "validation" in long.parts(512)
