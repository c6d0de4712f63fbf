"""Verdicts by hand, the published table of MoDS, and the laws: sides swap, failures are no ties, orders must agree."""

import math
from itertools import product

import pytest
from pydantic import ValidationError

from raysift.errors import ModelError
from raysift.evaluation.examples import example_key
from raysift.fingerprint import fingerprint
from raysift.pairwise.comparing import VerdictWeights, share_among, verdict_tokens, weigh_verdicts
from raysift.pairwise.rows import (
    ORDERS,
    Answer,
    Question,
    Reading,
    answer_key,
    readings_of_comparison,
    readings_of_scores,
    rows_to_compare,
    rows_to_score,
)
from raysift.pairwise.settings import ComparisonSettings, WinRateSettings
from raysift.pairwise.verdicts import LOSE, TIE, WIN, Outcome, decide, result_record, verdict_of, win_line, win_table
from raysift.records import ERROR, ID, Example, Message
from raysift.scoring.settings import QualitySettings

from ...tiny_models import byte_tokenizer  # noqa: TID252

# MoDS, Table 1 (win, tie, lose against the model trained on all of Alpaca), and 1 + (win - lose) / n of all sets.
SETS = ("vicuna", "koala", "wizardlm", "self_instruct", "lima")
SIZES = (80, 180, 218, 252, 300)
TABLE = {
    "self-guided": ([(60, 7, 13), (112, 44, 24), (127, 57, 34), (122, 82, 48), (197, 48, 55)], (618, 238, 174), 1.431),
    "mods 1000": ([(57, 10, 13), (99, 48, 33), (123, 57, 38), (136, 70, 46), (174, 70, 56)], (589, 255, 186), 1.391),
    "mods 2000": ([(67, 3, 10), (116, 40, 24), (132, 57, 29), (134, 77, 41), (195, 58, 47)], (644, 235, 151), 1.479),
}


def outcomes(win, tie, lose, failed=0):
    return [Outcome(v) for v in [WIN] * win + [TIE] * tie + [LOSE] * lose] + [Outcome(None, "why")] * failed


def question(own="a", against="b", name="q", **fields):
    example = Example(name, "task", (Message("user", "2 + 3?"),), "judge", **fields)
    return Question(example, *(each if isinstance(each, Answer) else Answer(each) for each in (own, against)))


@pytest.mark.parametrize("system", TABLE)
def test_published_table(system):
    counts, total, score = TABLE[system]
    named = [(name, o) for name, count in zip(SETS, counts, strict=True) for o in outcomes(*count)]
    lines = {line.name: line for line in win_table(reversed(named))}
    assert list(lines) == sorted(SETS)
    for name, size, (win, tie, lose) in zip(SETS, SIZES, counts, strict=True):
        line = lines[name]
        assert (line.n, line.win, line.tie, line.lose, line.failed) == (size, win, tie, lose, 0)
        assert line.score == pytest.approx(1 + (win - lose) / size)
        assert line.low < line.score < line.high
    all_in_all = win_line("total", [o for _, o in named])
    assert (all_in_all.win, all_in_all.tie, all_in_all.lose) == total
    assert round(all_in_all.score, 3) == score


def test_interval_by_hand():
    """+1, +1, 0, -1: mean 1/4, variance (2 * 9/16 + 1/16 + 25/16) / 3 = 11/12, t(3, 0.975) = 3.18245."""
    line = win_line("x", outcomes(2, 1, 1))
    assert line.score == 1.25 and line.low == 0.0
    assert line.high == pytest.approx(min(2, 1.25 + 3.18245 * math.sqrt(11 / 12 / 4)), abs=1e-4)
    wide, narrow = win_line("x", outcomes(20, 10, 10), 0.99), win_line("x", outcomes(20, 10, 10), 0.9)
    assert wide.low < narrow.low < narrow.score < narrow.high < wide.high


def test_failed_questions_are_beside_the_table_and_never_ties():
    without, beside = win_line("x", outcomes(5, 1, 2)), win_line("x", outcomes(5, 1, 2, failed=9))
    assert (beside.n, beside.tie, beside.failed) == (8, 1, 9)
    assert (beside.score, beside.low, beside.high) == (without.score, without.low, without.high)
    nothing = win_line("x", outcomes(0, 0, 0, failed=3))
    assert (nothing.n, nothing.failed, nothing.score, nothing.low) == (0, 3, None, None)
    lone = win_line("x", outcomes(1, 0, 0))
    assert (lone.score, lone.low, lone.high) == (2.0, None, None)


@pytest.mark.parametrize(
    ("own", "against", "error"),
    [
        (Answer(None, "too long"), "b", "no answer (own): too long"),
        ("a", Answer(None), "no answer (against): none was given"),
        (Answer(None, "x"), Answer(None, "y"), "no answer (own): x"),
    ],
)
def test_a_missing_answer_fails_its_question(own, against, error):
    asked = question(own, against)
    assert not asked.needs_judge and decide(asked, []) == Outcome(None, error)


