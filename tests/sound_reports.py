"""What holds of every record of a report, whatever the run."""

from __future__ import annotations

import json
from typing import Any

from raysift.report.blocks import COLUMN_TYPES, LINE_POINTS, ROW_ITEMS, TABLE_ROWS, TEXT_CHARACTERS, Record, as_json

ORDER = ["differences", "verdict", "alerts", "standings", "matrices", "cost_curve", "funnel", "scores", "groups", "map"]
ORDER += ["rows", "why", "training", "evaluation", "check", "cost", "reproduction"]
MORE = 40  # characters that say how much of a text is left out


def sound(record: Record) -> dict[str, Any]:
    """The record as plain JSON types, after checking all that any page relies on."""
    plain = as_json(record)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    keys = [section["key"] for section in plain["sections"]]
    assert keys == sorted(keys, key=ORDER.index) and len({*keys}) == len(keys)
    for section in plain["sections"]:
        assert section["title"] and (section["blocks"] or section["lead"])
        for block in section["blocks"]:
            CHECKS.get(block["kind"], lambda block, plain: None)(block, plain)
    return plain


def blocks(plain: dict[str, Any], key: str, kind: str = "") -> list[dict[str, Any]]:
    """The blocks of a section, of one kind."""
    found = next((section["blocks"] for section in plain["sections"] if section["key"] == key), [])
    return [block for block in found if kind in ("", block["kind"])]


def alerts(plain: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The alerts by their key."""
    return {item["key"]: item for block in blocks(plain, "alerts", "alerts") for item in block["items"]}


def rows(plain: dict[str, Any], chip: str = "") -> list[dict[str, Any]]:
    """The rows with a chip, or all of them."""
    found = [item for block in blocks(plain, "rows", "rows") for item in block["items"]]
    return [item for item in found if not chip or chip in item["chips"]]


def stages(plain: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The stages of the funnel by name."""
    return {stage["stage"]: stage for block in blocks(plain, "funnel", "funnel") for stage in block["stages"]}


def _funnel(block: dict[str, Any], plain: dict[str, Any]) -> None:
    shown = {chip for item in rows(plain) for chip in item["chips"]}
    for stage in block["stages"]:
        assert stage["rows_in"] == stage["kept"] + sum(stage["rejected"].values()) + stage["failed"], stage
        assert stage["chips"].keys() <= {*stage["rejected"], "failed"}
        assert {*stage["chips"].values()} <= shown, (stage, shown)


def _alerts(block: dict[str, Any], plain: dict[str, Any]) -> None:
    shown = {chip for item in rows(plain) for chip in item["chips"]}
    for item in block["items"]:
        assert item["level"] in ("warning", "note") and item["text"]
        assert item["chip"] is None or item["chip"] in shown, item


def _rows(block: dict[str, Any], plain: dict[str, Any]) -> None:
    assert 0 < len(block["items"]) <= ROW_ITEMS
    ids = [item["id"] for item in block["items"] if not item["chips"][0].startswith("rejected")]
    assert len({*ids}) == len(ids)
    for item in block["items"]:
        assert {*item["chips"]} <= block["chips"].keys() and item["verdict"].endswith((".", ")"))
        texts = [message["content"] for message in item["messages"] or []] + [item["raw"] or ""]
        texts += [other["text"] or "" for other in item["other"]]
        assert max(map(len, texts)) <= TEXT_CHARACTERS + MORE
        assert plain["with_text"] or not any(texts)


def _bars(block: dict[str, Any], plain: dict[str, Any]) -> None:
    count = len(block["groups"])
    assert len({*block["groups"]}) == count
    for series in block["series"]:
        ends = [series[name] for name in ("low", "high") if series[name] is not None]
        assert all(len(values) == count for values in [series["values"], *ends])
        if block["type"] == "percent" and len(block["series"]) == 2:
            assert abs(sum(series["values"]) - 1) < 1e-9


def _histogram(block: dict[str, Any], plain: dict[str, Any]) -> None:
    assert block["edges"] == sorted(block["edges"]) and len({*block["edges"]}) == len(block["edges"])
    assert all(len(series["counts"]) == len(block["edges"]) - 1 for series in block["series"])
    # A null is what another target would give the same rows, no part of them.
    pool, *selected = (series["counts"] for series in block["series"] if series["name"] != "null")
    assert all(few <= many for counts in selected for few, many in zip(counts, pool, strict=True))


def _what_if(block: dict[str, Any], plain: dict[str, Any]) -> None:
    assert block["shares"] == sorted(block["shares"]) and block["budget"] in block["shares"]
    assert len(block["counts"]) == len(block["lengths"]) == len(block["shares"])
    assert all(a <= b for a, b in zip(block["counts"][-1], block["pool"], strict=True))
    assert all(
        a <= b
        for one, more in zip(block["counts"], block["counts"][1:], strict=False)
        for a, b in zip(one, more, strict=True)
    )


def _lines(block: dict[str, Any], plain: dict[str, Any]) -> None:
    assert all(0 < len(series["points"]) <= LINE_POINTS for series in block["series"])


def _table(block: dict[str, Any], plain: dict[str, Any]) -> None:
    assert len(block["rows"]) <= TABLE_ROWS and all(len(row) == len(block["columns"]) for row in block["rows"])
    assert {column["type"] for column in block["columns"]} <= {*COLUMN_TYPES}


def _heatmap(block: dict[str, Any], plain: dict[str, Any]) -> None:
    assert len(block["values"]) == len(block["rows"])
    assert all(len(line) == len(block["columns"]) for line in block["values"])


CHECKS = {
    "funnel": _funnel,
    "alerts": _alerts,
    "rows": _rows,
    "bars": _bars,
    "histogram": _histogram,
    "what_if": _what_if,
    "lines": _lines,
    "table": _table,
    "heatmap": _heatmap,
}
