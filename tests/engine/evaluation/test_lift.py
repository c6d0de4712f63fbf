"""Lift has an interval, so that chance does not look like a finding."""

from collections import Counter

import pytest

from raysift.evaluation.intervals import wilson_interval
from raysift.evaluation.lift import BARS, OTHERS, lifts, sparkline


def test_lift_is_the_share_of_the_selection_over_that_of_the_pool_with_wilson_s_interval():
    a, b = lifts(Counter(a=300, b=100), Counter(a=10, b=10))
    assert (a.lift, b.lift) == (pytest.approx(10 / 20 / 0.75), pytest.approx(10 / 20 / 0.25))
    _, low, high = wilson_interval(10, 20)
    assert (b.low, b.high) == (pytest.approx(low / 0.25), pytest.approx(high / 0.25))
    assert not b.is_chance


def test_a_high_lift_of_few_rows_is_told_from_a_finding():
    one, _ = lifts(Counter(a=166, b=407), Counter(a=13, b=15))
    assert one.lift == pytest.approx(1.603, abs=1e-3) and one.low < 1.02
    fewer, _ = lifts(Counter(a=166, b=407), Counter(a=11, b=17))
    assert fewer.lift > 1.3 and fewer.is_chance


def test_groups_beyond_the_largest_are_put_together_and_counts_add_up():
    pool, selected = Counter({f"g{i}": i for i in range(1, 31)}), Counter({f"g{i}": i // 3 for i in range(1, 31)})
    lines = lifts(pool, selected, most=5)
    assert [line.group for line in lines] == ["g26", "g27", "g28", "g29", "g30", OTHERS]
    assert sum(line.pool for line in lines) == pool.total()
    assert sum(line.selected for line in lines) == selected.total()


def test_where_all_rows_were_selected_nothing_is_left_to_estimate():
    for line in lifts(Counter(a=3, b=2), Counter(a=3, b=2)):
        assert (line.lift, line.low, line.high) == (1, 1, 1)


def test_a_sparkline_goes_from_the_lowest_to_the_highest_value_whatever_their_number():
    assert sparkline([1, 2]) == BARS[0] + BARS[-1] and sparkline([3, 3]) == BARS[0] * 2 and sparkline([]) == ""
    falling = sparkline([1000 - i for i in range(1000)], 40)
    assert len(falling) == 40 and list(falling) == sorted(falling, reverse=True)
