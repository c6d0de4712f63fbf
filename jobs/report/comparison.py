"""The report of a comparison: verdicts, standings, rows in common, score against cost. All of it is in compare.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raysift.evaluation.entries import BASE, LONGEST, UNIFORM
from raysift.jobs.compare import rendering
from raysift.jobs.compare.result import SETTINGS, read_result
from raysift.jobs.report.cost import flat_settings, told
from raysift.jobs.runs.run import Run
from raysift.report.blocks import (
    TABLE_ROWS,
    Alert,
    Alerts,
    Bar,
    Bars,
    Block,
    Column,
    Fact,
    Facts,
    Heatmap,
    Line,
    Lines,
    Section,
    Table,
    Text,
)

Methods = Sequence[Mapping[str, Any]]


def comparison_sections(run: Run) -> list[Section]:
    """All sections, or the one that says that the comparison is not finished."""
    found = read_result(run.folder)
    command = f"raysift compare {run.folder / SETTINGS}"
    if found is None:
        text = Text(title="The command that continues it", text=command)
        return [Section(key="verdict", title="Verdict", lead="The comparison is not finished.", blocks=(text,))]
    lines: Methods = found["methods"]
    return [
        _verdict(found, lines, command),
        _alerts(found, lines),
        _standings(found, lines),
        _matrices(found),
        _cost_curve(lines),
        _cost(found, lines),
        _reproduction(run),
    ]


def _verdict(found: Mapping[str, Any], lines: Methods, command: str) -> Section:
    facts = (
        Fact(name="questions", value=found["questions"], type="count"),
        Fact(name="seeds", value=found["seeds"], type="count"),
        Fact(name="rows of the pool", value=found["pool_rows"], type="count"),
        Fact(
            name="score of the base model",
            value=next((one["score"] for one in lines if one["name"] == BASE), None),
            type="number",
        ),
    )
    said = "\n".join(rendering.sentences(found))
    blocks: list[Block] = [Facts(items=facts), Text(title="Each method", text=said)]
    if found.get("claims"):
        rows = tuple(
            (one["claim"], "holds" if one["holds"] else "does not hold", one["verdict"]) for one in found["claims"]
        )
        columns = tuple(Column(name=name) for name in ("claim", "", "verdict"))
        blocks.append(Table(title="Claims", columns=columns, rows=rows[:TABLE_ROWS]))
    blocks.append(Text(title="The command that repeats or extends it", text=command))
    return Section(key="verdict", title="Verdict", lead=_best(lines), blocks=tuple(blocks))


def _best(lines: Methods) -> str:
    """Which methods beat the random draw, and how the best stands."""
    better = [one for one in lines if one["name"] != BASE and (one["difference_low"] or 0) > 0]
    best = max(lines, key=lambda one: one["score"])
    first = f"{best['name']} scores best, {best['score']:.3f}."
    if not better:
        return f"No method is told apart from {UNIFORM}, for the better. {first}"
    return f"Better than {UNIFORM}: {', '.join(one['name'] for one in better)}. {first}"


def _alerts(found: Mapping[str, Any], lines: Methods) -> Section:
    items = []
    if found["indicative"]:
        text = f"{found['seeds']} seeds are few: take the figures as a hint, and compare with 3 or more."
        items.append(Alert(key="few_seeds", level="warning", text=text, count=found["seeds"], threshold=3))
    base = next((one for one in lines if one["name"] == BASE), None)
    for one in lines:
        if base and one is not base and one["high"] < base["low"]:
            text = f"{one['name']}: training made the model worse ({one['score']:.3f}; the base model has {base['score']:.3f})."
            items.append(
                Alert(key="worse_than_base", level="warning", text=text, count=one["score"], threshold=base["score"])
            )
        if (one["overlap_longest"] or 0) >= 0.5:
            text = f"{one['name']} shares {one['overlap_longest']:.0%} of its rows with {LONGEST}."
            items.append(
                Alert(key="like_longest", level="warning", text=text, count=one["overlap_longest"], threshold=0.5)
            )
    lead = "" if items else "Nothing stands out."
    return Section(key="alerts", title="Alerts", lead=lead, blocks=(Alerts(items=tuple(items)),) if items else ())


def _standings(found: Mapping[str, Any], lines: Methods) -> Section:
    columns = (
        *(Column(name="trained on"), Column(name="rows", type="count")),
        *(Column(name=name, type="number") for name in ("score", "from", "to")),
        *(Column(name=name, type="number") for name in (f"against {UNIFORM}", "from ", "to ", "loss on target")),
    )
    names = ("name", "rows", "score", "low", "high", "difference", "difference_low", "difference_high", "loss")
    rows = tuple(tuple(one[name] for name in names) for one in lines[:TABLE_ROWS])
    bar = Bar(
        name="score",
        values=tuple(one["score"] for one in lines),
        low=tuple(one["low"] for one in lines),
        high=tuple(one["high"] for one in lines),
    )
    note = f"{found['confidence']:.0%} intervals over seeds and questions."
    blocks: list[Block] = [
        Bars(title="Score", note=note, label="score", groups=tuple(one["name"] for one in lines), series=(bar,)),
        Table(title="Standings", note=note, columns=columns, rows=rows),
    ]
    spread = [(one["name"], one["spread"]["selection"], one["spread"]["training"]) for one in lines if one["spread"]]
    if spread:
        heads = (
            Column(name="trained on"),
            *(Column(name=n, type="number") for n in ("selections", "trainings")),
        )
        blocks.append(
            Table(title="Standard deviation of the score over seeds of", columns=heads, rows=tuple(spread[:TABLE_ROWS]))
        )
    return Section(key="standings", title="Standings", blocks=tuple(blocks))


def _matrices(found: Mapping[str, Any]) -> Section:
    blocks = (
        _matrix("Rows in common, of the rows of both", "share", found["overlap"], False),
        _matrix("Rank correlation of the rows' scores", "correlation", found["ranks"], True),
    )
    return Section(
        key="matrices", title="How like each other the selections are", blocks=tuple(b for b in blocks if b.rows)
    )


def _matrix(title: str, label: str, table: Mapping[str, Any], diverging: bool) -> Heatmap:
    names = tuple(table["names"])
    values = tuple(tuple(line) for line in table["values"])
    return Heatmap(title=title, label=label, columns=names, rows=names, values=values, diverging=diverging)


def _cost_curve(lines: Methods) -> Section:
    """Score against the seconds of selection and training: one dot a method, and the best for each price."""
    priced = sorted((_total(one), float(one["score"]), one["name"]) for one in lines)
    best, front = -1.0, []
    for seconds, score, _ in priced:
        if score > best:
            front.append((seconds, score))
            best = score
    dots = tuple(Line(name=name, points=((seconds, score),), dots=True) for seconds, score, name in priced)
    block = Lines(
        title="Score by total cost",
        x="seconds of selection and training",
        y="score",
        series=(*dots, Line(name="best so far", points=tuple(front))),
    )
    return Section(key="cost_curve", title="Score against cost", blocks=(block,))


def _total(one: Mapping[str, Any]) -> float:
    return float(one["selection_seconds"] or 0) + float(one["training_seconds"] or 0)


def _cost(found: Mapping[str, Any], lines: Methods) -> Section:
    columns = (
        Column(name="trained on"),
        *(Column(name=name, type="seconds") for name in ("select", "train")),
        *(Column(name=name, type="count") for name in ("steps", "tokens")),
    )
    names = ("name", "selection_seconds", "training_seconds", "steps", "tokens")
    rows = tuple(tuple(one[name] for name in names) for one in lines[:TABLE_ROWS])
    lead = ", ".join(f"{part}: {seconds:,.1f} seconds" for part, seconds in found.get("seconds", {}).items())
    return Section(
        key="cost", title="Cost", lead=lead, blocks=(Table(title="What it cost", columns=columns, rows=rows),)
    )


def _reproduction(run: Run) -> Section:
    import yaml

    settings = yaml.safe_load((run.folder / SETTINGS).read_text()) or {}
    rows = tuple((name, told(value)) for name, value in flat_settings(settings))
    table = Table(title="Settings", columns=(Column(name="setting"), Column(name="value")), rows=rows[:TABLE_ROWS])
    return Section(key="reproduction", title="Reproduction", blocks=(table,))
