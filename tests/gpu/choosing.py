"""Choosing: centres that cover vectors, and batches that a policy picks; both exactly as on the CPU."""

from __future__ import annotations

import numpy as np
from lab import Lab


def centers(lab: Lab) -> None:
    """The centres of greedy k-center do not depend on the device; how fast they are found does."""
    from raysift.kcenter.picking import k_center

    draw = np.random.default_rng(0)
    small = draw.standard_normal((2000, 32)).astype(np.float32)
    expected = k_center(small, 50, device="cpu", threads=lab.threads)
    found = k_center(small, 50, device=lab.device, threads=lab.threads)
    lab.expect("k-center: the same centres", found.ids.tolist() == expected.ids.tolist(), "the device decides centres")
    lab.same("k-center: radii", found.radii[1:], expected.radii[1:], 1e-12)
    rows, width = lab.sizes.points
    middles = draw.standard_normal((200, width)).astype(np.float32)
    points = middles[draw.integers(0, 200, rows)] + 0.7 * draw.standard_normal((rows, width), np.float32)
    with lab.memory("k-center"):
        chosen, seconds = lab.timed(lambda: k_center(points, lab.sizes.centers, device=lab.device, threads=lab.threads))
    lab.rate("k-center", chosen.possible, seconds, "pairs of row and centre")
    lab.figures["k-center: share of pairs multiplied"] = round(chosen.products / chosen.possible, 3)
    lab.expect("k-center: radius within twice the bound", chosen.ratio <= 2, f"the ratio is {chosen.ratio}")


def picking(lab: Lab) -> None:
    """The batch that a policy picks, and the seconds that a step spends on it."""
    import torch

    from raysift.policy.device_picking import DevicePicker
    from raysift.policy.drawing import Draw
    from raysift.policy.network import Acquisition
    from raysift.policy.picking import Picker
    from raysift.policy.pool import PolicyPool
    from raysift.policy.settings import PolicySettings
    from raysift.policy.state import State, stage_inputs

    torch.set_num_threads(lab.threads)
    draw, settings = np.random.default_rng(0), PolicySettings(classes=2)
    count = lab.sizes.pool_rows
    features = draw.standard_normal((count, 36)).astype(np.float32)
    pool = PolicyPool(np.arange(count) * 3, features, draw.integers(0, 2, count).astype(np.int32))
    network = Acquisition(36, settings.hidden, seed=1)
    state = State(stage_inputs(-2.0, -1.5, 3, 10), draw.integers(0, 2, count).astype(np.int32))
    picked, scores = {}, {}
    pickers = {"cpu": Picker(pool, settings, network), "device": DevicePicker(pool, settings, network, lab.device)}
    for where, picker in pickers.items():
        picker.batch(state, 32, 3, Draw(0, "warm"))
        picked[where], seconds = lab.timed(lambda picker=picker: picker.batch(state, 32, 3, Draw(0, "round 1")))
        lab.figures[f"picking, {where}: ms a step at {count} rows"] = round(1000 * seconds, 2)
        scores[where] = np.asarray(torch.as_tensor(picker.scores(state)).cpu())
    # The device holds the rows class by class.
    lab.same("picking: scores", scores["device"][pickers["device"].place], scores["cpu"], 1e-5)
    lab.at_most("picking: share of other rows", 1 - np.isin(picked["device"], picked["cpu"]).mean(), 1 / 32)
