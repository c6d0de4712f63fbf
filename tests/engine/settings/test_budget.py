"""Budgets: what can be written, what it means, what is refused."""

import pytest

from raysift.errors import ConfigError
from raysift.settings.budget import Budget, parse_budget


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("5%", Budget(share=0.05)),
        ("100 %", Budget(share=1.0)),
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


def test_more_rows_than_the_pool_has_is_an_error_that_says_so():
    with pytest.raises(ConfigError, match=r"11 rows asked for, the pool has 10"):
        parse_budget("11").rows_of(10)
