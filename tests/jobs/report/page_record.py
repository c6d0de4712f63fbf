"""A report with every block and every section, its texts chosen to break a page that would trust them."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import Any

from raysift.report.blocks import (
    Alert,
    Alerts,
    Bar,
    Bars,
    Block,
    Column,
    Counts,
    Fact,
    Facts,
    Funnel,
    Heatmap,
    Histogram,
    Line,
    Lines,
    Map,
    Mark,
    Message,
    Near,
    Other,
    Point,
    Quote,
    Record,
    Row,
    Rows,
    Section,
    Stage,
    Table,
    Text,
    Texts,
    WhatIf,
    as_json,
    cut,
)

SOURCES = ("flan_v2", "oasst1", "dolly", "code_alpaca", "gsm8k_train", "sharegpt", "wizard_lm")
WORDS = [
    "the",
    "model",
    "answers",
    "a",
    "question",
    "about",
    "numbers",
    "trees",
    "rivers",
    "code",
    "and",
    "music",
    "with",
    "care",
    "then",
    "explains",
    "each",
    "step",
    "in",
    "turn",
]
HOSTILE = {
    "script": "<script>window.broken = 1; alert(1)</script>",
    "end of script": "</script></style></textarea><script>window.broken = 2</script>",
    "comment": "<!-- <script> <!-- never closed",
    "handler": "<img src=x onerror=\"window.broken = 3\"><svg onload='window.broken = 4'>",
    "address": "[click](javascript:window.broken=5) javascript:alert(1) data:text/html,<b>x</b>",
    "template": "{{ 7 * 7 }} {% raw %} ${7 * 7} {# gone #} &lt;b&gt; &amp;amp; &#x3c;",
    "right to left": "\u202egnol si txet siht\u202c and \u2067\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "one long word": "w" * 100_000,
    "control": "a\x00b\x07c\x1bd\x7fe \ud800 half",
    "picture": "👩🏽‍🚀 🇺🇳 ﷽ Z̸̡͌a̵͎͝l̶̰̏g̷̱̈o̴͙͋ \u2028 line \u2029 paragraph \ufeff mark",
    "policy": '"><meta http-equiv="refresh" content="0;url=https://example.org"><base href="https://example.org">',
}


def record(
    rows: int = 120, seed: int = 0, hostile: bool = True, with_text: bool = True, characters: int = 420
) -> dict[str, Any]:
    """A whole record as its JSON; where it is hostile, each hostile text stands in every place that holds text."""
    draw = random.Random(seed)
    odd = list(HOSTILE.values()) if hostile else []
    return as_json(
        Record(
            title="runs/less-tulu",
            kind="run",
            created_by="raysift 0.1.0",
            with_text=with_text,
            sections=tuple(_sections(draw, rows, odd, with_text, characters)),
        )
    )


def _sections(draw: random.Random, rows: int, odd: list[str], with_text: bool, characters: int) -> list[Section]:
    lead = "LESS took 8,165 of 163,296 rows (5 %), 1.2 million tokens; 41 % of them come from 2 of 18 sources."
    facts = (
        Fact(name="Rows taken", value=8165, type="count"),
        Fact(name="Share of the pool", value=0.05, type="percent"),
        Fact(name="Time of selection", value=12200.4, type="seconds"),
        Fact(name="Disk", value=4.4e9, type="bytes"),
        Fact(name="Overlap with longest", value=0.62, type="percent"),
        Fact(name="Correlation with length", value=-0.4183, type="number"),
        Fact(name="Run", value="5f0c2b7a9d8e41c2", type="id"),
    )
    alerts = (
        Alert(
            key="length",
            level="warning",
            text="Scores follow length: rank correlation 0.71, above 0.5.",
            count=0.71,
            threshold=0.5,
            chip="top",
        ),
        Alert(
            key="failed",
            level="warning",
            text="1.4 % of the rows failed, above 1 %.",
            count=2287,
            threshold=0.01,
            chip="failed",
        ),
        Alert(key="ties", level="note", text="312 rows at the cut have the same score; ids decided between them."),
    )
    stages = (
        Stage(
            stage="ingest",
            does="reads the pool and checks each row",
            rows_in=170_000,
            kept=163_296,
            rejected={"duplicate": 5120, "too long": 1400, "no answer": 160},
            failed=24,
            chips={"duplicate": "rejected: duplicate", "too long": "rejected: too long", "failed": "failed"},
        ),
        Stage(
            stage="gradients",
            does="keeps a projected gradient of each row at 4 checkpoints",
            rows_in=163_296,
            kept=161_009,
            failed=2287,
        ),
        Stage(stage="influence", does="matches gradients with the target", rows_in=161_009, kept=161_009),
        Stage(
            stage="choose",
            does="takes the best under the budget",
            rows_in=161_009,
            kept=8165,
            rejected={"below the cut": 152_844},
            chips={"below the cut": "border"},
        ),
    )
    yield Section(
        key="verdict", title="Verdict", lead=lead, blocks=(Facts(items=facts), *(Text(text=text) for text in odd))
    )
    yield Section(key="alerts", title="Alerts", blocks=(Alerts(items=alerts),))
    yield Section(
        key="funnel",
        title="Funnel",
        lead="Each stage keeps some rows; the rest has a reason.",
        blocks=(Funnel(stages=stages),),
    )
    yield Section(key="scores", title="Scores", blocks=tuple(_scores(draw)))
    yield Section(
        key="groups",
        title="Before and after",
        lead="What the selection has more of than the pool.",
        blocks=tuple(_groups(draw, odd)),
    )
    yield Section(key="map", title="Map", blocks=(_map(draw),))
    yield Section(
        key="rows",
        title="Rows",
        lead="Rows from the top, the border and the bottom, and some of each reason.",
        blocks=(_rows(draw, rows, odd, with_text, characters),),
    )
    yield Section(key="why", title="Why", blocks=tuple(_why(draw, odd, with_text)))
    yield Section(key="training", title="Training", blocks=(_losses(draw),))
    yield Section(key="evaluation", title="Evaluation", blocks=(_evaluation(),))
    yield Section(key="cost", title="Cost", blocks=(_cost(),))
    yield Section(
        key="reproduction",
        title="Reproduction",
        blocks=(_reproduction(odd), Text(title="Repeat it", text="raysift less --config run.yaml --run runs/again")),
    )


def _scores(draw: random.Random) -> list[Block]:
    edges = tuple(round(-0.2 + 0.02 * i, 3) for i in range(41))
    pool = tuple(int(16_000 * math.exp(-(((i - 14) / 6) ** 2))) + draw.randrange(60) for i in range(40))
    taken = tuple(count if i > 24 else 0 for i, count in enumerate(pool))
    shares = tuple(sorted({*(10 ** (-3 + 3 * i / 39) for i in range(40)), 0.05}))
    weights = [
        [w * (1 + 2 * (j % 3 == 0) * (1 - share)) for j, w in enumerate((30, 9, 15, 20, 7, 12, 7))] for share in shares
    ]
    counts = tuple(
        tuple(int(163_296 * share * w / sum(each)) for w in each) for share, each in zip(shares, weights, strict=True)
    )
    points = tuple((float(i + 1), 0.6 / (1 + i / 30)) for i in range(0, 400, 4))
    return [
        Histogram(
            title="Scores of the pool and of the selection",
            label="score",
            edges=edges,
            series=(Counts(name="pool", counts=pool), Counts(name="selected", counts=taken)),
            marks=(Mark(value=0.3, label="cut"),),
        ),
        Lines(
            title="Score by rank",
            x="rank",
            y="score",
            log_x=True,
            series=(Line(name="score", points=points),),
            marks=(Mark(value=82, label="the budget"), Mark(value=30, label="the knee")),
        ),
        WhatIf(
            title="What if the budget were another?",
            shares=shares,
            groups=SOURCES,
            counts=counts,
            pool=counts[-1],
            lengths=tuple(2400 / (1 + share) for share in shares),
            budget=0.05,
        ),
    ]


def _groups(draw: random.Random, odd: list[str]) -> list[Block]:
    def paired(title: str, label: str, groups: tuple[str, ...]) -> Bars:
        pool, taken = ([draw.random() + 0.05 for _ in groups] for _ in range(2))
        before, after = (tuple(value / sum(each) for value in each) for each in (pool, taken))
        return Bars(
            title=title,
            label=label,
            type="percent",
            groups=groups,
            series=(
                Bar(name="pool", values=before),
                Bar(
                    name="selected", values=after, low=tuple(v * 0.9 for v in after), high=tuple(v * 1.1 for v in after)
                ),
            ),
            lift=tuple(a / b for a, b in zip(after, before, strict=True)),
        )

    return [
        paired("Sources", "share of rows", SOURCES),
        paired("Turns", "share of rows", ("1", "2", "3 to 4", "5 and more")),
        *([paired("Groups with names that no one expects", "share of rows", tuple(odd))] if odd else []),
    ]


def _map(draw: random.Random) -> Map:
    edges = tuple(-4 + 8 * i / 64 for i in range(65))
    centres = [(-1.5, 0.5), (1.2, -1.0), (0.5, 1.6)]
    middle = [(a + b) / 2 for a, b in pairwise(edges)]
    density = tuple(
        tuple(
            int(sum(900 * math.exp(-((x - cx) ** 2 + (y - cy) ** 2) * (1 + k)) for k, (cx, cy) in enumerate(centres)))
            for x in middle
        )
        for y in middle
    )
    points = tuple(
        Point(x=draw.gauss(cx, 0.7), y=draw.gauss(cy, 0.6), id=_id(draw), rank=rank if rank < 500 else None)
        for rank in range(600)
        for cx, cy in [centres[rank % 3]]
    )
    return Map(
        title="The pool and what was chosen",
        x=edges,
        y=edges,
        density=density,
        points=points,
        explained=(0.23, 0.112),
        how="The two directions in which the gradients of the rows differ most.",
    )


def _id(draw: random.Random) -> str:
    return f"{draw.getrandbits(128):032x}"


def _text(draw: random.Random, characters: int) -> str:
    text = ""
    while len(text) < characters:
        text += draw.choice(WORDS) + draw.choice((" ", " ", " ", " ", ", ", ".\n"))
    return cut(text)


def _rows(draw: random.Random, rows: int, odd: list[str], with_text: bool, characters: int) -> Rows:
    chips = {
        "top": "the best scores",
        "border": "just below the cut",
        "bottom": "the worst scores",
        "random": "drawn at random",
        "rejected: duplicate": "the same text as another row",
        "failed": "a model could not answer",
    }
    ids = [_id(draw) for _ in range(rows)]

    def row(i: int) -> Row:
        chip, odd_text = list(chips)[i % len(chips)], odd[i % len(odd)] if odd and i < 2 * len(odd) else None
        size = draw.randrange(characters // 4, characters * 2)
        question, answer = odd_text or _text(draw, size // 2), odd_text or _text(draw, size)
        broken = chip == "failed"
        score = None if chip in ("rejected: duplicate", "failed") else 0.6 - i / 300
        return Row(
            id=ids[i],
            chips=(chip, "long") if len(answer) > 600 else (chip,),
            verdict=odd_text or f"Chosen as number {i + 1:,}: it pulls the model toward 3 of 4 subtasks."
            if chip == "top"
            else "Left out: its score lies below the cut.",
            source=odd_text or SOURCES[i % len(SOURCES)],
            file="pool/part-003.jsonl",
            position=i,
            own_id=odd_text or f"tulu-{i}",
            rank=i + 1 if chip == "top" else None,
            score=score,
            figures={
                "influence on bbh": 0.41 - i / 500,
                "tokens": 120 + i,
                "length": None,
                odd_text or "language": odd_text or "en",
            },
            messages=(Message(role="user", content=cut(question)), Message(role="assistant", content=cut(answer)))
            if with_text and not broken
            else None,
            raw=cut(question) if with_text and broken else None,
            nearest=Near(id=ids[0], distance=0.125) if i else None,
            other=(Other(title="the model's own answer", text=cut(answer) if with_text else None),)
            if i % 5 == 0
            else (),
        )

    return Rows(items=tuple(row(i) for i in range(rows)), chips=chips)


def _why(draw: random.Random, odd: list[str], with_text: bool) -> list[Block]:
    tasks = (
        "boolean expressions",
        "causal judgement",
        "date understanding",
        "formal fallacies",
        "geometric shapes",
        "hyperbaton",
        "navigate",
        "word sorting",
    )
    values = tuple(tuple(draw.gauss(0.02, 0.03) for _ in tasks) for _ in range(4))
    told = tuple(
        Quote(
            title=f"Target {i + 1} and the row that it pulls most",
            text=cut(text) if with_text else None,
            figures={"cosine": 0.4 - i / 50},
        )
        for i, text in enumerate(odd or [_text(draw, 300)] * 3)
    )
    return [
        Heatmap(
            title="Influence by checkpoint and subtask",
            label="mean cosine",
            columns=tasks,
            rows=("epoch 1", "epoch 2", "epoch 3", "epoch 4"),
            values=values,
            diverging=True,
        ),
        Heatmap(
            title="Overlap of methods",
            label="shared rows",
            columns=("a", "b", "c"),
            rows=("a", "b", "c"),
            values=((1.0, 0.42, None), (0.42, 1.0, 0.1), (None, 0.1, 1.0)),
        ),
        Texts(title="Strongest pairs", items=told),
    ]


def _losses(draw: random.Random) -> Lines:
    curves = []
    for k, name in enumerate(("loss", "target loss", "base model")):
        ys = [2.4 - 0.2 * k - 0.9 * (1 - math.exp(-i / 60)) + draw.gauss(0, 0.02) for i in range(200)]
        curves.append(
            Line(
                name=name,
                points=tuple((float(i), y) for i, y in enumerate(ys)),
                low=tuple(y - 0.06 for y in ys) if k else None,
                high=tuple(y + 0.06 for y in ys) if k else None,
            )
        )
    return Lines(title="Loss", x="step", y="loss", series=tuple(curves))


def _evaluation() -> Table:
    columns = (
        Column(name="model"),
        Column(name="accuracy", type="percent"),
        Column(name="low", type="percent"),
        Column(name="high", type="percent"),
        Column(name="rows", type="count"),
        Column(name="time", type="seconds"),
    )
    rows = (
        ("base model", 0.312, 0.29, 0.335, 0, None),
        ("uniform", 0.355, 0.33, 0.38, 8165, 1210.0),
        ("less", 0.402, 0.378, 0.426, 8165, 1215.0),
    )
    return Table(title="Accuracy on the target", note="Intervals of 95 % over 3 seeds.", columns=columns, rows=rows)


def _cost() -> Table:
    columns = (
        Column(name="stage"),
        Column(name="time", type="seconds"),
        Column(name="forecast", type="seconds"),
        Column(name="peak memory", type="bytes"),
        Column(name="restarts", type="count"),
        Column(name="rows a second", type="number"),
    )
    rows = tuple(
        (name, took, took * 0.9, memory, i, 1234.567 / (i + 1))
        for i, (name, took, memory) in enumerate(
            (("ingest", 42.0, 8e8), ("gradients", 9120.0, 1.6e10), ("influence", 200.0, 2e9), ("choose", 3.25, 4e8))
        )
    )
    return Table(columns=columns, rows=rows)


def _reproduction(odd: list[str]) -> Table:
    rows = (
        ("budget", "5%", "10%"),
        ("gradients.projection", "8192", "4096"),
        *((f"{text}", text, None) for text in odd),
    )
    return Table(
        title="Settings that differ from the defaults",
        columns=(Column(name="setting", type="id"), Column(name="value"), Column(name="default")),
        rows=rows,
    )
