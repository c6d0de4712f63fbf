"""Draw the demo's result: `python docs/figures/demo.py runs/demo` fills docs/figures/demo.svg and the table in README.

It reads RUN/compare.json and keeps the figures that it shows in demo.json beside this file.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

HERE = Path(__file__).resolve().parent
README = HERE.parents[1] / "README.md"
SHOWN = ("name", "rows", "selection_seconds", "training_seconds", "score", "low", "high")
SHOWN += ("difference", "difference_low", "difference_high")
REFERENCES = ("base model", "uniform", "longest", "full pool", "oracle")
"""Drawn in grey; what is left are methods."""
MARKS = re.compile(r"(<!-- demo -->\n).*?(<!-- /demo -->)", re.S)

WIDTH, LEFT, RIGHT, TOP, LINE, BOTTOM = 760, 120, 170, 52, 28, 44
STYLE = """
  .paper { fill: #ffffff } text { fill: #1f2328; font: 13px system-ui, sans-serif } .title { font-weight: 600 }
  .small { fill: #59636e; font-size: 12px } .grid { stroke: #d1d9e0 } .even { stroke: #59636e; stroke-dasharray: 3 4 }
  .reference { fill: #59636e; stroke: #59636e } .method { fill: #0969da; stroke: #0969da }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #0d1117 } text { fill: #f0f6fc } .small { fill: #9198a1 } .grid { stroke: #3d444d }
    .even { stroke: #9198a1 } .reference { fill: #9198a1; stroke: #9198a1 } .method { fill: #4493f8; stroke: #4493f8 }
  }"""


def kept(found: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a comparison that is shown."""
    lines = [{key: line[key] for key in SHOWN} for line in found["methods"]]
    return {key: found[key] for key in ("questions", "seeds", "confidence")} | {"methods": lines}


def figure(found: Mapping[str, Any]) -> str:
    """An SVG with a dot and an interval for each method; readable on light and dark pages."""
    lines = found["methods"]
    ticks = ticks_to(max(line["high"] or line["score"] for line in lines))
    height = TOP + LINE * len(lines) + BOTTOM
    scale = (WIDTH - LEFT - RIGHT) / ticks[-1]

    def at(score: float) -> str:
        return f"{LEFT + score * scale:.1f}"

    title = f"Accuracy on {found['questions']} unseen questions, by what the model was trained on"
    said = "; ".join(f"{line['name']} {line['score']:.3f}" for line in lines)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title><desc>{escape(said)}</desc>",
        f"<style>{STYLE}\n</style>",
        f'<rect class="paper" width="{WIDTH}" height="{height}" rx="6"/>',
        f'<text class="title" x="16" y="28">{escape(title)}</text>',
    ]
    foot = TOP + LINE * len(lines)
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{at(tick)}" x2="{at(tick)}" y1="{TOP - 6}" y2="{foot}"/>')
        parts.append(f'<text class="small" x="{at(tick)}" y="{foot + 18}" text-anchor="middle">{tick:.1f}</text>')
    even = [line["score"] for line in lines if line["name"] == "uniform"]
    parts += [f'<line class="even" x1="{at(x)}" x2="{at(x)}" y1="{TOP - 6}" y2="{foot}"/>' for x in even]
    for number, line in enumerate(lines):
        y = TOP + LINE * number + LINE // 2
        kind = "reference" if line["name"] in REFERENCES else "method"
        low, high = (line["score"] if line[end] is None else line[end] for end in ("low", "high"))
        parts.append(f'<text x="16" y="{y + 4}">{escape(line["name"])}</text>')
        parts.append(f'<line class="{kind}" stroke-width="2" x1="{at(low)}" x2="{at(high)}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="{kind}" cx="{at(line["score"])}" cy="{y}" r="5"/>')
        rows = f", {line['rows']:,.0f} rows" if line["rows"] else ""
        parts.append(f'<text x="{WIDTH - RIGHT + 14}" y="{y + 4}">{line["score"]:.3f}{rows}</text>')
    note = f"{found['seeds']} seeds, {found['confidence']:.0%} intervals; dashed: rows drawn at random"
    parts.append(f'<text class="small" x="16" y="{height - 8}">{escape(note)}</text></svg>')
    return "\n".join(parts) + "\n"


def ticks_to(highest: float) -> Sequence[float]:
    """Tenths from 0 to the first one that is not below `highest`."""
    last = next(n for n in range(1, 11) if n / 10 >= highest or n == 10)
    return [n / 10 for n in range(last + 1)]


def table(found: Mapping[str, Any]) -> str:
    """The same in Markdown, with what it took to select and to train."""
    level = f"{found['confidence']:.0%}"
    heads = ["trained on", "rows", f"accuracy ({level} interval)", f"against uniform ({level})", "select", "train"]
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for line in found["methods"]:
        rows.append(
            [
                line["name"],
                f"{line['rows']:,.0f}" if line["rows"] else "0",
                _within("{:.3f}", line["score"], line["low"], line["high"]),
                _within("{:+.3f}", line["difference"], line["difference_low"], line["difference_high"]),
                _seconds(line["selection_seconds"]),
                _seconds(line["training_seconds"]),
            ]
        )
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _within(form: str, value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "–"
    bounds = "" if low is None or high is None else f" ({form.format(low)} to {form.format(high)})"
    return form.format(value) + bounds


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} s"


def filled(readme: str, found: Mapping[str, Any]) -> str:
    """README with this table between its two marks."""
    assert MARKS.search(readme), "README.md has no marks <!-- demo --> and <!-- /demo -->"
    return MARKS.sub(lambda marks: marks[1] + table(found) + marks[2], readme)


def main(run: str) -> None:
    """Fill demo.json, demo.svg and README from a finished demo."""
    found = kept(json.loads((Path(run) / "compare.json").read_text()))
    lines = ",\n".join("  " + json.dumps(line) for line in found["methods"])
    head = json.dumps({key: found[key] for key in found if key != "methods"}, indent=1).removesuffix("\n}")
    (HERE / "demo.json").write_text(f'{head},\n "methods": [\n{lines}\n ]\n}}\n')
    (HERE / "demo.svg").write_text(figure(found))
    README.write_text(filled(README.read_text(), found))


if __name__ == "__main__":
    main(sys.argv[1])
