"""What null targets and the agreement of members cost: targets and the pass over the pool with them and without, in turn.

    python tests/benchmarks/bench_null_cost.py [--rows 1000] [--members 24] [--repeats 7]

CPU seconds of one thread, on the nano model with two checkpoints and exact matching, where null columns cost most: each is as
long as a gradient. *Without* has neither null columns nor sketches of the members. Reading files and the warm-up are in neither
side, so the share of a whole run is smaller.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import torch

from raysift.actors.checkpointed import Checkpoint
from raysift.actors.language_model import resolve_model
from raysift.actors.row_gradients import GradientMatch
from raysift.actors.target_files import TargetFiles
from raysift.actors.target_gradients import PLAIN, TargetGradients
from raysift.gradients import preference
from raysift.gradients.moments import Moments, save_moments
from raysift.gradients.null_columns import ROWS, SIGNS, Kind, NullPlan, plan_rows, replicates
from raysift.jobs.gradients.targeting import content_key
from raysift.jobs.runs.console import Console
from raysift.nano.world import generate_pool, preference_pairs
from raysift.pool.pairs import make_pair
from raysift.records import Example
from raysift.settings.gradients import AdamSettings, PreferenceSettings, ProjectionSettings, TargetSettings
from raysift.storage import Location, open_location

LOADING: dict[str, Any] = {"device": "cpu", "threads": 1, "dtype": "fp32", "max_length": 128, "template": "auto"}
ADAM, WHOLE = AdamSettings(), ProjectionSettings(kind="none")
PARTS = ("targets", "pass over the pool", "both")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--members", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), options.rows, options.members)
        for kind in (SIGNS, ROWS):
            lines += compare(
                kind, Side(world, kind, with_null=False), Side(world, kind, with_null=True), options.repeats
            )
    columns = ["null", "part", "without, s", "with, s", "with/without", "lowest", "highest"]
    Console("plain").table(f"{options.rows:,} rows, {options.members} members", columns, lines)


def compare(kind: Kind, without: Side, full: Side, repeats: int) -> list[list[str]]:
    """A line per part, from measurements in turn; every other time the other side begins."""
    measured = np.empty((repeats, 2, len(PARTS)))
    for number in range(repeats):
        for side in (0, 1) if number % 2 else (1, 0):
            measured[number, side] = (without, full)[side].seconds()
    lines = []
    for part, name in enumerate(PARTS):
        before, after = measured[:, 0, part], measured[:, 1, part]
        ratios = after / before
        figures = [np.median(before), np.median(after), np.median(ratios), ratios.min(), ratios.max()]
        lines.append([kind, name, *(f"{figure:.3f}" for figure in figures)])
    return lines


class World:
    """Two checkpoints of the nano model, rows, and pairs."""

    def __init__(self, folder: Path, rows: int, members: int) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        self.folder, self.base = folder, resolve_model("nano")
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(self.base)
        model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False))
        self.points = [self._checkpoint(model, number) for number in (1, 2)]
        self.rows = [{"id": i, "messages": row["messages"]} for i, row in enumerate(generate_pool(rows, 0))]
        self.pairs = [make_pair(pair) for pair in preference_pairs(members, 0, ["add"])]

    def _checkpoint(self, model: Any, number: int) -> Checkpoint:
        place = open_location(str(self.folder / f"epoch-{number}"))
        model.save_pretrained(f"{place.path}/adapter", save_embedding_layers=False)
        named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        first, second = ({name: (torch.rand_like(w) * 1e-4).numpy() for name, w in named.items()} for _ in range(2))
        save_moments(place / "moments.safetensors", Moments(first, second, 3))
        return Checkpoint(place.name, place / "adapter", place / "moments.safetensors", 1e-3)


class Side:
    """Actors with or without a null and sketches; their loading is not measured."""

    def __init__(self, world: World, kind: Kind, with_null: bool) -> None:
        self.world, self.kind = world, kind
        self.null = null_plan(world, kind) if with_null else None
        adam = ADAM if self.null and kind == ROWS else PLAIN
        self.actor = TargetGradients(world.base, world.points, WHOLE, adam, files=self._folder(), **LOADING)
        self.table = pa.Table.from_pylist(world.rows)
        self._targets()
        assert self.actor.files
        self.match = GradientMatch(world.base, world.points, ADAM, self.actor.files.folder, **LOADING)
        self.match(self.table)

    def seconds(self) -> tuple[float, float, float]:
        """CPU seconds of the targets, of the pass, and of both."""
        self.actor.files = TargetFiles(self._folder(), self.actor.hash)
        began = time.process_time()
        self._targets()
        between = time.process_time()
        self.match(self.table)
        ended = time.process_time()
        return between - began, ended - between, ended - began

    def _targets(self) -> None:
        with contextlib.nullcontext() if self.null else mock.patch.object(preference, "Sketcher", NoSketches):
            if self.kind == SIGNS:
                pairs, settings = self.world.pairs, PreferenceSettings()
                self.actor.from_pairs(pairs, settings, TargetSettings(), end_prompt=False, null=self.null)
            else:
                self.actor.from_examples(examples_of(self.world), TargetSettings(), null=self.null)

    def _folder(self) -> Location:
        return open_location(tempfile.mkdtemp(dir=self.world.folder))


class NoSketches:
    """In place of the sketches of members."""

    width = 1

    def __init__(self, members: int) -> None: ...

    def __call__(self, unit: np.ndarray) -> np.ndarray:
        return np.ones(1, np.float32)


def examples_of(world: World) -> list[Example]:
    """The chosen answers as examples of one subtask."""
    return [Example(str(i), "t", p.prompt, "exact_match", reference=p.chosen) for i, p in enumerate(world.pairs)]


def null_plan(world: World, kind: Kind) -> NullPlan:
    """As the stage `targets` plans it."""
    columns = replicates(1)
    if kind == SIGNS:
        return NullPlan(SIGNS, columns, keys=tuple(content_key(pair) for pair in world.pairs))
    planned = plan_rows({"t": len(world.pairs)}, columns, len(world.rows))
    assert planned, "a pool so small has no null: ask for more --rows"
    sizes, most = planned
    return NullPlan(ROWS, columns, candidates=tuple(world.rows[: most + 16]), sizes=sizes, most=most)


if __name__ == "__main__":
    main()
