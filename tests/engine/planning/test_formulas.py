"""The formulas of plans as laws: more work never takes less time, more workers never more, and what is solved for fits."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from raysift.errors import ConfigError
from raysift.planning.cards import CARDS, REACHED, read_gpus
from raysift.planning.drift import Course
from raysift.planning.solving import solve
from raysift.planning.speed import SIDE_BY_SIDE, Speed, answer_length, answering_on, evenly_spaced, speed_on, thirds
from raysift.planning.work import SPREAD, Work, bounds_of, gpu_seconds, seconds_of

PACE = Speed((50.0, 200.0, 800.0), (1e-3, 5e-4, 8e-4))


def work(**changes):
    return replace(Work("gradients", 1000, 1000, start_s=10.0, worker_s=400.0, workers=4, blocks=40), **changes)


@pytest.mark.parametrize("at_once", [True, False])
def test_twice_the_rows_take_longer_and_at_most_twice_as_long(at_once):
    for worker_s in (1.0, 9.0, 10.0, 11.0, 100.0, 4000.0):
        one, two = (seconds_of(work(worker_s=s, at_once=at_once)) for s in (worker_s, 2 * worker_s))
        assert one < two <= 2 * one


@pytest.mark.parametrize("at_once", [True, False])
def test_more_workers_never_take_longer_nor_less_than_their_share(at_once):
    times = [seconds_of(work(workers=n, at_once=at_once)) for n in (1, 2, 4, 8, 40, 80)]
    assert all(a >= b for a, b in pairwise(times))
    assert times[-1] == times[-2]  # there are 40 blocks
    assert all(t >= 10 + 400 / n for t, n in zip(times, (1, 2, 4, 8, 40, 40), strict=True))


def test_a_pool_that_grows_has_no_jump_where_the_second_worker_arrives():
    just_before, just_after = (seconds_of(work(worker_s=s)) for s in (9.999, 10.001))
    assert just_after - just_before == pytest.approx(0.001, abs=0.001)


def test_bounds_enclose_the_likely_time_and_are_wider_where_less_is_known():
    widths = {}
    for basis in SPREAD:
        low, likely, high = bounds_of(work(basis=basis))
        assert 0 < low < likely < high
        widths[basis] = high / low
    assert widths["measured"] < min(widths["guessed"], widths["arithmetic"])


def test_held_gpus_cost_their_time_whether_they_are_busy_or_not():
    assert gpu_seconds(work(gpus=8.0)) == 8 * seconds_of(work())
    assert gpu_seconds(work()) == 0


def test_seconds_of_rows_are_those_measured_and_lie_between_them_elsewhere():
    for length, pace in zip(PACE.lengths, PACE.per_token, strict=True):
        assert PACE.seconds([length]) == pytest.approx(length * pace)
    assert PACE.seconds([10]) == pytest.approx(10 * 1e-3) and PACE.seconds([5000]) == pytest.approx(5000 * 8e-4)
    assert 5e-4 < PACE.seconds([100]) / 100 < 1e-3
    assert PACE.seconds([]) == 0
    lengths = np.arange(1, 3000)
    assert PACE.seconds(lengths) == pytest.approx(np.mean([PACE.seconds([n]) for n in lengths]))


def test_groups_by_length_part_the_rows_and_a_group_is_measured_at_both_ends():
    lengths = [7, 3, 9, 1, 5, 2, 8]
    parts = thirds(lengths)
    assert sorted(np.concatenate(parts).tolist()) == list(range(7))
    ordered = [[lengths[i] for i in part] for part in parts]
    assert [max(a) <= min(b) for a, b in pairwise(ordered)] == [True, True]

    for count in (1, 2, 7, 100, 200):
        chosen = evenly_spaced(np.arange(100), count)
        assert chosen[-1] == 99 and len(chosen) == min(count, 100) and len(set(chosen.tolist())) == len(chosen)


def test_answers_are_as_long_as_drawing_their_ends_says():
    rng = np.random.default_rng(0)
    drawn = np.minimum(rng.geometric(0.05, 200_000), 60).mean()
    assert answer_length(0.05, 60) == pytest.approx(drawn, rel=0.01)
    assert answer_length(0.0, 60) == 60 and answer_length(1.0, 60) == 1


@pytest.mark.parametrize("card", CARDS.values(), ids=lambda card: card.name)
def test_cards_are_plausible_and_a_pass_takes_its_operations(card):
    assert 16 * 2**30 <= card.memory <= 300 * 2**30
    assert 50e12 < card.flops < 5e15 and 0.2e12 < card.bandwidth < 10e12
    kinds = [speed_on(card, kind, 8e9).per_token[0] for kind in ("forward", "gradients", "train whole")]
    assert kinds[0] < min(kinds[1:])
    assert kinds[0] == pytest.approx(2 * 8e9 / (card.flops * REACHED["forward"]))
    answering = answering_on(card, 8e9, 2)
    assert answering.step_s * SIDE_BY_SIDE >= 16e9 / card.bandwidth  # all weights are read for each token


def test_a_faster_card_is_never_slower():
    order = ["A100", "H100", "B200"]
    times = [speed_on(CARDS[name.lower()], "train", 8e9).per_token[0] for name in order]
    assert times == sorted(times, reverse=True)


def test_a_described_cluster_is_a_number_and_a_known_card():
    assert read_gpus("8xH100") == (8, CARDS["h100"])
    assert read_gpus("a100") == (1, CARDS["a100"])
    for wrong in ("8xH10", "0xH100", "", "xH100", "8x"):
        with pytest.raises(ConfigError, match="Known cards"):
            read_gpus(wrong)


def test_solving_returns_levers_that_fit_and_none_that_is_not_needed():
    savings = {"a": 1.0, "b": 5.0, "c": 2.0, "d": 50.0}

    def cost(taken):
        return 100.0 - sum(savings[one] for one in taken)

    for most in np.arange(42.0, 101.0, 0.5):
        found = solve(list(savings), cost, most)
        assert found is not None and cost(found) <= most
        assert all(cost([one for one in found if one != left]) > most for left in found)
    assert solve(list(savings), cost, 41.0) is None
    assert solve(list(savings), cost, 100.0) == []


def test_a_run_on_its_plan_does_not_drift_and_a_slow_one_is_seen_before_it_ends():
    planned = {"warmup": 100.0, "gradients": 800.0, "choose": 1.0}
    course = Course(planned)
    assert course.drift() is None and course.over() == 1
    course.spent["warmup"] = 100.0
    assert course.drift() == 1 and course.ahead() == 801 and course.over() == 1
    assert course.over("gradients", 1600.0) == pytest.approx((100 + 1600 + 1700 / 900) / 901)
    slow = Course(planned, {"warmup": 150.0})
    assert slow.over() == pytest.approx(1.5) and slow.ahead() == pytest.approx(1.5 * 801)


def test_stages_that_were_reused_count_neither_as_planned_nor_as_spent():
    course = Course({"ingest": 50.0, "gradients": 100.0}, skipped={"ingest"})
    assert course.ahead() == 100 and course.over("gradients", 150.0) == 1.5
    assert math.isfinite(Course({}).over())
