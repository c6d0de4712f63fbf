"""How much may be selected: a number of rows, a share of the pool, or a number of tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from raysift.errors import ConfigError

_FORM = re.compile(r"^\s*(?P<number>\d+(?:_\d{3})*(?:\.\d+)?)\s*(?P<unit>%|k|m|tok|ktok|mtok|gtok)?\s*$", re.IGNORECASE)
_ROWS = {"": 1, "k": 1_000, "m": 1_000_000}
_TOKENS = {"tok": 1, "ktok": 1_000, "mtok": 1_000_000, "gtok": 1_000_000_000}


@dataclass(frozen=True)
class Budget:
    """Exactly one of rows, share of the pool, and tokens is set. Shares are exact: 8% of 10^8 rows are 8,000,000."""

    rows: int | None = None
    share: Fraction | None = None
    tokens: int | None = None

    @property
    def counts_tokens(self) -> bool:
        return self.tokens is not None

    def rows_of(self, pool_rows: int) -> int:
        """Rows to take from a pool; a share is rounded down, as LESS does, but never to nothing."""
        if self.share is not None:
            return max(1, int(self.share * pool_rows))
        if self.rows is None:
            raise ConfigError("budget: a budget in tokens has no number of rows.")
        if self.rows > pool_rows:
            raise ConfigError(
                f"budget: {self.rows} rows asked for, the pool has {pool_rows} after ingest. Lower --budget, or give "
                "a share such as 100%."
            )
        return self.rows

    def require_tokens(self, pool_tokens: int) -> None:
        """Refuses more tokens than the pool has, just as `rows_of` refuses more rows."""
        if self.tokens is not None and self.tokens > pool_tokens:
            raise ConfigError(
                f"budget: {self.tokens} tokens asked for, the pool has {pool_tokens} after ingest. Lower --budget, or give a "
                "share such as 100%."
            )


def parse_budget(text: str) -> Budget:
    """Read `5%`, `2000`, `50k` (rows) or `1.5Mtok` (tokens)."""
    match = _FORM.match(str(text))
    problem = f"budget: '{text}' is none of `5%`, `2000`, `50k` (rows), `1.5Mtok` (tokens)."
    if not match:
        raise ConfigError(problem)
    number, unit = Fraction(match["number"].replace("_", "")), (match["unit"] or "").lower()
    if unit == "%":
        if not 0 < number <= 100:
            raise ConfigError(f"budget: {text} must lie above 0% and at most at 100%.")
        return Budget(share=number / 100)
    scaled = number * (_ROWS | _TOKENS)[unit]
    if scaled < 1 or scaled != int(scaled):
        raise ConfigError(f"{problem} It must come to a whole number of at least 1, found {float(scaled):g}.")
    return Budget(tokens=int(scaled)) if unit in _TOKENS else Budget(rows=int(scaled))
