"""Settings that would have changed what became of a row: they do, by the code that applies them."""

import numpy as np
import pytest

from raysift.reasons.changes import Bar, bar_passing, bar_stopping, budget_leaving, budget_taking, short
from raysift.scoring.settings import Threshold
from raysift.scoring.thresholds import cut_above, cut_below
from raysift.settings.budget import parse_budget

RNG = np.random.default_rng(0)
SCORES = [RNG.standard_normal(37), RNG.integers(0, 4, 60).astype(float), np.array([2.5]), 1e-7 * RNG.random(50) - 3]


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("side", ["above", "below"])
@pytest.mark.parametrize("by_quantile", [False, True])
def test_a_moved_bar_lets_the_row_pass_or_stops_it(scores, side, by_quantile):
    cut = {"above": cut_above, "below": cut_below}[side]
    for score in scores.tolist():
        below, not_above = int((scores < score).sum()), int((scores <= score).sum())
        bar = Bar("mods.alpha", side, by_quantile, score, below, not_above, len(scores))
        for setting, passes in ((bar_passing(bar), True), (bar_stopping(bar), False)):
            name, value = setting.split("=")
            threshold = Threshold(**{name.removeprefix("mods.alpha."): float(value)})
            assert cut(scores, threshold).passes([score]).tolist() == [passes], setting


def test_bars_are_as_short_as_can_be():
    assert short(0.03128, up=False, strict=True) == "0.0312"
    assert short(-2.319, up=True, strict=True) == "-2.31"
    assert short(0.25, up=False, strict=True) == "0.249"
    assert short(0.25, up=False, strict=False) == "0.25"
    assert short(1e-9, up=False, strict=True) == "9.9e-10"


@pytest.mark.parametrize("pool", [1, 7, 82, 1000, 163_296])
@pytest.mark.parametrize("given", ["5%", "3"])
def test_a_budget_takes_the_row_or_leaves_it_out_and_is_near_its_place(pool, given):
    for place in {1, 2, 3, pool // 3, pool - 1, pool} & set(range(1, pool + 1)):
        taking, leaving = budget_taking(place, pool, given), budget_leaving(place, pool, given)
        assert ("%" in taking) == ("%" in given)
        assert place <= parse_budget(taking).rows_of(pool) <= 1.1 * place + 1
        if place == 1:
            assert leaving is None
        else:
            assert 0.89 * (place - 1) - 1 <= parse_budget(leaving).rows_of(pool) < place
    assert budget_taking(pool + 1, pool, given) is None


def test_a_share_has_two_digits_where_two_are_enough():
    assert budget_taking(1_204, 16_343, "5%") == "7.4%"
    assert budget_taking(13, 82, "12") == "13"
