"""Row gradients: vectors, targets, matches and signs of nano against the CPU; speed and memory at real widths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from lab import Lab, Skipped
from worlds import WIDE, adapted, build, folder_of, nano_rows, points, token_rows

LIMITS = {"fp32": 3e-4, "tf32": 3e-2, "bf16": 0.15}
"""Relative distance from float32 on the CPU. Vectors are kept in half precision, which rounds each number by up to 5e-4."""
RUNS = 2


def _numbers(lab: Lab, device: str, dtype: str, **more: Any) -> dict[str, Any]:
    return {"device": device, "dtype": dtype, "max_length": 128, "threads": lab.threads} | more


def _kinds(lab: Lab) -> Iterator[tuple[str, dict[str, Any]]]:
    """The reference, whose batches hold one row, and then each number type of the device."""
    yield "reference", _numbers(lab, "cpu", "fp32", token_budget=1)
    for kind, dtype in lab.precisions():
        yield kind, _numbers(lab, lab.device, dtype)


def row_gradients(lab: Lab) -> None:
    """Whole gradients of rows at two checkpoints, and the signs of their projections."""
    from raysift.actors.row_gradients import VECTORS, GradientVectors
    from raysift.settings.gradients import AdamSettings, ProjectionSettings

    rows, whole, signs = nano_rows(lab.sizes.rows), {}, {}
    for kind, loading in _kinds(lab):
        actor = GradientVectors("nano", points(lab), AdamSettings(), ProjectionSettings(kind="none"), **loading)
        actor(rows.slice(0, 8))
        with lab.memory(f"row gradients {kind}"):
            answers, seconds = lab.timed(lambda actor=actor: actor(rows))
        whole[kind] = np.array([np.frombuffer(one, "<f2") for one in answers[VECTORS].to_pylist()], np.float64)
        lab.rate(f"row gradients {kind}", len(rows), seconds, "rows")
        settings = ProjectionSettings(kind="signs", dimension=8192)
        packed = GradientVectors("nano", points(lab), AdamSettings(), settings, **loading)(rows)[VECTORS].to_pylist()
        signs[kind] = np.unpackbits(np.array([np.frombuffer(one, np.uint8) for one in packed]), axis=1)
        if kind != "reference":
            lab.same(f"row gradients {kind}", whole[kind], whole["reference"], LIMITS[kind])
            other = float(np.mean(signs[kind] != signs["reference"]))
            lab.at_most(f"signs {kind}: share of other bits", other, {"fp32": 1e-3, "tf32": 0.02, "bf16": 0.15}[kind])


def targets_and_match(lab: Lab) -> None:
    """Target gradients of preference pairs and of examples, and the cosines of rows with them."""
    from raysift.actors.row_gradients import MATCHES, GradientMatch
    from raysift.actors.target_files import load_targets
    from raysift.actors.target_gradients import TargetGradients
    from raysift.nano.world import preference_pairs
    from raysift.records import Message, Pair
    from raysift.settings.gradients import AdamSettings, PreferenceSettings, ProjectionSettings, TargetSettings
    from raysift.storage import open_location

    drawn = preference_pairs(8, 0, ["add", "subtract"], "correctness")
    pairs = [
        Pair(tuple(Message(**turn) for turn in one["prompt"]), one["chosen"], one["rejected"], one["subtask"])
        for one in drawn
    ]
    rows, vectors, cosines = nano_rows(lab.sizes.rows), {}, {}
    for kind, loading in _kinds(lab):
        place = open_location(lab.folder / f"targets-{kind}").make_folder()
        actor = TargetGradients("nano", points(lab), ProjectionSettings(kind="none"), files=place, **loading)
        with lab.memory(f"targets {kind}"):
            actor.from_pairs(pairs, PreferenceSettings(), TargetSettings(), end_prompt=True)
        lab.figures[f"targets {kind}: distance from autograd"] = float(f"{actor.deviation or 0:.3g}")
        vectors[kind] = np.stack([np.asarray(one, np.float64) for one in load_targets(place, points(lab))])
        matcher = GradientMatch("nano", points(lab), AdamSettings(), place, **loading)
        with lab.memory(f"match {kind}"):
            answers, seconds = lab.timed(lambda matcher=matcher: matcher(rows))
        cosines[kind] = np.array(answers[MATCHES].to_pylist(), np.float64)
        lab.rate(f"match {kind}", len(rows), seconds, "rows")
        if kind != "reference":
            lab.same(f"targets {kind}", vectors[kind], vectors["reference"], LIMITS[kind])
            lab.same(f"match {kind}", cosines[kind], cosines["reference"], LIMITS[kind])


def wide_gradients(lab: Lab) -> None:
    """Tokens a second, peak memory and share of the card's peak at the widths of Llama-3.2-1B."""
    from raysift.actors.language_model import load_language_model

    model = load_language_model(folder_of(lab, WIDE), dtype="bf16", device=lab.device)
    _measure(lab, "1B" if lab.on_card else "tiny", model, lab.sizes.wide_rows)


