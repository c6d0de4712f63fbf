"""Metrics against worked examples, slow references and the nano world's own judgement."""

from random import Random

import pytest

from raysift.evaluation.metrics import (
    EvalConfig,
    choice_order,
    common_subsequence,
    exact_match,
    extract_answer,
    find_numbers,
    normalised_scores,
    numeric_match,
    pick_choice,
    rouge_l,
    score_choice,
)
from raysift.records import Example, Message


def example(reference=None, metric="exact_match", **fields):
    fields = {"id": "e1", "task": "t", "prompt": (Message("user", "?"),)} | fields
    return Example(metric=metric, reference=reference, **fields)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is Paris.", "Paris."),
        ("It rains.\nSo the final answer is: wet grass\n", "wet grass"),
        ("First I thought the answer is 3.\nNo. The answer is 4.", "4."),
        ("Answer: yes", "yes"),
        ("3 + 4 = 7\n#### 7", "7"),
        (r"Hence $\boxed{12}$ in all.", "12"),
        ("  plain \n", "plain"),
        ("The answer is", "The answer is"),
        ("An answerable question", "An answerable question"),
    ],
)
def test_extracted_answer(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("The answer is  controversy.", "controversy", 1),
        ("**Controversy**", "controversy", 1),
        ('"go  hiking"!', "go hiking", 1),
        ("go hiking tomorrow", "go hiking", 0),
        ("", "go hiking", 0),
        ("true", "True", 1),
        ("apple", "APPLE", 0),
        ("APPLE", "APPLE", 1),
        ("(B)", "(B)", 1),
        ("B.", "(B)", 1),
        ("The answer is (B) the red one.", "(B)", 1),
        ("option b", "(B)", 1),
        ("(C) B", "(B)", 0),
        ("Because it is red", "(B)", 0),
        ("A dog", "(A)", 0),
        ("] > )", "] > )", 1),
        ("] >", "] > )", 0),
        ("...", "!", 0),
    ],
)
def test_exact_match(answer, reference, right):
    assert exact_match(answer, example(reference)) == right


def test_exact_match_is_the_nano_worlds_own_judgement():
    from raysift.nano.skills import SKILLS
    from raysift.nano.styles import STYLES, is_exact_match, style_answer

    rng, seen = Random(0), {True: 0, False: 0}
    for skill in SKILLS.values():
        for _ in range(40):
            payload, answer = skill.draw(rng)
            for candidate in (answer, skill.wrong(rng, payload, answer)):
                for style in STYLES:
                    text = style_answer(candidate, style)
                    own = is_exact_match(text, answer)
                    assert bool(exact_match(text, example(answer))) == own, (skill.name, text, answer)
                    seen[own] += 1
    assert min(seen.values()) > 1000


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1,450,000 people", [1450000]),
        ("1,2 and 3", [1, 2, 3]),
        ("$1,200.50", [1200.5]),
        ("16-3=13", [16, 3, 13]),
        ("-7 and −8 and (-9) and -$5 and $-6", [-7, -8, -9, -5, -6]),
        ("a 3/4 cup, 1 1/2 cups", [0.75, 1.5]),
        ("50%.", [50]),
        (".5 or 2e3", [0.5, 2000]),
        ("5/0", [5, 0]),
        ("no number", []),
    ],
)
def test_numbers_in_a_text(text, numbers):
    assert find_numbers(text) == numbers


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("51", "51.0", 1),
        ("They pay $51.00 in all.", "51.0", 1),
        ("76 - 25 = 51", "51.0", 1),
        ("The answer is 51 dollars for 2 packs.", "51.0", 1),
        ("The answer is about seventy.", "51.0", 0),
        ("125 thousand, that is 125,000", "125000", 1),
        ("#### 2,125", "2,125", 1),
        ("0.333333", "1/3", 1),
        ("0.33", "1/3", 0),
        ("-51", "51", 0),
        ("", "51", 0),
        ("9" * 10_000, "51", 0),
        ("7e999 51", "51", 1),
        ("7e999", "51", 0),
    ],
)
def test_numeric_match(answer, reference, right):
    assert numeric_match(answer, example(reference)) == right


def slow_common_subsequence(first, second):
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_common_subsequence_agrees_with_the_table():
    rng = Random(1)
    for _ in range(300):
        first, second = ([rng.choice("abcd") for _ in range(rng.randrange(90))] for _ in range(2))
        assert common_subsequence(first, second) == slow_common_subsequence(first, second)


def test_rouge_l_of_a_worked_example():
    # "the cat sat on the mat" and "The cat lay on a mat": the, cat, on, mat are common: 2 * 4 / (6 + 6)
    assert rouge_l("the cat sat on the mat", example("The cat lay on a mat.")) == pytest.approx(8 / 12)
    assert rouge_l("", example("x")) == 0
    assert rouge_l("我爱你", example("我不爱你")) == pytest.approx(6 / 7)


def choices(*texts, right=0, **fields):
    return example(metric="mc_accuracy", choices=texts, answer_index=right, **fields)


def test_ties_do_not_favour_the_first_choice_and_do_not_know_the_order():
    picked = [pick_choice([0.0] * 4, choices(*"abcd", id=f"e{i}")) for i in range(400)]
    assert all(70 < picked.count(place) < 130 for place in range(4))
    for i in range(50):
        there, back = choices(*"abcd", id=f"e{i}"), choices(*"dcba", id=f"e{i}")
        assert there.choices[pick_choice([0.0] * 4, there)] == back.choices[pick_choice([0.0] * 4, back)]


def test_the_best_choice_wins_whatever_the_hash_says():
    assert all(pick_choice([-3, -1, -2], choices(*"abc", id=str(i))) == 1 for i in range(20))


def test_a_choice_with_the_words_of_the_right_one_is_right():
    assert score_choice(2, choices("x", "y", "x", right=0)) == 1
    assert score_choice(1, choices("x", "y", "x", right=0)) == 0


def test_normalisation_decides_between_a_short_and_a_long_choice():
    scores = {kind: normalised_scores([-4.0, -9.0], [2, 3], [4, 12], kind) for kind in ("sum", "token", "byte")}
    assert scores == {"sum": [-4, -9], "token": [-2, -3], "byte": [-1, -0.75]}


def test_only_giveaway_choices_are_shuffled():
    plain = choices(*"abcd")
    assert choice_order(plain) == [0, 1, 2, 3]
    orders = [
        choice_order(example(metric="mc_truthful", id=f"e{i}", choices=tuple("abcd"), answer_index=0))
        for i in range(200)
    ]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert 25 < sum(order[0] == 0 for order in orders) < 75


def test_unknown_setting_is_refused():
    with pytest.raises(ValueError, match="max_tokens"):
        EvalConfig(max_tokens=3)
