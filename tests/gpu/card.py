"""What only a card can show: memory that really runs out, and two runs that are equal bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
from lab import Lab, Skipped
from worlds import WIDE, adapted, folder_of, nano_config, nano_rows, points, token_rows


def repeats(lab: Lab) -> None:
    """Gradients and trainings of the same rows, twice in one process, give the same bits."""
    from safetensors.numpy import load_file

    from raysift.actors.effective_batches import EncodeRows, Place, split_trainable
    from raysift.actors.row_gradients import VECTORS, GradientVectors
    from raysift.actors.trainee import train
    from raysift.settings.gradients import AdamSettings, ProjectionSettings
    from raysift.storage import open_location

    rows, vectors, weights = nano_rows(lab.sizes.rows), [], []
    encoded = split_trainable(EncodeRows("nano", "auto", 128)(rows))[0]
    for number in (1, 2):
        loading: dict[str, Any] = {"device": lab.device, "max_length": 128, "threads": lab.threads}
        actor = GradientVectors("nano", points(lab), AdamSettings(), ProjectionSettings(kind="none"), **loading)
        vectors.append(actor(rows)[VECTORS].to_pylist())
        out = lab.folder / f"repeat-{number}"
        train(encoded, open_location(out), nano_config(), "nano", Place(device=lab.device, threads=lab.threads))
        weights.append(load_file(out / "epoch-2" / "adapter" / "adapter_model.safetensors"))
    differ = sum(one != other for one, other in zip(*vectors, strict=True))
    lab.expect("gradients repeat bit for bit", not differ, f"{differ} of {len(rows)} rows differ")
    other = [name for name in weights[0] if not np.array_equal(weights[0][name], weights[1][name])]
    lab.expect("trainings repeat bit for bit", not other, f"{len(other)} of {len(weights[0])} tensors differ")


def out_of_memory(lab: Lab) -> None:
    """A pass that does not fit on the card is halved, the smaller size is kept, and every row has its vector."""
    if not lab.on_card:
        raise Skipped("memory runs out on a card alone; on the CPU the system would end the process")
    import torch

    from raysift.actors.language_model import load_language_model
    from raysift.gradients.collect import RowGradients
    from raysift.settings.gradients import ProjectionSettings
    from raysift.store.projection import Projection

    model = adapted(lab, load_language_model(folder_of(lab, WIDE), dtype="bf16", device=lab.device), 16)
    rows = token_rows(lab, 128, lab.sizes.wide["vocab_size"])
    gradients = RowGradients(model, token_budget=1024)
    gradients.sink = Projection(ProjectionSettings(kind="sketch", dimension=8192), gradients.adapter.layout)
    expected = gradients.run(rows)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    room = torch.cuda.memory_allocated() + 8 * 2**30
    torch.cuda.set_per_process_memory_fraction(min(1.0, room / total))
    asked = gradients.token_budget = 131072
    found = gradients.run(rows)
    lab.figures["out of memory: tokens asked, tokens kept"] = [asked, gradients.token_budget]
    lab.expect("out of memory: it did run out", gradients.token_budget < asked, "131072 tokens fitted into 8 GiB")
    lab.expect("out of memory: all rows", len(found.ids) == len(rows), f"{len(found.set_aside)} rows were set aside")
    if len(found.ids) == len(rows):
        lab.same("out of memory: vectors", found.vectors, expected.vectors, 0.1)
    kept = gradients.token_budget
    gradients.run(rows)
    lab.expect("out of memory: learnt once", gradients.token_budget == kept, "the second run halved again")


def answers_out_of_memory(lab: Lab) -> None:
    """A batch of rewards that does not fit is halved as well, and gives the same scores."""
    if not lab.on_card:
        raise Skipped("memory runs out on a card alone")
    import torch

    from raysift.actors.reward import Reward
    from raysift.records import ERROR
    from raysift.scoring.columns import REWARD

    rows = nano_rows(4096)
    expected = Reward("nano:reward", device=lab.device, dtype="fp32", batch_tokens=4096)(rows)
    actor = Reward("nano:reward", device=lab.device, dtype="fp32", batch_tokens=2**20)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 2**29) / total)
    found = actor(rows)
    lab.expect("rewards out of memory: all rows", found[ERROR].null_count == len(rows), "some rows failed")
    if found[ERROR].null_count == len(rows):
        one, other = (np.array(table[REWARD].to_pylist()) for table in (found, expected))
        lab.same("rewards out of memory: scores", one, other, 1e-3)
    lab.figures["rewards out of memory: tokens of a pass kept"] = actor.batch_tokens
    lab.expect("rewards out of memory: it did run out", actor.batch_tokens < 2**20, "all rows fitted into half a GiB")
