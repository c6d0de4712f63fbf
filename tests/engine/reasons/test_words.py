"""Numbers in words: shares that are never rounded to nothing or all, and sides of a bar that can be told apart."""

from raysift.reasons import words


def test_shares_are_not_rounded_to_nothing_or_to_all():
    assert [words.percent(share) for share in (0, 0.0001, 0.504, 0.9999, 1)] == [
        "0 %",
        "0.01 %",
        "50 %",
        "99.99 %",
        "100 %",
    ]


def test_a_row_stands_first_last_or_between():
    assert words.standing(0, 9, 10) == "higher than that of 100 % of the other 9 rows, the first of all"
    assert words.standing(3, 6, 10) == "higher than that of 67 % of the other 9 rows"
    assert words.standing(9, 0, 10) == "as low as the lowest of 10 rows"
    assert words.standing(0, 0, 1) == "the only one"


def test_a_value_and_a_bar_that_differ_are_told_with_digits_that_show_it():
    told = words.met_bar("quality", 0.050001, 0.05, "above")
    assert told == "Its quality is 0.050001, above the bar of 0.05: it passed."
    assert "exactly the bar of 0.05, which is not above it: it did not pass" in words.met_bar(
        "quality", 0.05, 0.05, "above"
    )
    assert "every row" in words.met_bar("quality", 1, None, "above")


def test_a_low_score_of_the_models_own_answer_means_that_the_row_is_needed():
    assert "below the bar of 0.4: the model does not know this yet" in words.necessity(0.2, 0.4)
    assert "not below the bar of 0.4: the model knows this already" in words.necessity(0.4, 0.4)


def test_distances_are_told_against_the_radius_at_the_end():
    assert words.picked_by_distance(0.4, 0.38).startswith(
        "Its distance to the nearest row chosen before it was 0.4; at the end"
    )
    assert "first row chosen" in words.picked_by_distance(float("inf"), None)
    assert words.covered(0.1, 0.38) == (
        "It is covered: the nearest chosen row is at a distance of 0.1, and no row was left farther than 0.38 from a chosen one."
    )
