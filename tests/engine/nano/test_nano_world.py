"""The nano world: random access, truth, disjoint parts, and answers that score in any style."""

import json
import subprocess
import sys
from collections import Counter
from random import Random

import pytest

from raysift.nano import nano_path
from raysift.nano.noise import NOISE_KINDS
from raysift.nano.skills import SKILLS, TARGETS
from raysift.nano.styles import STYLES, extract_answer, is_exact_match, style_answer
from raysift.nano.world import (
    WorldConfig,
    examples,
    generate_pool,
    is_clean,
    is_relevant,
    pool_row,
    preference_pairs,
    write_pool,
)


def prompt_of(row):
    return row["messages"][0]["content"]


def response_of(row):
    return row["messages"][1]["content"]


@pytest.fixture(scope="module")
def pool():
    return list(generate_pool(20_000, seed=3))


def test_any_row_is_made_alone_as_it_is_in_the_stream(pool):
    for index in (0, 1, 17, 4_999, 19_999):
        assert pool_row(index, seed=3) == pool[index]


def test_stretches_in_any_order_make_the_same_pool(pool):
    second = list(generate_pool(30, seed=3, start=30))
    first = list(generate_pool(30, seed=3))
    assert first + second == pool[:60]


def test_another_seed_makes_another_pool(pool):
    assert sum(a["messages"] == b["messages"] for a, b in zip(pool, generate_pool(500, seed=4), strict=False)) < 5


def test_every_skill_noise_source_style_and_duplicate_occurs(pool):
    assert {row["skill"] for row in pool} == set(SKILLS)
    assert len(SKILLS) >= 16
    assert {row["noise"] for row in pool} == {None, *NOISE_KINDS}
    assert {row["style"] for row in pool} == set(STYLES)
    assert {row["duplicate"] for row in pool} == {None, "exact", "near"}


def test_shares_are_those_of_the_config(pool):
    rows = len(pool)
    assert sum(not is_clean(row) for row in pool) / rows == pytest.approx(0.30, abs=0.02)
    assert sum(row["duplicate"] == "exact" for row in pool) / rows == pytest.approx(0.02, abs=0.005)
    assert sum(row["duplicate"] == "near" for row in pool) / rows == pytest.approx(0.03, abs=0.006)
    for target in TARGETS:
        assert sum(is_relevant(row, target) for row in pool) / rows == pytest.approx(0.08, abs=0.01)


def test_sources_differ_in_quality(pool):
    noisy = Counter(row["source"] for row in pool if not is_clean(row))
    rows = Counter(row["source"] for row in pool)
    rate = {source: noisy[source] / rows[source] for source in rows}
    assert rate["curated"] < 0.15 < rate["forum"] < 0.38 < rate["scraped"]


def test_exact_duplicate_repeats_an_earlier_original_to_the_letter(pool):
    duplicates = [(index, row) for index, row in enumerate(pool) if row["duplicate"] == "exact"]
    for index, row in duplicates:
        original = pool[row["duplicate_of"]]
        assert row["duplicate_of"] < index
        assert original["duplicate_of"] is None
        assert row["messages"] == original["messages"]


def test_near_duplicate_keeps_the_response_and_edits_the_prompt(pool):
    for row in (row for row in pool if row["duplicate"] == "near"):
        original = pool[row["duplicate_of"]]
        assert response_of(row) == response_of(original)
        assert prompt_of(row) != prompt_of(original)
        assert (row["skill"], row["noise"]) == (original["skill"], original["noise"])


def test_numbered_prompts_do_not_repeat_by_chance():
    config = WorldConfig(number_prompts=True, exact_duplicate_rate=0.0, near_duplicate_rate=0.0)
    prompts = [prompt_of(row) for row in generate_pool(3_000, 0, config)]
    assert len(set(prompts)) == len(prompts)


