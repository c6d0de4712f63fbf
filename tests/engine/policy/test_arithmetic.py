"""The arithmetic of a step against counted operations of the real picker, and what it says of millions of rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from raysift.policy.arithmetic import H100, choosing_bytes, choosing_flop, step_seconds
from raysift.policy.device_picking import DevicePicker
from raysift.policy.drawing import Draw
from raysift.policy.network import Acquisition
from raysift.policy.settings import PolicySettings
from raysift.policy.state import State, stage_inputs
from raysift.settings.memory import Shape

from ...tiny_policies import WIDTH, tiny_pool  # noqa: TID252

LLAMA_8B = Shape(4096, 32, 128_256, 4096, 1024, 14_336, gated=True, tied=False, positions=8192)
ROWS = 20_000


class Bytes(TorchDispatchMode):
    """Bytes of the tensors that operations read and write; views touch none, and indexing the rows that are named alone."""

    touched = 0

    def __torch_dispatch__(self, operation, types, arguments=(), named=None):
        found = operation(*arguments, **(named or {}))
        if not operation.is_view:
            indexed = "index" in str(operation)
            read = (
                (arguments[1:], found if "index_put" not in str(operation) else None) if indexed else (arguments, found)
            )
            tensors = [leaf for leaf in tree_leaves(read) if isinstance(leaf, torch.Tensor)]
            self.touched += sum(leaf.numel() * leaf.element_size() for leaf in tensors)
        return found


@pytest.mark.parametrize("hidden", [(64, 64), (32,), (128, 64, 64)])
def test_what_is_counted_for_a_row_is_what_the_picker_reads_and_writes(hidden):
    settings, pool = PolicySettings(hidden=hidden), tiny_pool(ROWS)
    picker = DevicePicker(pool, settings, Acquisition(WIDTH, hidden, seed=0), "cpu")
    counts = np.zeros(ROWS, np.int32)
    counts[:100] = 1
    with FlopCounterMode(display=False) as flop, Bytes() as touched:
        picker.batch(State(stage_inputs(-2.0, -1.0, 1, 9), counts), 32, 1, Draw(0, "a"))
    assert touched.touched / ROWS == pytest.approx(choosing_bytes(hidden), rel=0.1)
    assert flop.get_total_flops() / ROWS == pytest.approx(choosing_flop(hidden), rel=0.05)


@pytest.mark.parametrize("rows", [10**6, 5 * 10**6])
def test_choosing_among_millions_of_rows_is_below_a_twentieth_of_a_step_of_an_8b_model(rows):
    trained = LLAMA_8B.adapter(16, "all-linear")
    step = step_seconds(LLAMA_8B, trained, batch_tokens=32 * 330, validation_tokens=300 * 330, pool_rows=rows)
    assert 0.05 < step.total < 1.0
    assert step.choose < 0.05 * step.total
    alone = step_seconds(LLAMA_8B, trained, 32 * 330, 300 * 330, rows, ranks=1)
    assert 5 < alone.total / step.total <= 8 and alone.exchange == 0
    assert H100.memory < 3.35e12
