"""How methods stand: lines, claims, overlap, ranks and spread, from what was measured by seed."""

import numpy as np
import pytest

from raysift.errors import ConfigError
from raysift.evaluation.comparison import overlap, paired_difference, rank_correlation
from raysift.evaluation.standings import Measured, Ranked, check_claim, claim_holds, difference_of, standings

POOL = 1000


def method(rng, gain, seeds=3, trainings=1, questions=300):
    own = Measured()
    for seed in range(seeds):
        own.rows[seed] = rng.choice(POOL, 50, replace=False)
        hard = np.random.default_rng(99).random(questions)  # the same questions for every method
        own.scores[seed] = [(hard < 0.4 + gain + rng.normal(0, 0.01)).astype(float).tolist() for _ in range(trainings)]
        values = rng.random(POOL)
        own.ranked[seed] = Ranked(np.arange(POOL), values)
        own.tokens.append(500)
        own.steps.append(12)
        own.selection_seconds.append(2.0)
        own.training_seconds.append(3.0)
    return own


@pytest.fixture
def measured():
    rng = np.random.default_rng(0)
    base = Measured(scores={0: [[0.0] * 150 + [1.0] * 150]})
    return {"base model": base} | {n: method(rng, g) for n, g in (("uniform", 0), ("longest", -0.2), ("less", 0.2))}


def test_a_line_says_what_the_parts_say(measured):
    found = standings(measured, POOL, gain=0.01)
    lines = {line["name"]: line for line in found["methods"]}
    assert list(lines) == list(measured)
    less, uniform = measured["less"], measured["uniform"]
    paired = paired_difference(less.by_seed(), uniform.by_seed())
    line = lines["less"]
    assert (line["difference"], line["difference_low"], line["difference_high"]) == paired.interval
    assert line["difference"] == pytest.approx(line["score"] - lines["uniform"]["score"])
    assert (line["rows"], line["tokens"], line["steps"], line["seeds"]) == (50, 500, 12, 3)
    shared = [overlap(less.rows[seed], uniform.rows[seed], POOL) for seed in range(3)]
    assert line["overlap_uniform"] == pytest.approx(np.mean([one.jaccard for one in shared]))
    assert line["chance_uniform"] == pytest.approx(50 * 50 / POOL / (100 - 50 * 50 / POOL))
    ranks = [rank_correlation(less.ranked[s].values, measured["longest"].ranked[s].values) for s in range(3)]
    assert line["length_rank"] == pytest.approx(np.mean(ranks))
    assert "better than uniform" in line["verdict"] and "worse than uniform" in lines["longest"]["verdict"]
    assert lines["base model"]["rows"] is None and lines["uniform"]["difference"] is None


def test_matrices_are_symmetric_and_leave_themselves_out(measured):
    found = standings(measured, POOL, gain=0.01)
    for kind, one, other in (("overlap", "less", "longest"), ("ranks", "less", "uniform")):
        names, values = found[kind]["names"], found[kind]["values"]
        assert names == ["uniform", "longest", "less"]
        i, j = names.index(one), names.index(other)
        assert values[i][j] == values[j][i] is not None
        assert all(values[k][k] is None for k in range(3))


def test_the_untrained_model_is_compared_in_every_seed(measured):
    assert difference_of(measured, "base model", "uniform", 0.01).seeds == 3
    forward = difference_of(measured, "base model", "less", 0.01).interval.mean
    assert forward == pytest.approx(-difference_of(measured, "less", "base model", 0.01).interval.mean)


def test_ranks_compare_only_rows_that_both_have_scored():
    rng = np.random.default_rng(1)
    one, other = method(rng, 0, seeds=1), method(rng, 0, seeds=1)
    values = rng.random(100)
    one.ranked[0] = Ranked(np.arange(0, 200, 2), values)
    other.ranked[0] = Ranked(np.arange(100, 200), np.repeat(values[50:], 2))
    found = standings({"uniform": one, "less": other}, POOL, gain=0.01)
    assert found["ranks"]["values"][0][1] == pytest.approx(1.0)


def test_spread_is_split_where_both_seeds_were_repeated():
    rng = np.random.default_rng(2)
    twice = method(rng, 0, seeds=4, trainings=3)
    found = standings({"uniform": twice, "less": method(rng, 0.1, seeds=4)}, POOL, gain=0.01)
    assert found["trainings"] == 3
    assert found["methods"][0]["spread"].keys() == {"selection", "training"}
    assert found["methods"][1]["spread"] is None


def test_few_seeds_are_indicative(measured):
    assert not standings(measured, POOL, gain=0.01)["indicative"]
    few = {name: method(np.random.default_rng(3), 0, seeds=2) for name in ("uniform", "less")}
    found = standings(few, POOL, gain=0.01)
    assert found["indicative"] and "indicative" in found["methods"][1]["verdict"]


@pytest.mark.parametrize(
    ("claim", "holds"),
    [
        ("less>uniform", True),
        ("uniform < less", True),
        ("uniform>less", False),
        ("uniform>=less", False),
        ("less >= longest", True),
        ("uniform>uniform", False),
        ("uniform>=uniform", True),
    ],
)
def test_claims(measured, claim, holds):
    assert claim_holds(check_claim(claim, list(measured)), measured, 0.01)[0] is holds


@pytest.mark.parametrize("claim", ["less", "less=uniform", "rose>uniform", "less>", ">uniform", "a>b>c"])
def test_claims_that_say_nothing_are_refused(measured, claim):
    with pytest.raises(ConfigError, match="--assert"):
        check_claim(claim, list(measured))