def test_a_judge_without_a_verdict_fails_the_question():
    assert decide(question(), "unparsable") == Outcome(None, "no verdict: unparsable")
    broken = decide(question(), [Reading(float("nan"), 1.0)])
    assert broken.verdict is None and "not finite" in broken.error


@pytest.mark.parametrize("text", ["5", ""])
def test_equal_answers_tie_and_nobody_is_asked(text):
    asked = question(text, text)
    assert not asked.needs_judge and decide(asked, []) == Outcome(TIE, same=True)
    assert rows_to_score([asked]).num_rows == rows_to_compare([asked]).num_rows == 0


@pytest.mark.parametrize(
    ("own", "against", "margin", "verdict"),
    [(2, 1, 0, WIN), (1, 2, 0, LOSE), (1, 1, 0, TIE), (2, 1, 1, TIE), (2, 1, 0.99, WIN), (-3, -1, 2, TIE)],
)
def test_scores_within_the_margin_tie(own, against, margin, verdict):
    assert verdict_of(Reading(own, against), margin) == verdict


@pytest.mark.parametrize(
    ("own", "against", "tie", "verdict"), [(0.5, 0.2, 0.3, WIN), (0.4, 0.2, 0.4, TIE), (0.3, 0.1, 0.6, TIE)]
)
def test_a_comparison_whose_likeliest_verdict_is_a_tie_ties(own, against, tie, verdict):
    assert verdict_of(Reading(own, against, tie)) == verdict


PROBABILITIES = [(0.7, 0.2, 0.1), (0.1, 0.8, 0.1), (0.2, 0.2, 0.6)]


def both_orders(first, second):
    return [Reading(*values, order) for order, values in zip(ORDERS, (first, second), strict=True)]


def test_both_orders_must_agree():
    for (one, a), (two, b) in product(zip(PROBABILITIES, (WIN, LOSE, TIE), strict=True), repeat=2):
        found = decide(question(), both_orders(one, two))
        assert found == Outcome(a if a == b else TIE, flipped=a != b)


def test_swapping_the_sides_swaps_wins_and_losses():
    def swapped(reading):
        other = ORDERS[1 - ORDERS.index(reading.order)] if reading.order else None
        return reading._replace(own=reading.against, against=reading.own, order=other)

    cases = [both_orders(one, two) for one, two in product(PROBABILITIES, repeat=2)]
    cases += [[Reading(a, b)] for a, b in product((0.0, 0.5, 2.0), repeat=2)]
    for margin in (0.0, 0.5):
        there = win_line("x", [decide(question(), case, margin) for case in cases])
        back = win_line("x", [decide(question(), [swapped(r) for r in case], margin) for case in cases])
        assert (back.win, back.tie, back.lose, back.flipped) == (there.lose, there.tie, there.win, there.flipped)
        assert there.score - 1 == pytest.approx(-(back.score - 1))


def test_a_judge_that_only_looks_at_the_place_ties_everything():
    always_first = {"p_first_own_first": 0.9, "p_second_own_first": 0.1, "p_tie_own_first": 0.0}
    always_first |= {
        "p_first_against_first": 0.9,
        "p_second_against_first": 0.1,
        "p_tie_against_first": 0.0,
        ERROR: None,
    }
    asked = [question(name=str(i)) for i in range(7)]
    table = {example_key(q.example.id): always_first for q in asked}
    line = win_line("x", [decide(q, readings_of_comparison(q, table)) for q in asked])
    assert (line.win, line.tie, line.lose, line.flipped, line.flip_share, line.score) == (0, 7, 0, 7, 1.0, 1.0)


def test_flips_are_shares_of_the_questions_that_were_asked():
    asked = [Outcome(WIN, flipped=False), Outcome(TIE, flipped=True), Outcome(TIE, same=True), Outcome(None, "x")]
    line = win_line("x", asked)
    assert (line.flipped, line.flip_share, line.same) == (1, 0.5, 1)
    assert win_line("x", outcomes(1, 1, 1)).flip_share is None


def test_rows_for_the_judge_are_keyed_by_question_and_answer():
    one, two = question("a", "b", "one"), question("a", "c", "two")
    table = rows_to_score([one, two])
    assert table[ID].to_pylist() == sorted(answer_key(q.example, t) for q, ts in ((one, "ab"), (two, "ac")) for t in ts)
    assert [row["messages"][-1]["role"] for row in table.to_pylist()] == ["assistant"] * 4
    swapped = [Question(q.example, q.against, q.own) for q in (two, one)]
    assert rows_to_score(swapped).equals(table)
    scored = {n: {"reward": float(i), ERROR: None} for i, n in enumerate(table[ID].to_pylist())}
    (there,), (back,) = (readings_of_scores(q, scored, "reward") for q in (two, swapped[0]))
    assert (there.own, there.against) == (back.against, back.own) and there.own != there.against
    scored[answer_key(two.example, "c")] = {"reward": None, ERROR: "no tokens"}
    assert readings_of_scores(two, scored, "reward") == "no tokens (against answer)"


