"""Targets in another language or template: what the figures are, and that they tell real texts apart."""

import json

import pyarrow.parquet as pq
import pytest

from raysift.pool.likeness import MARKS, RARER, compare_samples, evenly, remarks, sample_of, usual_share

ENGLISH = ["The cat sat on the mat and looked at the dog.", "Who has seen the dog that ran to the house?"] * 60
RUSSIAN = ["Кошка сидела на ковре и смотрела на собаку, а собака бежала к дому."]


def figures(pool, target):
    return compare_samples(sample_of(pool), sample_of(target))


def test_the_pool_itself_is_like_the_pool_whatever_the_order():
    found = figures(ENGLISH, ENGLISH[::-1])
    assert (found["usual_words"], found["script"], found["script_share"], found["script_share_of_pool"]) == (
        1.0,
        "Latin",
        1.0,
        1.0,
    )
    assert found == figures(ENGLISH[::-1], ENGLISH)
    assert remarks("target", found) == []


def test_a_word_is_usual_up_to_a_hundredth_of_its_share():
    target = sample_of(["word " * 30])
    for others, usual in ((RARER - 1, 1.0), (RARER, 0.0)):
        pool = sample_of(["other " * others * 10 + "word " * 10])  # of (others + 1) * 10 words
        assert usual_share(pool, target) == usual


def test_another_script_is_said_once_with_its_shares():
    found = figures(ENGLISH, RUSSIAN * 3)
    (said,) = remarks("ru.jsonl", found)
    assert said.startswith("ru.jsonl: 100% of its letters are Cyrillic, 0.0% of those of 120 rows of the pool.")


def test_scripts_without_spaces_count_characters():
    assert sample_of(["我喜欢猫 cat"]).words == {"我": 1, "喜": 1, "欢": 1, "猫": 1, "cat": 1}
    assert sample_of(["猫はＡＢ𝐚 42"]).letters == {"CJK": 1, "Hiragana": 1, "Latin": 3}


def test_of_a_few_words_nothing_is_said():
    assert remarks("t", figures(ENGLISH, ["Кошка"])) == []
    assert remarks("t", figures(["one row"], RUSSIAN * 10)) == []


MARKED = {
    "ChatML": "<|im_start|>user\nHello<|im_end|>",
    "Llama 2": "[INST] Hello [/INST]",
    "Llama 3": "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>",
    "Gemma": "<start_of_turn>user\nHello<end_of_turn>",
    "Tulu": "<|user|>\nHello\n<|assistant|>\n",
    "Alpaca": "Below is an instruction.\n\n### Instruction:\nHello\n\n### Response:\n",
    "transcript": "Human: Hello\n\nAssistant: Hello",
}


@pytest.mark.parametrize("name", MARKS)
def test_marks_of_templates_are_counted_by_text(name):
    found = figures(ENGLISH, [*ENGLISH[:9], MARKED[name]])
    assert found["marked_texts"] == {name: 1}
    (said,) = remarks("t", found)
    assert f"1 of 10 texts hold marks of a template ({name}) as plain text" in said


def test_a_single_mark_among_many_texts_is_counted_and_not_said():
    found = figures(ENGLISH, [*ENGLISH * 3, MARKED["ChatML"]])
    assert (found["marked_texts"], remarks("t", found)) == ({"ChatML": 1}, [])


def test_texts_of_a_large_target_are_taken_at_even_distances():
    assert evenly(range(10), 4) == [0, 2, 5, 7]
    assert evenly("abc", 3) == ["a", "b", "c"]


# --- on real texts ------------------------------------------------------------------------------------------------------

POOLS = ("alpaca_en", "t0_p3", "flan_cot_gsm8k", "gpteacher_codegen", "chatdoctor_5k", "gpteacher_roleplay")
FOREIGN = ("fr", "es", "de", "ca", "pt-BR", "ru", "uk-UA", "th", "zh")


@pytest.fixture(scope="module")
def real(shared_data):
    """Texts by source, those of other languages by language, and those of evaluation sets and preferences by file."""
    rows = pq.read_table(shared_data / "pool/pool_public.parquet", columns=["id", "source", "lang", "messages"])
    sources, languages = {}, {}
    for row in rows.sort_by("id").to_pylist():
        text = "\n".join(message["content"] for message in row["messages"])
        if row["lang"] in (None, "en"):
            sources.setdefault(row["source"], []).append(text)
        elif row["lang"] in FOREIGN:
            languages.setdefault(row["lang"], []).append(text)
    targets = {name: sources[name] for name in POOLS}
    for file in sorted(shared_data.glob("eval/*.jsonl")):
        records = [json.loads(line) for line in file.read_bytes().splitlines()]
        targets[file.stem] = [f"{r['prompt']}\n{r['reference'] or ' '.join(r['choices'] or [])}" for r in records]
    for file in sorted(shared_data.glob("preferences/*.parquet")):
        records = pq.read_table(file, columns=["prompt", "chosen"]).to_pylist()
        targets[file.stem] = [f"{r['prompt']}\n{r['chosen']}" for r in records]
    return sources, languages, targets


@pytest.mark.parametrize("size", [30, 500])
def test_real_targets_of_other_languages_are_told_from_those_of_other_domains(real, size):
    """Program text, medicine and mathematics against one another never warn; every other language does."""
    sources, languages, targets = real
    assert set(languages) == set(FOREIGN)
    asked = {name: sample_of(evenly(texts, size)) for name, texts in targets.items()}
    foreign = {name: sample_of(evenly(texts, size)) for name, texts in languages.items()}
    for source in POOLS:
        pool = sample_of(evenly(sources[source]))
        shares = {name: usual_share(pool, target) for name, target in asked.items()}
        assert min(shares.values()) > 0.3, (source, shares)
        others = {name: usual_share(pool, target) for name, target in foreign.items()}
        assert max(others.values()) < 0.23, (source, others)
        assert not any(
            "another language" in remark
            for name, t in asked.items()
            for remark in remarks(name, compare_samples(pool, t))
        )
        assert all(remarks(name, compare_samples(pool, t)) for name, t in foreign.items())


def test_a_real_pool_with_rows_of_a_language_knows_it(real):
    """A sixth of its rows are Chinese: a Chinese target is one of its own, to those without them it is none."""
    sources, languages, _ = real
    english = evenly(sources["alpaca_en"], 1900)
    pool = sample_of([*english, *evenly(languages["zh"], 380)])
    assert remarks("zh", compare_samples(pool, sample_of(evenly(languages["zh"], 300)))) == []
    assert len(remarks("zh", compare_samples(sample_of(english), sample_of(evenly(languages["zh"], 300))))) == 1
