"""How the gradient actors feed their device: parts of rows, checkpoints that take turns, targets on disk, tokens made ahead."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_models import tiny_llama

from raysift.actors import row_gradients, swapped, target_gradients
from raysift.actors.checkpointed import Checkpoint
from raysift.actors.row_gradients import MATCHES, VECTORS, GradientMatch, GradientVectors, rows_to_sort
from raysift.actors.swapped import Swapped
from raysift.actors.target_files import load_targets
from raysift.actors.target_gradients import TargetGradients
from raysift.errors import ModelError
from raysift.gradients import preference
from raysift.gradients.moments import Moments, save_moments
from raysift.gradients.rows import plan_batches
from raysift.records import ID, MESSAGES, Message, Pair
from raysift.settings.gradients import AdamSettings, PreferenceSettings, ProjectionSettings, TargetSettings
from raysift.storage import open_location

ADAM, WHOLE = AdamSettings(), ProjectionSettings(kind="none")
PROMPT = (Message("user", "which"),)
PAIRS = [Pair(PROMPT, "this one", "that", "a"), Pair(PROMPT, "b", "cc", "b"), Pair(PROMPT, "yes", "no", "c")]
CONVERSATIONS = pa.Table.from_pylist(
    [
        {
            ID: number,
            MESSAGES: [
                {"role": "user", "content": "what"},
                {"role": "assistant", "content": "yes " * (1 + number % 5)},
            ],
        }
        for number in range(11)
    ]
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny Llama and three checkpoints of an adapter with moments."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("world")
    base = tiny_llama(folder)
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora)
    points = []
    for number in (1, 2, 3):
        place = open_location(folder) / f"epoch-{number}"
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        for weight in trained.values():
            weight.data += 0.1 * torch.randn_like(weight)
        model.save_pretrained(f"{place.path}/adapter", save_embedding_layers=False)
        first, second = ({n: torch.rand_like(w).numpy() * 1e-4 for n, w in trained.items()} for _ in range(2))
        save_moments(place / "moments.safetensors", Moments(first, second, 3))
        points.append(Checkpoint(place.name, place / "adapter", place / "moments.safetensors", 1e-3))
    return base, points


@pytest.fixture(scope="module")
def targets(world, tmp_path_factory):
    """The folder of target files, and the three subtasks' vectors at each checkpoint."""
    folder = open_location(tmp_path_factory.mktemp("targets"))
    compute(world, folder)
    return folder, load_targets(folder, world[1])


def compute(world, folder, **more):
    base, points = world
    actor = TargetGradients(base, points, WHOLE, files=folder, **loading(**more))
    return actor.from_pairs(PAIRS, PreferenceSettings(), TargetSettings(), end_prompt=False)


def loading(**more):
    return {"device": "cpu", "threads": 1, "dtype": "fp32", "max_length": 64} | more


def matches(table):
    return np.array(table[MATCHES].to_pylist())


