"""What a check sums up and says, on planted models: ordered or not, and by skill or by format."""

import numpy as np
import pytest

from raysift.errors import DataError
from raysift.evaluation.check import PLAIN, TAUGHT, summarise
from raysift.evaluation.check_words import bars, verdicts

BINS, EXAMPLES = 10, 12


def figures(plain, taught=None, score=0.5):
    """Of a model whose answers have this mean loss; examples differ in difficulty and length."""

    def at(loss):
        tokens = {str(n): 1 + n % 5 for n in range(EXAMPLES)}
        mean = sum(n * many for n, many in enumerate(tokens.values())) / sum(tokens.values())
        losses = {name: [loss + 0.1 * (int(name) - mean), many] for name, many in tokens.items()}
        return {"losses": losses, "scores": {str(n): score for n in range(EXAMPLES)}}

    return {PLAIN: at(plain)} | ({} if taught is None else {TAUGHT: at(taught)})


def checked(skill, foreign, seeds=4, noise=0.01, base=3.0):
    """A check of models that lose less with skill, and more the more foreign their format is, until it is taught."""
    draw = np.random.default_rng(0)
    cells = {}
    for place in range(BINS):
        for seed in range(seeds):
            loss = 2.0 - skill[place] + noise * draw.normal()
            cells[place + 1, seed] = figures(
                loss + foreign[place], loss + 0.02 * foreign[place], skill[place] + noise * draw.normal()
            )
    found = {"method": "less", "metric": "score", "ties": 0} | summarise(figures(base, base - 0.5, 0.0), cells)
    return found, verdicts(found)


FALLING = np.linspace(0.9, 0.0, BINS)
FLAT = np.zeros(BINS)
ANY = np.random.default_rng(5).permutation(FALLING)


def orders(found):
    return {state: kinds["loss"]["order"]["kind"] for state, kinds in found["states"].items()}


def test_losses_are_means_over_tokens_and_intervals_are_over_seeds():
    found, _ = checked(FALLING, FLAT, seeds=3, noise=0.0)
    assert [line["mean"] for line in found["states"][PLAIN]["loss"]["bins"]] == pytest.approx(list(2.0 - FALLING))
    assert found["states"][PLAIN]["loss"]["base"] == pytest.approx(3.0)
    noisy, _ = checked(FALLING, FLAT, seeds=3)
    line = noisy["states"][PLAIN]["loss"]["bins"][4]
    of_bin = [seed[4] for seed in noisy["states"][PLAIN]["loss"]["seeds"]]
    assert line["mean"] == pytest.approx(np.mean(of_bin)) and line["low"] < min(of_bin) < max(of_bin) < line["high"]


def test_only_examples_that_every_model_was_measured_on_count():
    cells = {(place, 0): figures(1.0 + place, 1.0) for place in range(1, 5)}
    whole = summarise(figures(2.0, 1.0), cells)
    cells[3, 0][TAUGHT]["losses"].pop("4")
    fewer = summarise(figures(2.0, 1.0), cells)
    assert (whole["measured"]["loss"], fewer["measured"]["loss"]) == (EXAMPLES, EXAMPLES - 1)
    cells[2, 0][PLAIN]["losses"].clear()
    with pytest.raises(DataError, match="no held-out example could be measured in every model"):
        summarise(figures(2.0, 1.0), cells)


def test_an_order_of_skill_is_told_in_both_states_and_by_the_metric():
    found, said = checked(FALLING, FLAT)
    assert orders(found) == {PLAIN: 1, TAUGHT: 1}
    assert said[0].startswith(
        "less: rows that score higher teach more; rank correlation of bin and loss 1.00 (0.96 to 1.00)"
    )
    assert "By score: ordered as the score is" in said[-1]
    assert not any("format of" in one for one in said)


def test_a_random_order_is_called_none():
    found, said = checked(ANY, FLAT)
    assert orders(found) == {PLAIN: 0, TAUGHT: 0}
    assert said[0].startswith("less: the order of the scores cannot be told from no order;")
    assert any("seeds agree on which bins are better" in one and "not in the order of the score" in one for one in said)
    _, noisy = checked(FLAT, FLAT, noise=0.2)
    assert any("seeds do not agree" in one for one in noisy)


def test_an_order_against_the_score_is_called_so():
    found, said = checked(FALLING[::-1], FLAT)
    assert orders(found) == {PLAIN: -1, TAUGHT: -1}
    assert "rows that score higher teach less" in said[0]


def test_an_order_that_foreign_formats_hide_comes_back_when_the_format_is_taught():
    found, said = checked(FALLING, 1.5 * FALLING)
    assert orders(found) == {PLAIN: -1, TAUGHT: 1}
    assert "as the models answer, rows that score higher teach less" in said[0]
    assert "with the format taught, rows that score higher teach more" in said[0]
    assert "answer in another format than the target" in said[1]


def test_an_order_of_format_alone_goes_when_the_format_is_taught():
    found, said = checked(0.2 * ANY, 2.0 * (1.0 - FALLING))
    assert orders(found) == {PLAIN: 1, TAUGHT: 0}
    assert "also answer more in the target's format" in said[1] and "is one of format" in said[1]


def test_a_best_bin_of_another_format_is_told_from_one_that_teaches_less():
    foreign, poor = np.eye(BINS)[0], FALLING - 0.5 * np.eye(BINS)[0]
    _, said = checked(FALLING, 0.5 * foreign)
    [words] = [one for one in said if one.startswith("Bin 1")]
    assert "higher loss than bin 2" in words and words.endswith("most of that is the format of its rows.")
    _, said = checked(poor, FLAT)
    [words] = [one for one in said if one.startswith("Bin 1")]
    assert words.endswith("cannot be told to come from the format of its rows.")
    _, said = checked(FALLING, FLAT)
    assert not any(one.startswith("Bin 1") for one in said)


def test_two_states_that_differ_without_an_order_of_format_are_not_explained_by_it():
    found, said = checked(FALLING, np.abs(np.arange(BINS) - 4.5))
    assert orders(found) == {PLAIN: 0, TAUGHT: 1} and found["format"]["order"]["kind"] == 0
    assert "nothing says that the two differ by format" in said[1]


def test_training_that_helps_nowhere_and_few_seeds_are_said():
    _, said = checked(FALLING, FLAT, base=0.1)
    assert any(one.startswith("No bin lowers the loss of the base model (0.100)") for one in said)
    _, said = checked(FALLING, FLAT, seeds=1)
    assert said[-1].startswith("1 seed is few")


def test_bars_lie_between_the_lowest_and_the_highest_value():
    assert [len(bar) for bar in bars([0.0, 0.5, 1.0, None], 11)] == [1, 6, 11, 0]
    assert [len(bar) for bar in bars([2.0, 2.0])] == [1, 1]
