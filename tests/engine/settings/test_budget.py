"""Budgets: what can be written, what it means, what is refused."""

from fractions import Fraction

import pytest

from raysift.errors import ConfigError
from raysift.settings.budget import Budget, parse_budget


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("5%", Budget(share=Fraction(5, 100))),
        ("100 %", Budget(share=Fraction(1))),
        ("2000", Budget(rows=2000)),
        ("2_000", Budget(rows=2000)),
        ("50k", Budget(rows=50_000)),
        ("1.5Mtok", Budget(tokens=1_500_000)),
        ("800tok", Budget(tokens=800)),
    ],
)
def test_forms(text, budget):
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["", "5 rows", "-3", "0", "0%", "101%", "1.5", "half", "5%%", "0.0001ktok"])
def test_anything_else_is_refused_with_what_is_allowed(text):
    with pytest.raises(ConfigError, match="budget"):
        parse_budget(text)


def test_a_share_is_rounded_down_but_never_to_nothing():
    assert parse_budget("5%").rows_of(59) == 2
    assert parse_budget("5%").rows_of(10) == 1
    assert parse_budget("7%").rows_of(100) == 7  # 0.07 * 100 is 7.000000000000001


@pytest.mark.parametrize("rows", [10**8, 10**9, 10**12, 10**15 + 7])
def test_a_share_of_a_large_pool_is_exact(rows):
    for per_mille in range(1, 1001):
        share = f"{per_mille // 10}.{per_mille % 10}%"
        assert parse_budget(share).rows_of(rows) == per_mille * rows // 1000, share


def test_more_rows_than_the_pool_has_is_an_error_that_says_so():
    with pytest.raises(ConfigError, match=r"11 rows asked for, the pool has 10"):
        parse_budget("11").rows_of(10)


def test_more_tokens_than_the_pool_has_are_refused_as_more_rows_are():
    parse_budget("300tok").require_tokens(300)
    parse_budget("5%").require_tokens(300)
    with pytest.raises(ConfigError, match="301 tokens asked for, the pool has 300"):
        parse_budget("301tok").require_tokens(300)
    with pytest.raises(ConfigError, match="301 rows asked for, the pool has 300"):
        parse_budget("301").rows_of(300)
