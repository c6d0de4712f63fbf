"""A record of `raysift.report.blocks` as one HTML file: no request, no code but its own, and no text that could become code.

What is text or a table is written by the templates, and reads without scripts. What is drawn travels as compressed JSON. The policy
of the page names its scripts and its styles by their hashes, so nothing that a row holds could run even if it were not escaped.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import math
from collections import Counter
from pathlib import Path
from typing import Any

import orjson

from raysift.errors import DataError
from raysift.jobs.report.page.formats import count, shown, visible
from raysift.report.blocks import cut
from raysift.storage import Location

HERE = Path(__file__).parent
LIBRARIES = ("vendor/d3.min.js", "vendor/plot.min.js")
SCRIPTS = ("js/base.js", "js/plots.js", "js/what_if.js", "js/rows.js", "js/main.js")
DRAWN = ("bars", "histogram", "lines", "heatmap", "map", "what_if", "funnel", "rows")
MOST_BYTES = 8_000_000
MOST_CHARACTERS = 20_000
"""Of one text, whatever it says: a record cuts the texts of rows far below, but not each name and value."""

Block = dict[str, Any]


def write_page(record: dict[str, Any], place: Location) -> None:
    """Writes the page whole or not at all; where it would be too large it holds fewer example rows, and says so."""
    place.write(page_within(record, MOST_BYTES))


def page_within(record: dict[str, Any], most_bytes: int) -> bytes:
    rows = sum(len(block["items"]) for block in _blocks(record) if block["kind"] == "rows")
    kept = 1.0
    while len(page := render(record, kept).encode()) > most_bytes:
        if rows * kept < 1:
            raise DataError(
                f"report: the page of {record['title']} takes {count(len(page))} bytes without any example row, and "
                f"{count(most_bytes)} are allowed; report.json holds the same"
            )
        kept = kept * min(0.9, most_bytes / len(page)) if rows * kept > 1.2 else 0.0
    return page


def render(record: dict[str, Any], kept: float = 1.0) -> str:
    """The page with a share of the example rows; the same record gives the same text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    record = thinned(_writable(record), kept)
    libraries = [(HERE / name).read_text(encoding="utf-8").rstrip() for name in LIBRARIES]
    main = "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    early = (HERE / "js/early.js").read_text(encoding="utf-8")
    style = (HERE / "report.css").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters |= {"shown": shown, "height": height, "label_room": label_room}
    return environment.get_template("report.html.j2").render(
        record=record,
        payload=payload(record),
        policy=policy([early, *libraries, main], [style]),
        drawn=DRAWN,
        early=Markup(early),
        libraries=[Markup(text) for text in libraries],
        main=Markup(main),
        style=Markup(style),
    )


def policy(scripts: list[str], styles: list[str]) -> str:
    """Nothing may be loaded, and only these texts may run; `data:` is for the empty icon, which spares a request for one.

    Plot puts a style element into each drawing. Its rules are part of `report.css` and the element is removed before the
    drawing enters the page, so that styles need no exception.
    """
    rules = {
        "default-src": "'none'",
        "script-src": " ".join(map(_hash, scripts)),
        "style-src": " ".join(map(_hash, styles)),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def payload(record: dict[str, Any]) -> str:
    """What scripts draw, by place of section and block; base64 holds no character that could end an element."""
    drawn = {
        f"{i}.{j}": block
        for i, section in enumerate(record["sections"])
        for j, block in enumerate(section["blocks"])
        if block["kind"] in DRAWN
    }
    told = {"title": record["title"], "kind": record["kind"], "blocks": drawn}
    return base64.b64encode(gzip.compress(orjson.dumps(told), mtime=0)).decode()


def thinned(record: dict[str, Any], kept: float) -> dict[str, Any]:
    """Fewer example rows, the same ones each time: of each chip the first ones stay."""
    if kept >= 1:
        return record
    sections = [
        section
        | {"blocks": [_thinner(block, kept) if block["kind"] == "rows" else block for block in section["blocks"]]}
        for section in record["sections"]
    ]
    return record | {"sections": sections}


def _thinner(block: Block, kept: float) -> Block:
    items, seen = block["items"], Counter[str]()
    turns = []
    for place, item in enumerate(items):
        chip = item["chips"][0] if item["chips"] else ""
        turns.append((seen[chip], place))
        seen[chip] += 1
    staying = sorted(place for _, place in sorted(turns)[: math.floor(len(items) * kept)])
    said = (
        f"{count(len(staying))} of {count(len(items))} example rows shown, so that the page stays small enough to open."
    )
    return block | {"items": [items[place] for place in staying], "note": f"{block['note']} {said}".strip()}


def height(block: Block) -> int:
    """Pixels that a drawing takes, kept free for it so that nothing moves when it appears."""
    legend = 32 if len(block.get("series", ())) > 1 else 0
    match block["kind"]:
        case "bars":
            return legend + _height_of_bars(len(block["groups"]), len(block["series"]))
        case "heatmap":
            return 16 + label_room(block) + 32 * len(block["rows"])
        case "map":
            return 520
        case "what_if":
            lengths = any(length is not None for length in block["lengths"])
            return 146 + _height_of_bars(len(block["groups"]), 2) + 190 * lengths  # as in js/what_if.js
    return 300 + legend


def _height_of_bars(groups: int, series: int) -> int:
    gap, bar = (14, 18) if groups <= 12 else (8, 14)
    return 44 + groups * (gap + bar * series)


def label_room(block: Block) -> int:
    """Pixels above a heat map: names of columns that would run into each other stand upright."""
    if block["kind"] != "heatmap":
        return 0
    longest = max((len(name) for name in block["columns"]), default=0)
    return 28 if longest * len(block["columns"]) <= 40 else 24 + 6 * min(longest, 18)


def _blocks(record: dict[str, Any]) -> list[Block]:
    return [block for section in record["sections"] for block in section["blocks"]]


def _writable(value: Any) -> Any:
    """The record with each text bounded, and free of what cannot be shown."""
    if isinstance(value, str):
        return visible(cut(value, MOST_CHARACTERS))
    if isinstance(value, dict):
        return {_writable(name): _writable(item) for name, item in value.items()}
    return [_writable(item) for item in value] if isinstance(value, (list, tuple)) else value