def widest_gradients(lab: Lab) -> None:
    """The same at the widths of Llama-3.1-8B."""
    if lab.sizes.widest is None:
        raise Skipped("8 billion parameters need a card")
    _measure(lab, "8B", build(lab, lab.sizes.widest), lab.sizes.wide_rows // 4)


def _measure(lab: Lab, name: str, base: Any, count: int) -> None:
    """Rows of real lengths through the official Adam direction into signs, and into cosines with eight targets."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from raysift.gradients.adam import AdamDirection, FlatMoments
    from raysift.gradients.collect import RowGradients
    from raysift.gradients.match import ExactMatch
    from raysift.settings.gradients import AdamSettings, ProjectionSettings
    from raysift.store.packing import PackedProjection
    from raysift.store.projection import Projection
    from raysift.store.vectors import VectorForm

    model = adapted(lab, base, lab.sizes.rank)
    rows = token_rows(lab, count, lab.sizes.wide["vocab_size"])
    gradients = RowGradients(model, token_budget=lab.sizes.token_budget, max_tokens=lab.sizes.max_tokens)
    layout = gradients.adapter.layout
    draw = torch.Generator().manual_seed(0)
    first, second = ([torch.rand(size, generator=draw) * 1e-4 for size in layout.sizes] for _ in range(2))
    gradients.direction = AdamDirection(AdamSettings(), FlatMoments(tuple(first), tuple(second), 10))
    settings = ProjectionSettings(kind="signs", dimension=131072 if lab.on_card else 8192)
    projection = Projection(settings, layout)
    sinks = {
        "signs": PackedProjection(projection, VectorForm.of(settings, projection.width)),
        "match": ExactMatch(torch.randn(8, layout.total, generator=draw), layout),
    }
    tokens = sum(map(len, rows))
    for kind, sink in sinks.items():
        what, gradients.sink = f"gradients {name} {kind}", sink
        gradients.run(rows[:4])
        with lab.memory(what):
            found, seconds = lab.timed(lambda: [gradients.run(rows) for _ in range(RUNS)][-1])
        with FlopCounterMode(display=False) as counter:
            gradients.run(rows)
        lab.expect(f"{what}: all rows", len(found.ids) == len(rows), f"{len(found.set_aside)} rows have no gradient")
        lab.rate(what, RUNS * tokens, seconds, "tokens")
        lab.share(what, RUNS * counter.get_total_flops(), seconds)
        floor = 4 * tokens * sum(weight.numel() for weight in _multiplied(model))
        lab.figures[f"{what}: counted FLOP per FLOP of the floor"] = round(counter.get_total_flops() / floor, 3)


def _multiplied(model: Any) -> list[Any]:
    """The frozen weights that every token is multiplied with; the head is, too, and the floor counts it at all tokens."""
    head = model.get_output_embeddings().weight
    layers = [weight for name, weight in model.named_parameters() if weight.dim() == 2 and "lora_" not in name]
    inputs = model.get_input_embeddings().weight
    return [weight for weight in layers if weight is not inputs] + ([head] if head is inputs else [])
