"""Which targets say anything? Lift of the sources that serve a target, what was foretold before the pass, and the null after it.

    python tests/benchmarks/bench_targets.py ../shared/data --out runs/targets [--pools everyday rare] [--variants]
    python tests/benchmarks/bench_targets.py --nano --variants --out runs/targets-nano   # the same path in two minutes
    ... --draws 100     # also: how often are shuffled sides called noise, and parts of targets that work?

Pools are short real rows of sources that are known. One run of LESS per pool keeps its gradients in a store; each other target
reuses them and costs its own gradients alone. A target *serves* the sources of its own kind: lift is their share of the
selected 10 % over their share of the pool; 1 is chance. Pairs are of four kinds: *far* (the answers differ in kind), *near* (in a
number or a step), *style*, and *human* preference. Some targets have no source that serves them: for these, look at the
verdicts alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.compute as pc
import pyarrow.parquet as pq
import target_draws

import raysift
from raysift.draws import uniform_of
from raysift.evaluation.comparison import rank_correlation
from raysift.jobs.cluster.session import own_session
from raysift.jobs.gradients.null import found_null
from raysift.jobs.runs.console import Console
from raysift.nano.world import examples as nano_examples
from raysift.nano.world import generate_pool, preference_pairs
from raysift.pool.row_ids import row_id
from raysift.reasons.agreement import AGREEMENT
from raysift.records import Message

SHORTEST, LONGEST = 100, 350
"""Size of a pool's rows, question and answer together (see `_size`)."""
BUDGET = "10%"
VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "anchored": {"preference": {"answer_weight": 1.0}},
    "per token": {"preference": {"log_probability": "mean"}},
}
"""Settings of ROSE by name; the first is the paper's."""
MEMBERS = 24
WORKS = 4.0
"""Lift from which a target works."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """What to select for, and the sources whose rows are of its kind."""

    name: str
    method: str
    nature: str
    serves: tuple[str, ...]
    records: Callable[[], list[Record]]


EVERYDAY = {
    "flan_cot_gsm8k": 84, "chatdoctor_5k": 84, "flan_cot_ecqa": 84, "codealpaca_2k": 84, "safety_tuned": 84, "alpaca_zh": 84,
    "alpaca_en": 84, "dolly_3k": 84, "t0_p3": 84, "flan_cot_creak": 84, "gpteacher_toolformer": 84, "medical_zh_1k": 84,
}  # fmt: skip
RARE = {
    "alpaca_en": 300, "alpaca_gpt4_nuggets": 150, "t0_p3": 200, "flan_cot_creak": 100, "gpteacher_toolformer": 50,
    "flan_cot_gsm8k": 40, "chatdoctor_5k": 40, "gpteacher_codegen": 40, "safety_tuned": 40, "medical_zh_1k": 40,
}  # fmt: skip
POOLS = {"everyday": EVERYDAY, "rare": RARE}
CODE = ("codealpaca_2k", "gpteacher_codegen")
CHINESE = ("alpaca_zh", "medical_zh_1k")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--out", default="runs/targets")
    parser.add_argument("--nano", action="store_true", help="pools and targets of the nano world, on its model")
    parser.add_argument("--pools", nargs="+", default=sorted(POOLS), choices=sorted(POOLS))
    parser.add_argument("--targets", nargs="*", help="only these")
    parser.add_argument("--variants", action="store_true", help="also what departs from the paper's ROSE")
    parser.add_argument("--share", type=float, default=1.0, help="of each source's rows, for a smaller pool")
    parser.add_argument(
        "--draws", type=int, default=0, help="seeded draws of each target of the papers (see target_draws.py)"
    )
    options = parser.parse_args()
    if not options.nano and not options.data:
        parser.error("name the folder of data, or give --nano")
    out, console, lines = Path(options.out), Console("plain"), []
    with own_session():
        for pool, rows, targets in (
            nano_pools() if options.nano else real_pools(Path(options.data), options.pools, options.share)
        ):
            wanted = [target for target in targets if not options.targets or target.name in options.targets]
            variants = list(VARIANTS) if options.variants else [""]
            lines += list(run_pool(out / pool, rows, wanted, options.nano, variants, options.draws))
            (out / "lines.json").write_text(json.dumps(lines, indent=1))
    show(lines, console)


def run_pool(
    out: Path, rows: Sequence[Record], targets: Sequence[Target], nano: bool, variants: Sequence[str], draws: int = 0
) -> Iterator[Record]:
    """A line per target and variant; the first run makes the store that all share."""
    out.mkdir(parents=True, exist_ok=True)
    pool = write(out / "pool.jsonl", rows)
    warmup: Record = {"epochs": 2} | ({"recipe": "nano-warmup"} if nano else {})
    first = None
    for target in sorted(targets, key=lambda target: target.method):  # LESS first: its warm-up is the store's
        place = write(out / f"{target.name}.jsonl", target.records())
        for variant in variants if target.method == "rose" else [""]:
            name = f"{target.name} {variant}".strip().replace(" ", "-")
            selection = raysift.select(
                target.method,
                str(pool),
                [str(place)],
                budget=BUDGET,
                model="nano" if nano else "smol",
                run=str(out / name),
                reuse=[first] if first else [],
                log="plain",
                resources={"store": str(out / "store")},
                report=False,
                matching="store",
                warmup_share=0.1,
                warmup=warmup,
                **VARIANTS[variant],
            )
            first = first or str(out / name)
            line = {"pool": out.name, **line_of(target, selection, rows), "variant": variant}
            yield line | ({} if variant or not draws else {"draws": draws_of(target, selection, rows, draws)})


def line_of(target: Target, selection: raysift.Selection, rows: Sequence[Record]) -> Record:
    """Shares, lift, scores, what was foretold and what the null says."""
    by_source = selection.by_source
    chosen = sum(by_source[source]["selected"] for source in target.serves if source in by_source)
    there = sum(by_source[source]["pool"] for source in target.serves if source in by_source)
    total = sum(line["pool"] for line in by_source.values())
    scores = selection.scores()["score"].drop_null().to_numpy()
    share, expected = chosen / len(selection), there / total
    agreement, null = selection.run.stages["targets"].values[AGREEMENT], found_null(selection.run.opened)
    return {
        "target": target.name,
        "method": target.method,
        "nature": target.nature,
        "share": share,
        "in_pool": expected,
        "lift": share / expected if expected else None,
        "best": float(scores.max()),
        "median": float(np.median(scores)),
        "agreement": agreement,
        "above": null.above / len(selection) if null and null.above is not None else None,
        "null": null.sentence if null else None,
        "run": selection.run.name,
    }


def draws_of(target: Target, selection: raysift.Selection, rows: Sequence[Record], draws: int) -> Record:
    """Of seeded draws: how many shuffled ones are called noise, and how many of those with a lift above 4 are."""
    serving = {row_id(_messages(row)) for row in rows if row["source"] in target.serves}
    found = target_draws.open_target(str(selection.run.opened.name), serving, len(selection))
    told: Record = {}
    if found.are_pairs:
        told["shuffled"] = counts_of([target_draws.shuffled(found, seed) for seed in range(draws)])
    parts = [target_draws.part(found, seed) for seed in range(draws)]
    told["parts"] = counts_of(parts)
    told["working"] = counts_of([one for one in parts if one.lift is not None and one.lift > WORKS])
    return told


def counts_of(judged: Sequence[target_draws.Judged]) -> Record:
    """How many are called noise before the pass, after it, and at either time."""
    before, after = [one.before == "noise" for one in judged], [one.noise_after for one in judged]
    either = sum(b or a for b, a in zip(before, after, strict=True))
    return {"draws": len(judged), "before": sum(before), "after": sum(after), "either": either}


def show(lines: Sequence[Record], console: Console) -> None:
    """The table of all targets, and how agreement goes with lift."""
    columns = [
        "pool",
        "target",
        "method",
        "nature",
        "share",
        "in pool",
        "lift",
        "best",
        "median",
        "halves",
        "toward",
        "sign p",
        "before",
        "above",
    ]
    table = [
        [
            line["pool"], f"{line['target']} {line['variant']}", line["method"], line["nature"],
            f"{line['share']:.0%}", f"{line['in_pool']:.0%}",
            "–" if line["lift"] is None else f"{line['lift']:.1f}", f"{line['best']:.3f}", f"{line['median']:.3f}",
            *told(line),
        ]
        for line in lines
    ]  # fmt: skip
    console.table("targets", columns, table)
    show_draws([line for line in lines if "draws" in line], console)
    pairs = [
        (line["agreement"]["halves"], line["lift"]) for line in lines if line["agreement"] and line["lift"] is not None
    ]
    if len(pairs) > 3:
        found, low, high = with_interval(np.array(pairs))
        console.note(
            f"rank correlation of agreement and lift over {len(pairs)} targets: {found:.2f} ({low:.2f} to {high:.2f})"
        )


def show_draws(lines: Sequence[Record], console: Console) -> None:
    """The table of seeded draws, if there are any."""
    table = [
        [line["pool"], line["target"], kind, *map(str, own.values())]
        for line in lines
        for kind, own in line["draws"].items()
    ]
    if table:
        columns = ["pool", "target", "draws of", "draws", "noise before", "noise after", "at either time"]
        console.table("called noise", columns, table)


def told(line: Record) -> list[str]:
    """What was told before the pass (halves, where a contrast points, the sign test, the level), and the share above the null."""
    found = line["agreement"]
    figures = [found["halves"], found["toward"], found["chance"], line["above"]]
    halves, toward, chance, above = ("–" if figure is None else f"{figure:.2f}" for figure in figures)
    return [halves, toward, chance, found["level"], above]


def with_interval(pairs: np.ndarray, draws: int = 2000) -> tuple[float, float, float]:
    """The rank correlation of two columns, with a bootstrap interval of 95 %."""
    rng, found = np.random.default_rng(0), []
    for _ in range(draws):
        one = rank_correlation(*pairs[rng.integers(len(pairs), size=len(pairs))].T)
        found += [] if one is None else [one]
    low, high = np.quantile(found, [0.025, 0.975])
    return float(rank_correlation(*pairs.T) or 0.0), float(low), float(high)


# --- real rows -----------------------------------------------------------------------------------------------------------


def real_pools(
    data: Path, names: Sequence[str], share: float = 1.0
) -> Iterator[tuple[str, list[Record], list[Target]]]:
    """Name, rows and targets of each pool. Pools share no row."""
    by_source: dict[str, list[Record]] = {}
    for row in pq.read_table(data / "pool/pool_public.parquet", columns=["source", "messages"]).to_pylist():
        size = sum(map(_size, row["messages"]))
        if len(row["messages"]) == 2 and SHORTEST < size <= LONGEST and all(m["content"] for m in row["messages"]):
            by_source.setdefault(row["source"], []).append(row)
    drawn = {source: draw(rows, _text_of_row) for source, rows in by_source.items()}
    for name in names:
        place = sorted(POOLS).index(name)
        rows = [
            row
            for source, count in POOLS[name].items()
            for row in drawn[source][place :: len(POOLS)][: round(share * count)]
        ]
        yield name, rows, real_targets(data, drawn)


def real_targets(data: Path, drawn: dict[str, list[Record]]) -> list[Target]:
    """Four targets of LESS, and pairs of each kind for ROSE."""

    def asked(file: str, split: str, reference: Callable[[Record], str] = lambda row: row["reference"]) -> list[Record]:
        rows = [row for row in map(orjson.loads, (data / "eval" / file).open()) if row["split"] == split]
        found = [{"prompt": row["prompt"], "reference": reference(row), "id": row["id"]} for row in rows]
        return draw([row for row in found if row["reference"] and len(row["prompt"] + row["reference"]) < 600])

    def examples(*given: Any) -> list[Record]:
        return [{**row, "task": "bench", "metric": "exact_match"} for row in asked(*given)[:MEMBERS]]

    def against(rows: Sequence[Record], worse: Sequence[str]) -> list[Record]:
        return [pair(row["prompt"], row["reference"], other) for row, other in zip(rows[:MEMBERS], worse, strict=False)]

    def others(file: str, split: str, *given: Any) -> list[Record]:
        """Right answers against those of other questions of the same file."""
        rows = asked(file, split, *given)
        return against(rows, [row["reference"] for row in rows[MEMBERS:]])

    def preferred(file: str, longest: int = 600) -> list[Record]:
        rows = pq.read_table(data / "preferences" / file).filter(pc.field("split") == "val").to_pylist()
        kept = [row for row in rows if row["chosen"].strip() and row["rejected"].strip()]
        kept = [
            row for row in kept if row["chosen"] != row["rejected"] and len(row["prompt"] + row["chosen"]) < longest
        ]
        return [pair(row["prompt"], row["chosen"], row["rejected"]) for row in draw(kept)[:MEMBERS]]

    def prose() -> list[str]:
        return [row["messages"][1]["content"] for row in drawn["alpaca_en"][-MEMBERS:]]

    def chinese() -> list[Record]:
        rows = [
            row["messages"] for row in drawn["alpaca_zh"][-4 * MEMBERS :] if _is_chinese(row["messages"][1]["content"])
        ]
        return [
            pair(m[0]["content"], m[1]["content"], other) for m, other in zip(rows[:MEMBERS], prose(), strict=False)
        ]

    solution = lambda row: row["meta"].get("solution", "")  # noqa: E731
    return [
        Target("less_maths", "less", "examples", ("flan_cot_gsm8k",), lambda: examples("gsm8k.jsonl", "dev")),
        Target("less_doctor", "less", "examples", ("chatdoctor_5k",), lambda: examples("chatdoctor.jsonl", "dev")),
        Target(
            "less_commonsense", "less", "examples", ("flan_cot_ecqa",), lambda: examples("commonsenseqa.jsonl", "dev")
        ),
        Target("less_code", "less", "examples", CODE, lambda: examples("mbpp.jsonl", "dev")),
        Target("rose_chinese", "rose", "far", CHINESE, chinese),
        Target("rose_code", "rose", "far", CODE, lambda: against(asked("mbpp.jsonl", "dev"), prose())),
        Target(
            "rose_maths",
            "rose",
            "far",
            ("flan_cot_gsm8k",),
            lambda: against(asked("gsm8k.jsonl", "dev", solution), prose()),
        ),
        Target("rose_doctor", "rose", "near", ("chatdoctor_5k",), lambda: others("chatdoctor.jsonl", "dev")),
        Target(
            "rose_solutions", "rose", "near", ("flan_cot_gsm8k",), lambda: preferred("gsm8k_solutions.parquet", 500)
        ),
        Target("rose_harmless", "rose", "human", ("safety_tuned",), lambda: preferred("hh_harmless_base.parquet")),
        Target("rose_truthful", "rose", "human", (), lambda: preferred("truthfulqa_pairs.parquet")),
        Target("rose_polite", "rose", "style", (), lambda: preferred("polite_style_1100.parquet")),
    ]


def pair(prompt: str, chosen: str, rejected: str) -> Record:
    """A preference pair of one question."""
    return {"prompt": [{"role": "user", "content": prompt}], "chosen": chosen, "rejected": rejected}


def draw(rows: list[Record], text: Callable[[Record], str] = lambda row: str(row["prompt"])) -> list[Record]:
    """The rows in an order that depends on their texts alone; of equal texts one."""
    keyed = {row_id([Message("user", text(row))]): row for row in rows}
    ids = np.array(sorted(keyed), np.int64)
    return [keyed[int(id_)] for id_ in ids[np.argsort(uniform_of(ids, 0))]]


def write(place: Path, records: Sequence[Record]) -> Path:
    """The records as JSON lines."""
    place.write_bytes(b"".join(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in records))
    return place


def _size(message: Record) -> int:
    """Characters; one that is not ASCII counts three, as it is about as many tokens."""
    return sum(1 if letter.isascii() else 3 for letter in message["content"])


def _messages(row: Record) -> list[Message]:
    return [Message(message["role"], message["content"]) for message in row["messages"]]


def _text_of_row(row: Record) -> str:
    return "\n".join(message["content"] for message in row["messages"])


def _is_chinese(text: str) -> bool:
    return sum("\u4e00" <= letter <= "\u9fff" for letter in text) > len(text) / 3


# --- the nano world ------------------------------------------------------------------------------------------------------


def nano_pools() -> Iterator[tuple[str, list[Record], list[Target]]]:
    """A pool whose sources are its skills; pairs that differ in the answer, in style, or whose sides are shuffled."""
    rows = [{**row, "source": row["skill"]} for row in generate_pool(1200, 11)]
    skills = ("sort_words", "last_letters")
    targets = [
        *(
            Target(f"less_{s}", "less", "examples", (s,), lambda s=s: list(nano_examples(MEMBERS, 3, [s])))
            for s in skills
        ),
        *(
            Target(f"rose_{s}", "rose", "near", (s,), lambda s=s: list(preference_pairs(MEMBERS, 3, [s])))
            for s in skills
        ),
        Target("rose_style", "rose", "style", (), lambda: list(preference_pairs(MEMBERS, 3, skills, "style"))),
        Target("rose_shuffled", "rose", "shuffled", skills, lambda: shuffled(preference_pairs(MEMBERS, 3, skills))),
    ]
    yield "nano", rows, targets


def shuffled(pairs: Iterator[Record], seed: int = 0) -> list[Record]:
    """The pairs, of which about half have their answers exchanged."""
    rng = np.random.default_rng(seed)
    return [{**p, "chosen": p["rejected"], "rejected": p["chosen"]} if rng.random() < 0.5 else p for p in pairs]


if __name__ == "__main__":
    main()
