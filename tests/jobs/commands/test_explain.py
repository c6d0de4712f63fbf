"""`raysift explain`: a row's place and text, and the reasons for its fate, on runs by gradient and on yardsticks."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

import raysift
from raysift.config import make_config, make_selector
from raysift.errors import ConfigError, DataError
from raysift.jobs.commands.explained import explain_command
from raysift.jobs.explaining.explain import explain
from raysift.jobs.gradients.targeting import read_targets
from raysift.jobs.runs.console import Console, printable
from raysift.jobs.runs.run import open_run
from raysift.pool.id_text import id_text, short_id

from ..conftest import PAIRS, nano_pairs, write_lines  # noqa: TID252

pytestmark = pytest.mark.ray


def scores(folder):
    """Scored rows, best first, ties by id."""
    table = pq.read_table(f"{folder}/scores.parquet")
    return table.filter(pc.is_valid(table["score"])).sort_by([("score", "descending"), ("id", "ascending")])


@pytest.mark.parametrize("kind", ["exact", "store"])
def test_the_pulls_of_a_subtasks_pairs_average_to_the_rows_score_for_it(rose_run, stored_run, kind):
    folder = rose_run if kind == "exact" else stored_run.folder.path
    row = scores(folder).slice(4, 1).to_pylist()[0]
    found = explain(folder, row["id"])
    assert (found.rank, found.standing.better, found.standing.score) == (5, 4, row["score"])
    assert found.verdict.startswith("selected as number 5 of 12; rank 5 of ")
    weighted = np.array(found.weights) @ np.array(found.matches)
    np.testing.assert_allclose(weighted, row["by_subtask"], atol=1e-6)
    assert all(pull.text for pull in found.pulls)
    assert len(found.pulls) == PAIRS  # the pair of equal answers has no gradient
    (file,) = open_run(folder).config().target
    subtask_of = {(file, number): pair["subtask"] for number, pair in enumerate(nano_pairs(PAIRS, 0), start=1)}
    assert {(pull.file, pull.record): pull.subtask for pull in found.pulls} == subtask_of
    for number, subtask in enumerate(found.subtasks):
        pulls = [pull.pull for pull in found.pulls if pull.subtask == subtask]
        zeros = 1 if subtask == "add" else 0  # it counts in the mean of its subtask all the same
        assert sum(pulls) / (len(pulls) + zeros) == pytest.approx(row["by_subtask"][number], abs=1e-4)


def test_a_row_below_the_cut_is_told_the_last_score_that_was_taken(rose_run):
    table = scores(rose_run)
    row, last = table.slice(20, 1).to_pylist()[0], table.slice(11, 1).to_pylist()[0]
    found = explain(rose_run, row["id"], pairs=False)
    assert found.rank is None
    assert found.pulls is None
    assert f"rank 21 of {len(table)}" in found.verdict
    assert f"a budget of 12 took 12 rows, the lowest of them with score {last['score']:.6g}" in found.verdict
    assert found.standing.percentile == pytest.approx(100 * (len(table) - 21) / (len(table) - 1))


def test_where_subtasks_pick_in_turn_a_row_is_not_told_that_its_score_was_too_low(repeat, stored_run, tmp_path):
    settings = {"rose__matching": "store", "rose__projection__kind": "none", "rose__match__subtasks": "round_robin"}
    run = repeat(tmp_path / "run", **settings, resources__store=stored_run.config().resources.store)
    folder = run.folder.path
    chosen = pq.read_table(f"{folder}/selection.parquet")["id"].to_pylist()
    passed_over = next(row for row in scores(folder)["id"].to_pylist() if row not in chosen)
    verdict = explain(folder, passed_over, pairs=False).verdict
    assert (
        "by score, that of its best subtask; a budget of 12 took 12 rows, which the subtasks picked in turn" in verdict
    )
    assert "lowest" not in verdict


def test_pulls_are_left_out_where_a_target_file_is_not_what_it_was(rose_run, tmp_path, capsys):
    shutil.copytree(rose_run, tmp_path / "run")
    folder, pairs = str(tmp_path / "run"), tmp_path / "pairs.jsonl"
    settings = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    same = Path(settings["target"][0]).read_text()
    (tmp_path / "run" / "run.yaml").write_text(yaml.safe_dump(settings | {"target": [str(pairs)]}))
    row = scores(folder)["id"][0].as_py()
    pairs.write_text(same)
    assert explain(folder, row).no_pulls is None
    for content, why in ((same.replace("chosen", "rejected", 1), "has changed since the run"), (None, "is not there")):
        pairs.unlink()
        if content is not None:
            pairs.write_text(content)
        found = explain(folder, row)
        assert found.pulls is None
        assert f"the target file {pairs} {why}" in found.no_pulls
        assert found.verdict.startswith("selected as number 1 of 12")
        explain_command(folder, str(row), True, False, False, Console("plain"))
        shown = capsys.readouterr()
        assert "left out" in shown.out
        assert "Cosine with the target" in shown.out


def test_a_pair_is_named_by_its_file_and_its_record_there(tmp_path):
    pairs = nano_pairs(3, 0)
    first = write_lines(
        tmp_path / "a.jsonl", [pairs[0] | {"rejected": None}, pairs[0], pairs[1] | {"prompt": []}, pairs[1]]
    )
    second = write_lines(tmp_path / "b.jsonl", [pairs[2] | {"rejected": pairs[2]["chosen"]}, pairs[2]])
    config = make_config({"method": "rose", "target": [first, second]})
    places = read_targets(config, make_selector(config)).places
    assert places == [(first, 2), (first, 4), (second, 1), (second, 2)]


def test_failed_rejected_and_unknown_rows_are_told_apart(rose_run, stored_run):
    for folder in (rose_run, stored_run.folder.path):
        table = pq.read_table(f"{folder}/scores.parquet")
        failed = table.filter(pc.is_null(table["score"]))["id"][0].as_py()
        assert "no score: " in explain(folder, failed, pairs=False).verdict
        assert "no_label_tokens" in explain(folder, failed, pairs=False).verdict
    with pytest.raises(DataError, match=r"no row of .* has the id 5, kept or rejected"):
        explain(rose_run, 5)
    with pytest.raises(ConfigError, match="'xyz' is no row id"):
        explain_command(rose_run, "xyz", False, False, False, Console("quiet"))


def test_yardsticks_are_explained_without_a_model_and_rejected_rows_with_their_reason(ray_local, tmp_path):
    rows = [{"instruction": f"say {i}", "output": "x" * (i + 1)} for i in range(20)]
    pool = write_lines(tmp_path / "pool.jsonl", [*rows, rows[3], {"instruction": "a", "output": ""}])
    chosen = raysift.longest(pool, run=str(tmp_path / "run"), budget="3", longest={"unit": "chars"})
    best = explain(str(tmp_path / "run"), chosen.ids[0])
    assert (best.rank, best.standing.score, best.matches, best.pulls) == (1, 20.0, None, None)
    run = open_run(str(tmp_path / "run"))
    rejected = pq.read_table(run.files(run.manifest("ingest"), "rejected")[0].path).to_pylist()
    for line in rejected:
        if line["id"] is not None:
            found = explain(str(tmp_path / "run"), line["id"])
            assert line["reason"] in (found.rejections or [found.verdict])[0]
            assert found.verdict.startswith("not in the pool" if line["reason"] != "duplicate" else "not selected")


def test_the_text_comes_first_is_escaped_and_can_be_left_out(rose_run, capsys):
    row = scores(rose_run)["id"][0].as_py()
    words = explain(rose_run, row, pairs=False, text=True).messages[0]["content"]
    explain_command(rose_run, str(row), False, False, False, Console("plain"))
    assert words not in capsys.readouterr().out
    explain_command(rose_run, str(row), False, True, False, Console("plain"))
    shown = capsys.readouterr().out
    assert shown.index(words.split()[0]) < shown.index("What became of it")
    assert printable("a\x1b[31m\u202eb\n") == "a\\x1b[31m\\u202eb\\n"
    Console("plain").note("the row says \x1b[31m")
    assert "says \\x1b[31m" in capsys.readouterr().err


def test_a_row_is_found_by_the_first_digits_of_its_id_and_told_its_place(ray_local, tmp_path, capsys):
    rows = [{"instruction": f"say {i}", "output": "x" * (i + 1), "id": f"mine-{i}"} for i in range(40)]
    pool = write_lines(tmp_path / "pool.jsonl", [*rows, {"instruction": "nothing", "output": ""}])
    folder = str(tmp_path / "run")
    chosen = raysift.longest(pool, run=folder, budget="3", longest={"unit": "chars"})
    run = open_run(folder)
    rejected = pq.read_table(run.files(run.manifest("ingest"), "rejected")[0].path).to_pylist()
    known = {id_text(row) for row in [*scores(folder)["id"].to_pylist(), *(line["id"] for line in rejected)]}
    best = chosen.ids[0]
    for wanted in (id_text(best), short_id(best), str(best)):
        found = explain(folder, wanted)
        assert (found.id, found.file, found.position, found.own_id) == (best, pool, 40, "mine-39")
    shared = next(text[0] for text in known if sum(other[0] == text[0] for other in known) > 1)
    with pytest.raises(ConfigError, match="rows have an id like") as refusal:
        explain(folder, shared)
    assert {text for text in known if text in str(refusal.value)} == {text for text in known if text[0] == shared}
    (line,) = rejected
    found = explain(folder, line["id"], text=True)
    assert (found.source, found.file, found.position, found.raw) == (line["source"], pool, 41, line["raw"])
    capsys.readouterr()
    for row in (best, line["id"]):
        explain_command(folder, id_text(row), True, True, True, Console("plain"))
        assert json.loads(capsys.readouterr().out)["id"] == id_text(row)