def test_passes_are_padding_for_a_tenth_at_most_whatever_their_size():
    """Lengths as real conversations have them: a median of 144 tokens, a twentieth of them longer than 900."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(2048, np.exp(rng.normal(np.log(144), 1.1, 16000))).astype(int) + 4

    def padding(tokens, rows):
        cells = real = 0
        for start in range(0, len(lengths) // rows * rows, rows):
            part = lengths[start : start + rows].tolist()
            for plan in plan_batches(part, tokens):
                cells += len(plan) * part[plan[0]]
                real += sum(part[i] for i in plan)
        return 1 - real / cells

    for tokens in (512, 2048, 4096, 8192, 16384, 32768):
        assert padding(tokens, rows_to_sort(tokens)) < 0.1
    assert padding(4096, 64) > 0.15 and padding(16384, 64) > 0.4


def test_answers_do_not_depend_on_how_many_rows_are_sorted_together(world, targets):
    base, points = world
    sketch = ProjectionSettings(dimension=512)
    for make, column in (
        (lambda: GradientMatch(base, points, ADAM, targets[0], **loading()), MATCHES),
        (lambda: GradientVectors(base, points, ADAM, sketch, **loading()), VECTORS),
    ):
        actor = make()
        together, actor.part_rows = actor(CONVERSATIONS), 3
        apart = actor(CONVERSATIONS)
        assert apart[ID].equals(together[ID])
        one, other = (
            matches(t) if column == MATCHES else np.stack([np.frombuffer(v, "<f2") for v in t[column].to_pylist()])
            for t in (together, apart)
        )
        np.testing.assert_allclose(one, other, atol=1e-3 if column == VECTORS else 1e-5)


def test_the_next_part_is_tokenised_while_the_model_works_on_this_one(world, targets, monkeypatch):
    base, points = world
    actor = GradientMatch(base, points, ADAM, targets[0], **loading())
    actor.part_rows = 4
    expected = matches(actor(CONVERSATIONS))
    reached = {number: threading.Event() for number in (4, 8)}
    encode, answer_part, waited = actor.model.encode_and_cut, actor._answer_part, []

    def encoding(row_id, messages):
        if row_id in reached:
            reached[row_id].set()
        return encode(row_id, messages)

    def working(rows, *given):
        following = rows[0][ID] + 4
        if following in reached:
            waited.append(reached[following].wait(60))  # for ever, if only this thread could tokenise
        return answer_part(rows, *given)

    monkeypatch.setattr(actor.model, "encode_and_cut", encoding)
    monkeypatch.setattr(actor, "_answer_part", working)
    assert np.array_equal(matches(actor(CONVERSATIONS)), expected)
    assert waited == [True, True]


def test_checkpoints_that_stay_on_the_device_are_never_copied(world, targets):
    base, points = world
    actor = GradientMatch(base, points, ADAM, targets[0], **loading())
    for _ in range(2):
        actor(CONVERSATIONS)
    assert (actor.model.tensors.copied, actor.copied) == (0, 0)


def test_checkpoints_without_room_are_copied_once_for_each_part_and_match_as_if_they_stayed(
    world, targets, monkeypatch
):
    base, points = world
    folder, vectors = targets
    staying = GradientMatch(base, points, ADAM, folder, **loading())
    expected = matches(staying(CONVERSATIONS))
    monkeypatch.setattr(swapped, "have_room", lambda *_: False)
    monkeypatch.setattr(row_gradients, "have_room", lambda *_: False)
    actor = GradientMatch(base, points, ADAM, folder, **loading())
    assert np.array_equal(matches(actor(CONVERSATIONS)), expected)
    numbers = actor.model.layout.total
    each = 4 * numbers * 3  # factors and two moments
    assert actor.model.tensors.copied == len(points) * each
    assert actor.copied == len(points) * vectors[0].nbytes == len(points) * 4 * numbers * 3  # three subtasks
    for number in (2, 3):
        actor(CONVERSATIONS)
        assert actor.copied == number * len(points) * vectors[0].nbytes

    before = GradientVectors(base, points, ADAM, ProjectionSettings(dimension=512), **loading())
    before.part_rows = 2
    before(CONVERSATIONS)
    assert before.model.tensors.copied == 6 * len(points) * each  # eleven rows in parts of two


def test_lists_take_turns_in_the_same_tensors_only_where_they_do_not_fit():
    lists = [[torch.full((2, 3), float(number)), torch.full((4,), -float(number))] for number in range(3)]
    for fits in (True, False):
        held = Swapped(lists, [CPU, CPU], fits)
        for number in (0, 2, 2, 1):
            assert [tensor.unique().item() for tensor in held.use(number)] == [number, -number]
        assert held.copied == (0 if fits else 3 * 40)
        assert (held.use(0)[0].data_ptr() == lists[0][0].data_ptr()) == fits


def test_a_gpu_keeps_what_leaves_it_most_of_its_memory_and_targets_that_it_cannot_hold_are_refused(monkeypatch):
    """No GPU here: its free memory is given, and its tensors are on no device at all."""
    gpu, lists = torch.device("cuda", 0), [[torch.empty(1000, device="meta")], [torch.empty(1000, device="meta")]]
    for free, fits in ((32_000, True), (31_999, False)):
        monkeypatch.setattr(swapped, "free_bytes", lambda _on, free=free: free)
        assert swapped.have_room(lists, [gpu]) == fits
    monkeypatch.setattr(swapped, "free_bytes", lambda _on: 3999)
    assert swapped.have_room(lists, [CPU])
    with pytest.raises(ModelError, match=r"targets of one checkpoint take 0\.0 GiB on cuda:0.* matching=store"):
        swapped.require_room(lists[0], [gpu])
    swapped.require_room(lists[0], [CPU])


def test_targets_are_mapped_from_their_files_and_not_read(targets):
    folder, vectors = targets
    names = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "targets" in line}
    assert {f"{folder.path}/epoch-{number}.safetensors" for number in (1, 2, 3)} <= names
    assert all(tensor.shape[0] == 3 for tensor in vectors)


def test_a_killed_stage_goes_on_at_the_checkpoint_that_it_was_at(world, targets, tmp_path, monkeypatch):
    folder, (real, done) = open_location(tmp_path), (preference.preference_targets, [])

    def killed_at_the_second(*given, **named):
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return real(*given, **named)

    monkeypatch.setattr(target_gradients, "preference_targets", killed_at_the_second, raising=False)
    monkeypatch.setattr(preference, "preference_targets", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        compute(world, folder)
    assert [file.name for file in folder.files()] == ["epoch-1.account.safetensors", "epoch-1.safetensors"]

    def counted(*given, **named):
        done.append(1)
        return real(*given, **named)

    monkeypatch.setattr(preference, "preference_targets", counted)
    found, whole = compute(world, folder), compute(world, targets[0])
    assert len(done) == 3  # one before the kill, two after it; the finished folder needs none
    for one, other in zip(found, whole, strict=True):
        assert one.members == other.members and one.set_aside == other.set_aside and one.subtasks == other.subtasks
        assert np.array_equal(one.sketches, other.sketches)
    for file in folder.files():
        assert file.read_bytes() == (targets[0] / file.name).read_bytes()