def test_result_record_keeps_readings_and_errors():
    asked = question(subset="s", split="test")
    readings = [Reading(1.0, 0.0)]
    record = result_record(asked, readings, decide(asked, readings))
    assert (record[ID], record["subset"], record["verdict"], record[ERROR]) == ("q", "s", WIN, None)
    assert record["readings"] == [{"own": 1.0, "against": 0.0, "tie": None, "order": None}]
    record = result_record(asked, "why", decide(asked, "why"))
    assert (record["verdict"], record[ERROR], record["readings"]) == (None, "no verdict: why", [])


# --- a reply ---------------------------------------------------------------------------------------------------------


def logs(*pairs):
    return [(letter, math.log(p)) for letter, p in pairs]


def test_weights_by_hand_spellings_add_up():
    """A: 0.3 + 0.1, B: 0.2, C: 0.2, so mass 0.8 and weights 0.5, 0.25, 0.25."""
    found = weigh_verdicts(logs(("A", 0.3), ("A", 0.1), ("B", 0.2), ("C", 0.2)), ComparisonSettings())
    assert found == VerdictWeights(*map(pytest.approx, (0.5, 0.25, 0.25, 0.8)))


def test_replies_that_are_no_verdict():
    few = logs(("A", 0.3), ("B", 0.1), ("C", 0.05))
    assert weigh_verdicts(few, ComparisonSettings()) == (
        "unparsable: the verdicts A, B and C together have probability 0.45, expected at least 0.5"
    )
    assert isinstance(weigh_verdicts(few, ComparisonSettings(min_mass=0.45)), VerdictWeights)
    none = [(letter, float("-inf")) for letter in "ABC"]
    assert weigh_verdicts(none, ComparisonSettings(min_mass=0)).startswith("unparsable")
    assert "no finite" in weigh_verdicts([("A", float("nan"))], ComparisonSettings())


def test_verdicts_need_tokens_of_their_own():
    class Vocabulary:
        def __init__(self, *tokens):
            self.tokens = tokens

        def get_vocab(self):
            return {token: number for number, token in enumerate(self.tokens)}

    assert verdict_tokens(Vocabulary("A", "ĠA", "a", "AB", "B", "▁C", "C.")) == {"A": [0, 1], "B": [4], "C": [5]}
    with pytest.raises(ModelError, match="no single token for B, C"):
        verdict_tokens(Vocabulary("A", "b"))
    tokenizer = byte_tokenizer()
    assert verdict_tokens(tokenizer)["B"] == [tokenizer.convert_tokens_to_ids("B")]


@pytest.mark.parametrize(
    ("room", "lengths", "kept"),
    [(10, [2, 3, 4], [2, 3, 4]), (9, [9, 9, 9], [3, 3, 3]), (10, [1, 9, 9], [1, 4, 4]), (9, [1, 2, 9], [1, 2, 6])],
)
def test_room_is_shared_by_cutting_the_longest(room, lengths, kept):
    assert share_among(room, lengths) == kept
    assert share_among(room, lengths[::-1]) == kept[::-1]


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"judge": {"kind": "ifd"}}, "not how good"),
        ({"comparison": {"min_mass": 0.1}}, "comparison would have no effect with by=scores; .* set by=comparison"),
        ({"by": "comparison", "judge": {"kind": "judge", "judge": {"low": 2}}}, r"judge\.judge would have no effect"),
        ({"by": "comparison", "judge": {"template": "text"}}, r"judge\.template would have no effect"),
        ({"margin": -1}, "greater than or equal"),
        ({"against": {"model": "nano", "answers": "runs/x"}}, "not both"),
        ({"comparison": {"prompt": "{request} {first}"}}, "once each"),
        ({"comparison": {"prompt": "{request} {first} {second} {low}"}}, "once each"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        WinRateSettings.model_validate(values)


def test_settings_have_fingerprints_and_name_their_judge():
    assert fingerprint(WinRateSettings()) != fingerprint(WinRateSettings(margin=0.5))
    assert WinRateSettings().judge_model == "nano:reward"
    assert WinRateSettings(by="comparison").judge_model == "nano"
    assert WinRateSettings(by="comparison", judge=QualitySettings(model="big")).judge_model == "big"


def test_a_replayed_run_names_every_setting_and_is_taken():
    for values in ({}, {"by": "comparison", "judge": {"kind": "judge", "backend": "vllm", "max_length": 99}}):
        settings = WinRateSettings.model_validate(values)
        assert WinRateSettings.model_validate(settings.model_dump(mode="json")) == settings
