"""Target files: what is refused before anything is trained, and what is read from folders, globs and other columns."""

import json

import numpy as np
import pytest

from raysift.errors import ConfigError, DataError
from raysift.gradients.preference import Member, Targets
from raysift.gradients.rows import SetAside
from raysift.jobs.gradients.targeting import count_members, read_targets, subtask_of, target_files, tell_drawn
from raysift.nano.world import examples
from raysift.pool.few_shot import SHOTS, draw_few
from raysift.settings.config import make_config, make_selector

from ..conftest import nano_pairs, write_lines  # noqa: TID252


@pytest.fixture
def files(tmp_path):
    write_lines(tmp_path / "pairs.jsonl", nano_pairs(4, 0))
    write_lines(tmp_path / "examples.jsonl", list(examples(4, 0, ["add"])))
    return tmp_path


def target_of(method, target, **section):
    config = make_config({"method": method, "target": [str(target)], method: section})
    return config, make_selector(config)


@pytest.mark.parametrize(
    ("method", "name", "message"),
    [
        ("rose", "none.jsonl", r"targets: .*none\.jsonl' does not exist\. rose takes preference pairs: "),
        ("less", "none.jsonl", r"targets: .*none\.jsonl' does not exist\. less takes examples with a right answer: "),
        ("rose", "no*.jsonl", r"targets: no data file matches .*no\*\.jsonl"),
        (
            "rose",
            "examples.jsonl",
            r"no column for .*chosen.*rose takes preference pairs: .*rose\.targets\.columns\.chosen",
        ),
        (
            "less",
            "pairs.jsonl",
            r"pairs\.jsonl: .* have no right answer.* less takes examples .*: prompt and reference",
        ),
    ],
)
def test_missing_files_and_files_of_the_wrong_kind_are_named(files, method, name, message):
    with pytest.raises((ConfigError, DataError), match=message):
        read_targets(*target_of(method, files / name))


def test_folders_and_globs_stand_for_their_files(files):
    for number in range(3):
        (files / "folder").mkdir(exist_ok=True)
        write_lines(files / f"folder/part-{number}.jsonl", nano_pairs(2, number))
    for path in (files / "folder", files / "folder/part-?.jsonl"):
        config, selector = target_of("rose", path)
        assert len(read_targets(config, selector).members) == 6
        assert [file.location.name for file in target_files(config)] == [f"part-{i}.jsonl" for i in range(3)]
    (example,) = target_files(target_of("less", files / "examples.jsonl")[0])
    assert example.location.name == "examples.jsonl"


def test_an_example_without_a_right_answer_is_named(files):
    records = [json.loads(line) for line in (files / "examples.jsonl").read_text().splitlines()]
    records[2] |= {"reference": None, "metric": "by_hand"}
    path = write_lines(files / "mute.jsonl", records)
    with pytest.raises(DataError, match=f"mute.jsonl: 1 of 4 examples .*the first is '{records[2]['id']}'"):
        read_targets(*target_of("less", path))


def test_records_without_a_pair_are_counted_and_the_first_of_each_reason_named(files):
    pairs = nano_pairs(6, 0)
    bad = [pair | {"prompt": []} for pair in pairs[:4]]
    path = write_lines(files / "some.jsonl", [pairs[0], *bad, pairs[1] | {"rejected": None}, pairs[5]])
    found = read_targets(*target_of("rose", path))
    assert (len(found.members), found.problems) == (2, {"no_prompt": 4, "one_sided": 1})
    first, second = found.notes
    assert (
        "some.jsonl: 4 records give no pair (no_prompt). Nothing was asked before the answers. First: line 2;" in first
    )
    assert "First: line 6." in second


def test_other_columns_hold_pairs_and_their_subtasks(files):
    pairs = [
        {"prompt": pair["prompt"], "better": pair["chosen"], "rejected": pair["rejected"], "kind": f"k{i % 2}"}
        for i, pair in enumerate(nano_pairs(4, 0))
    ]
    path = write_lines(files / "named.jsonl", pairs)
    target = target_of("rose", path, targets={"columns": {"chosen": "better"}, "subtask": "kind"})
    members = read_targets(*target).members
    assert [(member.chosen, subtask_of(member)) for member in members] == [(p["better"], p["kind"]) for p in pairs]


