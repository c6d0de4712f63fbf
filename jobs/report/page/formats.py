"""How a page writes a value of each column type; `js/base.js` does the same for what the reader moves."""

from __future__ import annotations

import math
import re
from typing import Any

from raysift.report.blocks import COLUMN_TYPES

NOTHING = "–"
SPACE = "\u00a0"
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def visible(text: str) -> str:
    """Text with its control characters shown by their pictures, as a browser would drop them; half surrogates cannot be written."""
    return _UNPRINTABLE.sub(_picture, text.replace("\r\n", "\n"))


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"


def shown(value: Any, kind: str = "text") -> str:
    """A value as people write it: 1,234 or 12 % or 3 min 20 s."""
    if kind not in COLUMN_TYPES:
        raise ValueError(f"column type {kind!r}; expected one of {', '.join(COLUMN_TYPES)}")
    if value is None or value == "":
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    if isinstance(value, str) or kind == "id":
        return str(value)
    return {"percent": percent, "seconds": seconds, "bytes": size, "count": count}.get(kind, number)(value)


def number(value: float) -> str:
    """Whole numbers in full, others with four digits that count."""
    if isinstance(value, int) or (value == math.floor(value) and abs(value) < 1e15):
        return _signed(f"{int(value):,}")
    if abs(value) >= 1000:
        return _signed(f"{value:,.0f}")
    return _signed(f"{value:.4g}" if abs(value) >= 1e-4 else f"{value:.2e}")


def count(value: float) -> str:
    return _signed(f"{value:,.0f}") if value == math.floor(value) else number(value)


def percent(share: float) -> str:
    hundredths = 100 * share
    places = 1 if abs(hundredths) >= 1 else 2 if abs(hundredths) >= 0.1 else 3
    return _signed(_short(f"{hundredths:,.{places}f}")) + f"{SPACE}%"


def seconds(value: float) -> str:
    if 0 < value < 0.1:
        return _short(f"{1000 * value:.{1 if value < 0.001 else 0}f}") + f"{SPACE}ms"
    if value < 60:
        return _short(f"{value:.1f}" if value < 10 else f"{value:.0f}") + f"{SPACE}s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}{SPACE}min" + (f" {rest}{SPACE}s" if rest else "")
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}{SPACE}h" + (f" {minutes}{SPACE}min" if minutes else "")


def size(value: float) -> str:
    """Bytes in powers of 1,000, as disks and networks are sold."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 1000 or unit == "TB":
            break
        value /= 1000
    return _short(f"{value:,.1f}" if unit != "B" and abs(value) < 100 else f"{value:,.0f}") + f"{SPACE}{unit}"


def _short(digits: str) -> str:
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def _signed(digits: str) -> str:
    return digits.replace("-", "−", 1) if digits.startswith("-") else digits
