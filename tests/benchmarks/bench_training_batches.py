"""How evenly a training's ranks work, and how much padding they read, before and after batches are dealt by tokens.

    nice python tests/benchmarks/bench_training_batches.py --model smol --ranks 8

Counts only, no time: the same steps of real rows, dealt by the rule before (passes by the longest row of all data, every n-th
part of the sorted rows to a rank) and by raysift.gradients.dealing.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from raysift.gradients.dealing import deal_rows
from tests.training_lengths import Dealt, by_the_longest_row, measure, pool_lengths, steps_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smol", help="whose tokenizer counts")
    parser.add_argument("--rows", type=int, default=5060)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--rows-per-pass", type=int, default=64)
    given = parser.parse_args()
    lengths = pool_lengths(given.model, given.rows)
    print(f"{len(lengths)} rows, mean {lengths.mean():.0f} tokens, longest {lengths.max()}; {given.ranks} ranks")
    print("| batch | tokens a pass | | balance (best possible) | padding | passes a step | tokens in a pass | idle |")
    print("|---:|---:|---|---:|---:|---:|---:|---:|")
    for batch, tokens in itertools.product((512, 128, 32), (4096, 16384)):
        steps = [lengths[step] for step in steps_of(len(lengths), batch)]
        limits = given.ranks, tokens, given.rows_per_pass
        before = functools.partial(by_the_longest_row, limits=limits, longest=int(lengths.max()))
        for name, rule in (("before", before), ("after", functools.partial(after, limits=limits))):
            found = measure(steps, rule)
            print(
                f"| {batch} | {tokens} | {name} | {found.balance:.2f} ({found.best:.2f}) | {found.padding:.0%} | "
                f"{found.passes:.1f} | {found.tokens_per_pass:.0f} | {found.idle:.0%} |"
            )


def after(lengths: np.ndarray, limits: tuple[int, int, int]) -> Dealt:
    return deal_rows(lengths.tolist(), *limits)


if __name__ == "__main__":
    main()