def test_settings_matter_and_impossible_ones_are_refused():
    perfect = WorldConfig(noise_rate=0.0, exact_duplicate_rate=0.0, near_duplicate_rate=0.0, sentence_share=1.0)
    rows = list(generate_pool(300, 0, perfect))
    assert all(is_clean(row) and row["duplicate_of"] is None for row in rows)
    assert all(response_of(row).startswith("The answer is ") for row in rows)
    with pytest.raises(ValueError, match="noise_rate is 2"):
        WorldConfig(noise_rate=2)
    with pytest.raises(KeyError, match="unknown skill 'juggle'; known: add"):
        WorldConfig(skill_shares=(("juggle", 1.0),))


@pytest.mark.parametrize("name", sorted(SKILLS))
def test_wrong_answer_is_never_right_and_right_one_scores_in_every_style(name):
    skill, rng = SKILLS[name], Random(name)
    for _ in range(500):
        payload, answer = skill.draw(rng)
        wrong = skill.wrong(rng, payload, answer)
        for style in STYLES:
            assert is_exact_match(style_answer(answer, style), answer)
            assert not is_exact_match(style_answer(wrong, style), answer)


def test_spoilt_responses_differ_from_the_right_answer(pool):
    """A problem asked twice, cleanly and not, shows the right answer of the spoilt row."""
    right = {prompt_of(row): extract_answer(response_of(row)) for row in pool if is_clean(row)}
    spoilt = [row for row in pool if not is_clean(row) and prompt_of(row) in right]
    assert len(spoilt) > 20
    assert not any(is_exact_match(response_of(row), right[prompt_of(row)]) for row in spoilt)


def test_worked_examples_of_truth():
    rng = Random(0)
    for _ in range(50):
        (a, b), total = SKILLS["add"].draw(rng)
        assert int(a) + int(b) == int(total)
        (words,), ordered = SKILLS["sort_words"].draw(rng)
        assert sorted(words.split()) == ordered.split()
        (word,), backwards = SKILLS["reverse"].draw(rng)
        assert word == backwards[::-1]


def test_pool_examples_and_pairs_never_share_a_prompt(pool):
    names = list(SKILLS)
    validation = {row["prompt"] for row in examples(660, 0, names, "validation")}
    test = {row["prompt"] for row in examples(660, 0, names, "test")}
    pairs = {row["prompt"][0]["content"] for row in preference_pairs(660, 0, names)}
    asked = {prompt_of(row) for row in pool}
    for one, other in ((validation, test), (validation, pairs), (test, pairs)):
        assert not one & other
    for part in (validation, test, pairs):
        assert not part & asked
    assert len(validation) == len(test) == 660


def test_choices_hold_the_reference_at_the_answer_index():
    for row in examples(200, 0, list(SKILLS), "test", metric="mc_accuracy"):
        assert row["choices"][row["answer_index"]] == row["reference"]
        assert 2 <= len(set(row["choices"])) == len(row["choices"]) <= 4
    assert next(examples(1, 0, ["add"]))["choices"] is None


def test_pairs_prefer_the_right_answer_or_the_sentence():
    correctness = list(preference_pairs(200, 0, TARGETS))
    assert Counter(pair["subtask"] for pair in correctness).keys() == set(TARGETS)
    assert not any(is_exact_match(pair["chosen"], pair["rejected"]) for pair in correctness)
    for pair in preference_pairs(50, 0, TARGETS, kind="style"):
        assert is_exact_match(pair["chosen"], pair["rejected"])
        assert pair["chosen"] == style_answer(pair["rejected"], "sentence")
    with pytest.raises(ValueError, match="unknown kind of pairs 'taste'"):
        next(preference_pairs(1, 0, TARGETS, kind="taste"))


def test_exhausted_skill_is_an_error():
    with pytest.raises(ValueError, match="'roman' has no further test problem"):
        list(examples(2_000, 0, ["roman"], "test"))


def test_written_pool_reads_back(tmp_path, pool):
    path = write_pool(tmp_path / "pool.jsonl", 200, seed=3)
    assert [json.loads(line) for line in path.open()] == pool[:200]


def test_import_is_light():
    code = (
        "import sys, raysift.nano.world; print(sorted({'torch', 'transformers', 'ray', 'pyarrow'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_unknown_model_lists_the_known():
    with pytest.raises(ValueError, match="unknown model 'judge'; known: encoder, foundation, reward"):
        nano_path("judge")
