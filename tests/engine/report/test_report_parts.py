"""Blocks, bins, groups, twins and alerts of a report, against their definitions."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from raysift.report import alerts, blocks
from raysift.report.bins import by_rank, counts_between, edges_between, group_of, tenths, thinned, what_if
from raysift.report.groups import before_and_after, by_length
from raysift.report.twins import text_keys, twins_of
from raysift.report.words import amount, fate_of, largest_sources, share


def test_a_record_becomes_plain_json_without_nan_and_infinity():
    table = blocks.Table(
        columns=(blocks.Column(name="x", type="number"),), rows=((float("nan"),), (np.float64("-inf"),), (np.int64(3),))
    )
    section = blocks.Section(key="verdict", title="Verdict", blocks=(table, blocks.Text(text="\x00</script>")))
    record = blocks.Record(title="run", kind="run", created_by="raysift", with_text=True, sections=(section,))
    plain = json.loads(json.dumps(blocks.as_json(record), allow_nan=False))
    assert plain["format"] == 1 and [block["kind"] for block in plain["sections"][0]["blocks"]] == ["table", "text"]
    assert plain["sections"][0]["blocks"][0]["rows"] == [[None], [None], [3]]
    assert plain["sections"][0]["blocks"][1] == {"kind": "text", "title": "", "note": "", "text": "\x00</script>"}


def test_every_block_has_a_kind_of_its_own_and_cannot_be_changed():
    kinds = [one.kind for one in blocks.Block.__subclasses__()]
    assert len({*kinds}) == len(kinds) == 13
    assert all(one.__dataclass_params__.frozen for one in blocks.Block.__subclasses__())
    with pytest.raises(dataclasses.FrozenInstanceError):
        blocks.Text(text="a").text = "b"


def test_a_cut_text_says_how_much_is_left_out():
    assert blocks.cut("abc", 3) == "abc"
    assert blocks.cut("a" * 3234) == "a" * 2000 + "… 1,234 more characters"


@pytest.mark.parametrize("values", [[0.0, 1.0, 2.0, 4.0], [5.0, 5.0], [-1e308, 0.0, 1e308], [1.0, np.inf, np.nan]])
def test_every_finite_value_is_in_one_bin(values):
    finite = [value for value in values if np.isfinite(value)]
    edges = edges_between(min(finite), max(finite))
    assert counts_between(values, edges).sum() == len(finite) and (np.diff(edges) > 0).all()


def test_what_if_takes_the_best_rows_of_each_share():
    drawn = np.random.default_rng(0)
    count, names = 500, ["a", "b", "c"]
    scores, ids = drawn.integers(0, 50, count).astype(float), drawn.permutation(count)
    groups, lengths = drawn.choice(names, count).tolist(), drawn.integers(1, 99, count)
    found = what_if(by_rank(scores, ids), groups, lengths, Counter(groups), count, 0.05, "")
    best = sorted(range(count), key=lambda row: (-scores[row], ids[row]))
    assert found.shares[0] == 0.001 and found.shares[-1] == 1 and 0.05 in found.shares
    for place, part in enumerate(found.shares):
        taken = best[: max(1, round(part * count))]
        assert dict(zip(found.groups, found.counts[place], strict=True)) == {
            name: sum(groups[row] == name for row in taken) for name in found.groups
        }
        assert found.lengths[place] == pytest.approx(np.mean(lengths[taken]), abs=0.06)


def test_what_if_of_a_sample_is_scaled_to_the_rows_that_can_be_taken():
    found = what_if(np.arange(10), ["a"] * 5 + ["b"] * 5, [1] * 10, {"a": 60, "b": 50}, 100, 0.1, "")
    counts = dict(zip(found.shares, found.counts, strict=True))
    assert counts[1.0] == (50, 50) and counts[0.1] == (10, 0) and found.pool == (60, 50)


def test_many_groups_are_told_as_the_largest_and_the_rest():
    pool = {f"s{n:02d}": 100 - n for n in range(40)}
    groups = [name for name, rows in pool.items() for _ in range(rows)]
    found = what_if(np.arange(len(groups)), groups, [1] * len(groups), pool, len(groups), 0.5, "")
    assert len(found.groups) == 25 and found.groups[-1] == "(others)" and sum(found.pool) == sum(pool.values())
    assert found.counts[-1] == found.pool


@pytest.mark.parametrize("count", [1, 499, 500, 501, 12_345])
def test_a_thinned_curve_keeps_its_mean_and_its_order(count):
    points = [(float(n), float(n % 7)) for n in range(count)]
    found = thinned(points)
    assert len(found) == min(count, 500) and list(found) == sorted(found)
    assert np.mean(found, axis=0) == pytest.approx(np.mean(points, axis=0), abs=0.05 * count / 100 + 1e-9)


@pytest.mark.parametrize("values", [range(1000), [3] * 50, [1] * 90 + [2, 50, 7], [0]])
def test_tenths_hold_every_value_once(values):
    names, ends = tenths(list(values))
    assert len(names) == len(ends) <= 10 and len({*names}) == len(names)
    numbers = group_of(list(values), ends)
    for value, number in zip(values, numbers, strict=True):
        low, _, high = names[number].replace(",", "").partition(" to ")
        assert float(low) <= value <= float(high or low)


def test_shares_of_pool_and_selection_with_lift_and_interval():
    found = before_and_after("By source", {"a": 80, "b": 20}, {"a": 5, "b": 5})
    pool, selected = found.series
    assert found.groups == ("a", "b") and pool.values == (0.8, 0.2) and selected.values == (0.5, 0.5)
    assert found.lift == pytest.approx((0.625, 2.5))
    assert all(
        low < value < high for low, value, high in zip(selected.low, selected.values, selected.high, strict=True)
    )
    assert before_and_after("", {"a": 5}, {"a": 2}) is None and before_and_after("", {"a": 5, "b": 1}, {}) is None


def test_lengths_are_compared_by_tenths_of_the_pool():
    found = by_length("", list(range(100)), [95, 96, 99, 3])
    assert (
        found.groups[-1] == "90 to 99" and found.series[1].values[-1] == 0.75 and found.lift[-1] == pytest.approx(7.5)
    )


def test_texts_that_differ_in_case_spaces_quotes_and_stops_are_twins():
    texts = ["A “quoted” word, here.", "a quoted\n word here", "1 + 1", "1 - 1", "", " . ", "Ünïcode!", "ünïcode"]
    keys = text_keys(pa.array(texts))
    assert keys[0] == keys[1] and keys[2] != keys[3] and keys[4] is keys[5] is None and keys[6] == keys[7]
    assert twins_of(keys, range(10, 18)) == {11: 10, 17: 16}


PART = {"halves": 0.8, "level": "clear"}
CLEAR = PART | {"kind": "pairs", "count": 22, "members": 22, "left_out": 0, "low": 0.7, "high": 0.9, "chance": 0.001}
CLEAR |= {
    "mean_cosine": 0.2,
    "needed": 20,
    "between": 0.5,
    "against": {"count": 0, "first": []},
    "subtasks": {"all": PART},
}
WEAK_PART = {"a": PART, "b": {"halves": 0.1, "level": "noise"}}
FIRES = [
    (alerts.length_by_rank, (0.6,), (0.4,)),
    (alerts.length_by_rank, (-0.6,), (None,)),
    (alerts.length_by_lift, (["1", "2", "3"], [0, 1, 3.0]), (["1", "2", "3"], [0, 9.0, 2.9])),
    (alerts.length_by_lift, (["1", "2", "3"], [4.0, 1, 0]), (["1", "2"], [0, 9.0])),
    (alerts.one_source, ({"a": 1, "b": 9}, {"a": 6, "b": 4}), ({"a": 1, "b": 9}, {"a": 5, "b": 5})),
    (alerts.one_source, ({"a": 9, "b": 1}, {"a": 9, "b": 1}), ({"a": 9}, {"a": 9})),
    (alerts.twins, (1, 10, 10, "chip"), (0, 10, 10, "chip")),
    (alerts.same_question, (2, 100, "chip"), (0, 100, "chip")),
    (alerts.asked_in, (1, 5, "target", "pool", None), (0, 5, "target", "pool", None)),
    (alerts.truncated, ("embed", 1, 1000, None), ("embed", 0, 1000, None)),
    (alerts.failed, ("embed", 11, 1000, None), ("embed", 10, 1000, None)),
    (alerts.failed, ("embed", 1, 1, None), ("search", 1, 0, None)),  # a search counts trials, not rows
    (alerts.tied, (1, 3, 10, None), (4, 0, 10, None)),
    (alerts.checkpoint_weights, ([1.0, 0.01], ["epoch-1", "epoch-2"]), ([0.7, 0.3], ["epoch-1", "epoch-2"])),
    (alerts.checkpoint_weights, ([0.0, 1.0], ["epoch-1", "epoch-2"]), ([1.0], ["epoch-1"])),
    (alerts.target_agreement, (CLEAR | {"level": "noise"},), (CLEAR,)),
    (alerts.target_agreement, (CLEAR | {"subtasks": WEAK_PART},), (CLEAR | {"subtasks": {"a": PART, "b": PART}},)),
    (alerts.collapsed, (20, 100, 1000), (25, 100, 1000)),
    (alerts.collapsed, (2, 100, 10), (3, 100, 10)),
    (alerts.learned_nothing, (-1.0, -1.0), (-1.0, -0.9)),
    (alerts.fewer_than_asked, (9, 10), (10, None)),
]


@pytest.mark.parametrize(("law", "stands_out", "is_well"), FIRES)
def test_an_alert_is_told_beyond_its_threshold_only(law, stands_out, is_well):
    found = law(*stands_out)
    assert found.level in ("warning", "note") and found.text.endswith((".", ")"))
    assert law(*is_well) is None


def test_the_level_of_an_alert_follows_its_weight():
    assert (
        alerts.truncated("embed", 1, 1000, None).level == "note"
        and alerts.truncated("embed", 10, 1000, None).level == "warning"
    )
    assert alerts.one_source({"a": 9, "b": 1}, {"a": 9, "b": 1}).level == "note"
    assert alerts.one_source({"a": 1, "b": 9}, {"a": 9, "b": 1}).level == "warning"
    assert alerts.tied(1, 30, 1000, None).level == "note" and alerts.tied(20, 30, 1000, None).level == "warning"


NOT = {"rank": None, "count": 10, "has_scores": True}
BY_ID, BUDGET = "and the smaller id comes first.", "and the budget took the first 10."


@pytest.mark.parametrize(
    ("known", "told"),
    [
        (
            {"rank": 3, "count": 10, "score": 1.0, "has_scores": True, "fate": "seed"},
            "Selected as number 3 of 10, as a seed.",
        ),
        (
            {**NOT, "score": 0.5, "cut": 0.75},
            "Not selected: it scores 0.5, and the lowest score of a selected row is 0.75.",
        ),
        (
            {**NOT, "score": 0.75, "cut": 0.75},
            "Not selected: it scores 0.75, as the last selected row does, " + BY_ID,
        ),
        ({**NOT, "score": 0.5}, "Not selected: it scores 0.5, and the selection does not follow the scores alone."),
        ({**NOT, "score": 1.0, "fate": "never picked"}, "Not selected: never picked."),
        (
            {**NOT, "score": 1.0, "fate": "picked", "order": 11},
            "Not selected: it comes as number 11, " + BUDGET,
        ),
        ({**NOT, "score": None, "failure": "embed: too long"}, "Not selected, for want of a score: embed: too long."),
        ({"rank": None, "count": None, "score": 2.0, "has_scores": True}, "It scores 2; the run has not chosen yet."),
        ({"rank": None, "count": None, "score": None, "has_scores": False}, "Kept; the run has no scores yet."),
    ],
)
def test_what_became_of_a_row_in_a_sentence(known, told):
    assert fate_of(**known) == told


def test_numbers_in_words():
    assert [share(part, 1) for part in (0, 0.0004, 0.052, 0.1, 0.617)] == ["0 %", "0.04 %", "5.2 %", "10 %", "62 %"]
    assert [amount(n) for n in (950, 12_300, 1_234_567, 2.5e9)] == ["950", "12,300", "1.2 M", "2.5 G"]
    assert largest_sources({"a": 30, "b": 20, "c": 50}, 18) == "80 % of it from 2 of 18 sources"
    assert (
        largest_sources({"a": 30, "b": 70}, 2) == "70 % of it from 1 of 2 sources"
        and largest_sources({"a": 3}, 1) == ""
    )
