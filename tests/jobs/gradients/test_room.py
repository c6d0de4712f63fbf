"""What exact matching takes at the widths of real models, and its refusal where that cannot be had."""

from __future__ import annotations

import shutil
from collections import namedtuple

import pytest
from wide_models import SHAPE_8B

from raysift.actors.row_gradients import rows_to_sort
from raysift.config import CommonConfig
from raysift.errors import StageError
from raysift.jobs.gradients import room
from raysift.jobs.gradients.stages import handed_over
from raysift.jobs.on_ray import fitting
from raysift.jobs.on_ray.raydata import rows_at_once
from raysift.methods.less import LessConfig
from raysift.settings.cluster import Cluster, Machine
from raysift.settings.memory import GIB, Shape, fit, fit_card
from raysift.settings.resources import Resources
from raysift.storage import open_location

LLAMA_2_7B = Shape(
    hidden=4096,
    layers=32,
    vocabulary=32000,
    attention=4096,
    keys=4096,
    feed_forward=11008,
    gated=True,
    tied=False,
    positions=4096,
)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MMLU, EPOCHS = 57, 4
H100, SMALL_CARD = 80 * 10**9, 24 * 10**9


@pytest.fixture(params=[LLAMA_2_7B, SHAPE_8B], ids=["7B", "8B"])
def world(request, monkeypatch):
    """LESS's own training, rank 128 on the attention and 2048 tokens, at the widths of a real model instead of one on disk."""
    monkeypatch.setattr(fitting, "model_shape", lambda *_: request.param)
    train = {"max_length": 2048, "lora_rank": 128, "lora_targets": ATTENTION, "dtype": "bf16"}
    config = CommonConfig.model_validate({"method": "less", "train": train})
    return request.param, config, LessConfig()


def exact(world, points=1, subtasks=MMLU):
    _, config, settings = world
    found = room.exact_room(config, settings, "some/model", points, subtasks)
    assert found is not None
    return found


def test_mmlus_57_subtasks_at_four_checkpoints_fit_on_a_card_of_80_gb(world, tmp_path, monkeypatch):
    """One checkpoint's targets at a time: 57 gradients of float32, beside the model and a pass of two thousand tokens."""
    shape, *_ = world
    need, adapter = exact(world), shape.adapter(128, tuple(ATTENTION))
    assert need.rows == MMLU * 4 * adapter
    found = fit_card(need, H100, workers=8, host=200 * GIB)
    disk_of(monkeypatch, 10**15)
    room.require_exact_room("less", need, found, True, MMLU, EPOCHS, open_location(tmp_path))
    assert not found.too_large
    assert found.tokens >= 2048
    # All checkpoints' targets at once, as before, would not fit with any pass at all.
    together = exact(world, EPOCHS).fixed + (EPOCHS - 1) * need.rows
    assert together > H100


def test_the_targets_stage_holds_sums_of_one_subtask_whatever_their_number(world):
    shape, config, settings = world
    adapter = shape.adapter(128, tuple(ATTENTION))
    need = room.targets_room(config, settings, "some/model", EPOCHS, None, 2048)
    on_host = need.process + need.rows
    assert on_host < 5 * GIB
    # Sums in float64 for all subtasks, their stack, and float32 copies kept for all checkpoints.
    before = MMLU * adapter * (8 + 8 + EPOCHS * 4)
    assert before > 20 * on_host


def test_more_subtasks_than_a_card_holds_are_refused_with_what_would_fit(world, tmp_path):
    for card, subtasks in ((SMALL_CARD, MMLU), (H100, 400)):
        need = exact(world, subtasks=subtasks)
        found = fit_card(need, card, workers=1, host=200 * GIB)
        with pytest.raises(
            StageError, match=rf"exact matching holds .* targets of {subtasks} .*A GPU has .*less\.matching=store"
        ) as told:
            room.require_exact_room("less", need, found, True, subtasks, EPOCHS, open_location(tmp_path))
        fits = int(str(told.value).partition("at most ")[2].split()[0])
        need, more = exact(world, subtasks=fits), exact(world, subtasks=fits + 1)
        assert need.fixed - need.process + GIB <= fit_card(need, card, 1, GIB).room < more.fixed - more.process + GIB


def test_a_machine_that_cannot_keep_targets_in_memory_is_refused_and_unknown_memory_is_not(
    world, tmp_path, monkeypatch
):
    disk_of(monkeypatch, 10**15)
    need = exact(world)
    with pytest.raises(StageError, match=r"A machine has 32\.0 GiB"):
        room.require_exact_room("less", need, fit(need, 8, 32 * GIB), False, MMLU, EPOCHS, open_location(tmp_path))
    for found in (None, fit(need, 64, 256 * GIB)):
        room.require_exact_room("less", need, found, False, MMLU, EPOCHS, open_location(tmp_path))


def test_a_disk_without_room_for_the_targets_of_all_checkpoints_is_refused(world, tmp_path, monkeypatch):
    need = exact(world)
    for free, refused in ((EPOCHS * need.rows - 1, True), (EPOCHS * need.rows, False)):
        disk_of(monkeypatch, free)
        if not refused:
            room.require_exact_room("less", need, None, True, MMLU, EPOCHS, open_location(tmp_path))
            continue
        with pytest.raises(StageError, match=r"GiB on disk \(57 subtasks at 4 checkpoints, .*less\.checkpoints"):
            room.require_exact_room("less", need, None, True, MMLU, EPOCHS, open_location(tmp_path))


def disk_of(monkeypatch, free):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**15, 0, free))


def test_actors_get_rows_enough_to_sort_and_on_a_gpu_a_whole_block():
    cpu = Resources(tokens_per_pass=1024)
    assert handed_over(cpu).batch_rows == rows_to_sort(1024) == 128
    assert handed_over(Resources()).batch_rows == rows_to_sort(4096) == 512
    assert handed_over(Resources(block_rows=100)).batch_rows == 100
    assert handed_over(Resources(batch_rows=700)).batch_rows == 700
    gpus = Cluster((Machine(64, 8, 10**12),), 64, 8)
    on_gpu = handed_over(Resources().of("gradients", gpus))
    assert rows_at_once(on_gpu) == on_gpu.block_rows == 2000


def test_a_null_is_left_out_where_it_would_cost_memory_workers_or_shorter_passes(world, tmp_path, monkeypatch):
    def fits(subtasks, whole, fit_on, disk=10**15):
        disk_of(monkeypatch, disk)
        needs = exact(world, EPOCHS, subtasks), exact(world, EPOCHS, whole)
        return room.null_fits(*needs, fit_on, EPOCHS, open_location(tmp_path))

    def card(need):
        return fit_card(need, H100, workers=1, host=200 * GIB)

    def small_card(need):
        return fit_card(need, SMALL_CARD, workers=1, host=200 * GIB)

    assert fits(1, 5, card)
    assert not fits(1, 5, card, disk=exact(world, EPOCHS, 5).rows * EPOCHS - 1)
    assert not fits(400, 800, card)
    assert not fits(1, 5, lambda _need: None)
    alone, both = (card(exact(world, EPOCHS, count)) for count in (1, 5))
    assert min(alone.tokens, 2048) <= both.tokens
    assert not fits(1, 5, small_card)
    assert not fits(MMLU, 2 * MMLU, lambda need: fit(need, 32, 64 * GIB))