def test_a_target_has_a_split_of_its_own(files):
    records = [json.loads(line) for line in (files / "examples.jsonl").read_text().splitlines()]
    for record, split in zip(records, ("a", "b", "a", "a"), strict=True):
        record["split"] = split
    path = write_lines(files / "split.jsonl", records)
    config, selector = target_of("less", path)
    config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"split": "b"})})
    assert len(read_targets(config, selector).members) == 4
    assert len(read_targets(*target_of("less", path, targets={"split": "a"})).members) == 3


def test_a_member_counts_once_and_only_where_it_has_a_gradient_at_every_checkpoint():
    def at(kept, *aside):
        return Targets((), np.empty(0), [Member(i, "all", 0.0, 1.0, truncated=i > 1) for i in kept], list(aside))

    first = at([0, 1, 2, 3], SetAside(4, "no_label_tokens", ""))
    second = at([0, 1, 2], SetAside(3, "not_finite", ""), SetAside(4, "no_label_tokens", ""))
    assert count_members([first, second]) == ({"no_label_tokens": 1, "not_finite": 1}, 1)


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [("rose", "split", "test"), ("less", "columns", {"prompt": "q"}), ("less", "subtask", "s")],
)
def test_settings_of_the_other_kind_of_target_are_refused(files, method, name, value):
    path = files / ("pairs.jsonl" if method == "rose" else "examples.jsonl")
    with pytest.raises(ConfigError, match=rf"'{method}\.targets\.{name}' is set, but {method} takes"):
        read_targets(*target_of(method, path, targets={name: value}))


def chosen_texts(config, selector):
    return sorted(pair.chosen for pair in read_targets(config, selector).members)


def test_few_of_a_long_target_are_drawn_by_seed_and_content_not_by_order_or_files(tmp_path):
    pairs = [{"prompt": f"question {i}", "chosen": f"right {i}", "rejected": "wrong"} for i in range(300)]
    one = write_lines(tmp_path / "one.jsonl", pairs)
    for number in range(2):
        write_lines(tmp_path / f"half-{number}.jsonl", pairs[::-1][number::2])
    config, selector = target_of("rose", one)
    found = read_targets(config, selector)
    assert (len(found.members), found.left_out) == (128, 172) and len(found.places) == 128
    assert [place for _, place in found.places] == [int(pair.chosen.split()[1]) + 1 for pair in found.members]
    assert chosen_texts(config, selector) == chosen_texts(*target_of("rose", tmp_path / "half-*.jsonl"))
    assert chosen_texts(config, selector) != chosen_texts(config.model_copy(update={"seed": 1}), selector)
    assert tell_drawn(found, selector) == (
        f"targets: 128 of 300 pairs of {one}, drawn by seed 0; rose.targets.limit=none takes all"
    )


def test_all_of_a_target_are_taken_when_asked_and_nothing_is_said(tmp_path):
    pairs = [{"prompt": f"question {i}", "chosen": f"right {i}", "rejected": "wrong"} for i in range(130)]
    config, selector = target_of("rose", write_lines(tmp_path / "p.jsonl", pairs), targets={"limit": "none"})
    found = read_targets(config, selector)
    assert len(found.members) == 130 and not tell_drawn(found, selector) and not found.drawn


def test_every_subtask_keeps_its_shots_and_the_papers_targets_stay_whole():
    drawn = draw_few(range(400), [i % 4 for i in range(400)], 128, 0)
    assert [sum(place % 4 == k for place in drawn) for k in range(4)] == [32] * 4
    mmlu = [subtask for subtask in range(57) for _ in range(5)]
    assert draw_few(range(285), mmlu, 128, 0) == list(range(285))
    assert len(draw_few(range(900), [i % 90 for i in range(900)], 128, 0)) == 90 * SHOTS
    assert len(draw_few(range(20), ["all"] * 20, 3, 0)) == 3
    assert draw_few([], [], 128, 0) == []


def test_examples_are_drawn_too_and_only_a_draw_changes_the_fingerprint(tmp_path):
    path = write_lines(tmp_path / "long.jsonl", list(examples(200, 0, ["add", "sort_words"])))
    config, selector = target_of("less", path, targets={"limit": 20})
    found = read_targets(config, selector)
    assert {subtask_of(member) for member in found.members} and len(found.members) <= 20
    assert found.drawn == {"limit": 20, "seed": 0}
    assert not read_targets(*target_of("less", path, targets={"limit": 200})).drawn
    with pytest.raises(ConfigError, match=r"less\.targets\.limit"):
        target_of("less", path, targets={"limit": 0})
