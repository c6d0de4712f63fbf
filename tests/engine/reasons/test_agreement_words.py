"""What is told of a target's agreement: what follows, what would help, and nothing that is not known."""

from raysift.reasons.agreement import tell_agreement, tell_refusal

PART = {"members": 22, "halves": 0.87, "low": 0.8, "high": 0.94, "full": 0.93, "mean_cosine": 0.3}
PART |= {"needed": 10, "chance": 0.001, "level": "clear"}
NOISE = {"halves": 0.2, "low": -0.05, "high": 0.45, "full": 0.33, "mean_cosine": 0.022, "needed": 138, "level": "noise"}


def found(kind="pairs", count=22, **changes):
    whole = PART | {"kind": kind, "count": count, "left_out": 0, "between": 0.5 if kind == "pairs" else None}
    whole |= {"against": {"count": 0, "first": []}, "subtasks": {"all": PART}, "checkpoints": {"epoch-1": PART}}
    return whole | changes


def test_a_clear_target_is_told_in_one_sentence():
    assert tell_agreement(found()) == "halves of these 22 pairs agree at 0.87 (0.80 to 0.94)."


def test_noise_is_told_with_what_would_help():
    assert tell_agreement(found(**NOISE)) == (
        "halves of these 22 pairs agree at only 0.20 (-0.05 to 0.45; 0.3 to 0.9 in targets that worked): what follows may be "
        "noise. Use pairs whose answers differ in more than a word or a number, more pairs (about 140 for 0.7), or "
        "`rose.preset=anchored`, which adds the chosen answers' own gradients."
    )
    assert "number, or more pairs" in tell_agreement(found(**NOISE | {"chance": None}))
    told = tell_agreement(found("examples", left_out=172, **NOISE))
    assert "examples whose answers are of one kind" in told and "less" not in told and "chosen" not in told
    assert "more examples (about 140 for 0.7; the files have 172 more, see targets.limit)" in told
    assert "more pairs, or" in tell_agreement(found(**NOISE | {"needed": None}))


def test_a_contrast_that_points_away_is_told_whatever_the_halves_say():
    told = tell_agreement(found(toward=-0.23))
    assert "does not point to what both share (cosine -0.23; 0.2 in targets that worked)" in told
    assert "`rose.preset=anchored`" in told
    assert "both share" not in tell_agreement(found(toward=0.2)) and "both share" not in tell_agreement(
        found(toward=None)
    )


def test_chance_is_told_where_it_decides():
    told = tell_agreement(found(**NOISE | {"halves": 0.64, "low": 0.1, "chance": 0.31}))
    assert "agree at 0.64 (0.10 to 0.45; 0.3 to 0.9 in targets that worked), and with sides swapped at random" in told
    assert "as much in 31 % of draws: what follows may be noise." in told


def test_few_say_that_they_are_few():
    told = tell_agreement(found(count=3, members=3, **NOISE | {"chance": 0.25, "low": -0.9, "high": 1.0}))
    assert (
        "agree at only 0.20 (-0.90 to 1.00; 0.3 to 0.9 in targets that worked); 3 pairs are too few to be sure" in told
    )
    assert "sides" not in told
    weak = tell_agreement(found(count=5, members=5, **NOISE | {"level": "weak", "halves": 0.9, "needed": 2}))
    assert weak.endswith(
        "5 pairs are too few to be sure: a part of what follows may be noise. What helps: more pairs (at least 8)."
    )


def test_of_one_member_of_repeats_and_of_single_subtasks_nothing_is_known():
    nothing = {"halves": None, "low": None, "high": None, "mean_cosine": None, "chance": None, "level": "unknown"}
    one = tell_agreement(found(count=1, members=1, **nothing))
    assert one == "one pair has no halves: nothing is known of its noise. Give at least ten."
    assert "one example has" in tell_agreement(found("examples", count=1, members=1, **nothing))
    repeats = tell_agreement(found(members=1, **nothing))
    assert repeats.startswith("these 22 pairs are one text repeated, and one has no halves: nothing is known")
    single = tell_agreement(found("examples", 9, members=9, **nothing, subtasks={str(k): PART for k in range(9)}))
    assert single.startswith("each of the 9 subtasks has one example, and one has no halves")
    two = tell_agreement(found(count=2, members=2, **nothing | {"halves": 0.5, "mean_cosine": 0.5}))
    assert two.startswith("halves of these 2 pairs agree at 0.50, but so few have no interval: nothing is known")


def test_members_that_hardly_differ_are_no_certainty():
    told = tell_agreement(found(halves=1.0, mean_cosine=0.99, level="unknown"))
    assert told.startswith(
        "halves of these 22 pairs agree at 1.00 because they hardly differ (mean cosine 0.99): nothing"
    )
    assert "22 pairs (3 different ones)" in tell_agreement(found(members=3))


def test_what_cancels_is_told_of_pairs_that_are_not_clear():
    assert "nearly the same (cosine 0.98): most of both cancels." in tell_agreement(found(**NOISE, between=0.98))
    assert "cancels" not in tell_agreement(found(between=0.98))
    assert "cancels" not in tell_agreement(found(**NOISE, between=0.3))


def test_weak_subtasks_and_members_that_pull_against_the_rest_are_named_at_most_three():
    subtasks = {f"s{k}": PART | NOISE | {"halves": k / 100} for k in range(5)} | {"sound": PART}
    told = tell_agreement(found(subtasks=subtasks))
    assert "halves of these 22 pairs, subtask by subtask, agree at 0.87" in told
    assert "Subtasks that may be noise: 's0' (0.00), 's1' (0.01), 's2' (0.02) and 2 others." in told
    first = [{"file": "a.jsonl", "record": 4}, {"file": "b.jsonl", "record": 1}, {"file": "a.jsonl", "record": 7}]
    told = tell_agreement(found(against={"count": 12, "first": first}))
    assert told.endswith("12 of them pull against the rest, most of all a.jsonl, record 4, 7; b.jsonl, record 1.")
    told = tell_agreement(found(against={"count": 1, "first": first[:1]}))
    assert told.endswith("1 of them pulls against the rest: a.jsonl, record 4.")


def test_a_refusal_says_what_was_found_what_was_asked_and_what_to_do():
    told = tell_refusal(found(**NOISE), 0.5, "rose.targets.least_agreement")
    assert told.startswith("targets: halves of these 22 pairs agree at only 0.20") and "(about 140 for 0.7)" in told
    assert "rose.targets.least_agreement asks for 0.5, so the run ends before its pass over the pool." in told
    assert told.endswith("With a lower value, or null, the same command goes on.")
