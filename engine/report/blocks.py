"""What a report is made of: sections of blocks, which a page draws without knowing any method."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

FORMAT = 1
TABLE_ROWS = 200
LINE_POINTS = 500
MAP_POINTS = 2000
MAP_BINS = 64
ROW_ITEMS = 600
TEXT_CHARACTERS = 2000

COLUMN_TYPES = ("text", "number", "percent", "id", "seconds", "bytes", "count")
"""How a page shows a value; a percent is a share between 0 and 1."""

Bounds = tuple[float | None, ...] | None


@dataclass(frozen=True, kw_only=True)
class Block:
    """What every block has."""

    kind: ClassVar[str]
    title: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Text(Block):
    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True, kw_only=True)
class Column:
    name: str
    type: str = "text"


@dataclass(frozen=True, kw_only=True)
class Table(Block):
    kind: ClassVar[str] = "table"
    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One value a group; `low` and `high` are the ends of its interval where it has one."""

    name: str
    values: tuple[float | None, ...]
    low: Bounds = None
    high: Bounds = None


@dataclass(frozen=True, kw_only=True)
class Bars(Block):
    """Paired bars; `lift` is one factor a group, selection over pool, where the bars are these two."""

    kind: ClassVar[str] = "bars"
    label: str
    type: str = "number"
    groups: tuple[str, ...]
    series: tuple[Bar, ...]
    lift: tuple[float | None, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Counts:
    name: str
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Mark:
    value: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Histogram(Block):
    """Counts between `edges`, one fewer than these."""

    kind: ClassVar[str] = "histogram"
    label: str
    edges: tuple[float, ...]
    series: tuple[Counts, ...]
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve; `dots` draws its points alone."""

    name: str
    points: tuple[tuple[float, float | None], ...]
    low: Bounds = None
    high: Bounds = None
    dots: bool = False


@dataclass(frozen=True, kw_only=True)
class Lines(Block):
    """Curves over one axis; `marks` are values of x."""

    kind: ClassVar[str] = "lines"
    x: str
    y: str
    series: tuple[Line, ...]
    marks: tuple[Mark, ...] = ()
    log_x: bool = False


@dataclass(frozen=True, kw_only=True)
class Heatmap(Block):
    """`values` holds one line of numbers a row."""

    kind: ClassVar[str] = "heatmap"
    label: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    diverging: bool = False


@dataclass(frozen=True, kw_only=True)
class Fact:
    name: str
    value: Any
    type: str = "text"


@dataclass(frozen=True, kw_only=True)
class Facts(Block):
    kind: ClassVar[str] = "facts"
    items: tuple[Fact, ...]


@dataclass(frozen=True, kw_only=True)
class Alert:
    """A thing to look at; `chip` names the rows that show it, where the report holds some."""

    key: str
    level: str
    text: str
    count: float | None = None
    threshold: float | None = None
    chip: str | None = None


@dataclass(frozen=True, kw_only=True)
class Alerts(Block):
    kind: ClassVar[str] = "alerts"
    items: tuple[Alert, ...]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """`rows_in` = `kept` + all `rejected` + `failed`; `chips` names the rows that show a reason."""

    stage: str
    does: str
    rows_in: int
    kept: int
    rejected: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    chips: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Funnel(Block):
    kind: ClassVar[str] = "funnel"
    stages: tuple[Stage, ...]


@dataclass(frozen=True, kw_only=True)
class WhatIf(Block):
    """The rows of each group that each share of the pool would take, best first: `counts[i][j]` for `shares[i]` and `groups[j]`."""

    kind: ClassVar[str] = "what_if"
    shares: tuple[float, ...]
    groups: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    pool: tuple[int, ...]
    lengths: tuple[float | None, ...]
    budget: float


@dataclass(frozen=True, kw_only=True)
class Point:
    """`rank` counts from 0 for the first taken; None is a row that was not chosen."""

    x: float
    y: float
    id: str
    rank: int | None = None


@dataclass(frozen=True, kw_only=True)
class Map(Block):
    """`density[i][j]` counts the pool's rows between `y[i]`, `y[i + 1]` and `x[j]`, `x[j + 1]`."""

    kind: ClassVar[str] = "map"
    x: tuple[float, ...]
    y: tuple[float, ...]
    density: tuple[tuple[int, ...], ...]
    points: tuple[Point, ...]
    explained: tuple[float, float]
    how: str


@dataclass(frozen=True, kw_only=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Near:
    id: str
    distance: float


@dataclass(frozen=True, kw_only=True)
class Other:
    title: str
    text: str | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the pool and what became of it; a row that could not be read has `raw` in place of messages."""

    id: str
    chips: tuple[str, ...]
    verdict: str
    source: str | None = None
    file: str | None = None
    position: int | None = None
    own_id: str | None = None
    rank: int | None = None
    score: float | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    messages: tuple[Message, ...] | None = None
    raw: str | None = None
    nearest: Near | None = None
    other: tuple[Other, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Rows(Block):
    """`chips` lists the names of all chips in the order to show them, with what each means."""

    kind: ClassVar[str] = "rows"
    items: tuple[Row, ...]
    chips: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Quote:
    """A text with what is known of it; without texts, `text` is None."""

    title: str
    text: str | None
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Texts(Block):
    kind: ClassVar[str] = "texts"
    items: tuple[Quote, ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """One heading of the report; `lead` is one or two plain sentences."""

    key: str
    title: str
    blocks: tuple[Block, ...]
    lead: str = ""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A whole report; `kind` is run, runs or comparison."""

    title: str
    kind: str
    created_by: str
    with_text: bool
    sections: tuple[Section, ...]
    format: int = FORMAT


def as_json(value: Any) -> Any:
    """Dicts, lists, strings and finite numbers alone: what is not finite becomes null, whole floats of counts stay as they are."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        told = {"kind": value.kind} if isinstance(value, Block) else {}
        return told | {each.name: as_json(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(name): as_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if value is None or isinstance(value, (str, bool)):
        return value
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int) else str(value)


def cut(text: str, characters: int = TEXT_CHARACTERS) -> str:
    """The beginning of a long text, and how much of it is left out."""
    return text if len(text) <= characters else f"{text[:characters]}… {len(text) - characters:,} more characters"
