"""ROSE and LESS end to end on the nano world: what must not change a selection, what must, and bad targets."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from raysift.actors.checkpointed import Checkpoint
from raysift.actors.target_files import load_targets
from raysift.errors import ConfigError, DataError, StageError, StaleRunError
from raysift.jobs.commands.explained import show
from raysift.jobs.explaining.explain import explain
from raysift.jobs.gradients import room
from raysift.jobs.report.why import why
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import open_run
from raysift.manifest import read_manifest
from raysift.nano.world import examples, write_pool
from raysift.settings.gradients import ProjectionSettings
from raysift.store.distortion import estimate_distortion

from ..conftest import PAIRS, nano_pairs, write_lines  # noqa: TID252

pytestmark = pytest.mark.ray


def selected(run):
    return pq.read_table(f"{run.folder.path}/selection.parquet")["id"].to_pylist()


def scores(run):
    return pq.read_table(f"{run.folder.path}/scores.parquet").sort_by("id")


def numbers(run):
    return scores(run).drop_null()["score"].to_numpy()


def test_every_row_is_accounted_for_and_rows_without_labels_are_never_selected(rose_run):
    run = open_run(rose_run)
    kept = read_manifest(run.folder / "ingest").counts["kept"]
    counts = read_manifest(run.folder / "gradients").counts
    assert counts == {"rows_in": kept, "kept": kept - 1, "failed": 1, "truncated": 1}
    table = scores(run)
    assert len(table) == kept
    missing = [row["id"] for row in table.to_pylist() if row["score"] is None]
    assert len(missing) == 1
    assert missing[0] not in selected(run)
    assert len(selected(run)) == 12


def test_targets_of_another_precision_are_not_taken_for_these(repeat, tmp_path):
    repeat(tmp_path / "run")
    for name, value in (("dtype", "bf16"), ("quantization", "4bit")):
        with pytest.raises(StaleRunError, match=rf"targets: .*\n  settings\.{name}: '.*' -> '{value}'"):
            repeat(tmp_path / "run", **{f"rose__warmup__{name}": value})


def test_target_records_that_give_no_pair_are_counted_and_equal_answers_count_as_zero(rose_run):
    counts = read_manifest(open_run(rose_run).folder / "targets").counts
    assert counts["unreadable"] == {"no_prompt": 1, "one_sided": 1}
    assert counts["set_aside"] == {"chosen_equals_rejected": 1}
    assert (counts["rows_in"], counts["kept"]) == (PAIRS + 3, PAIRS)


def test_figures_of_each_pair_are_kept_and_bear_out_the_target(rose_run, stored_run):
    """Halves of the pairs are compared by these figures, without the gradients."""
    for run in (open_run(rose_run), stored_run):
        target = run.manifest("targets")
        table = pq.read_table(run.files(target, "examples")[0].path)
        members = json.loads(run.files(target, "members")[0].read_text())
        assert len(table) == PAIRS * len(members)
        assert table["norm"].to_pylist() == [line["norm"] for lines in members.values() for line in lines]
        for point in members:
            here = table.filter(pc.equal(table["checkpoint"], point))
            vectors = load_targets(run.files(target, "targets")[0].parent, [Checkpoint(point, None, None, 1.0)])[0]
            for number, name in enumerate(target.values["subtasks"]):
                own = here.filter(pc.equal(here["subtask"], name))
                sketches = np.stack(own["sketch"].to_pylist())
                np.testing.assert_allclose(np.linalg.norm(sketches, axis=1), 1, atol=0.2)
                # The sum of n unit vectors has length n times that of their mean, and n / length is the mean cosine with it.
                mean = float(np.linalg.norm(vectors[number])) * (len(own) + (1 if name == "add" else 0)) / len(own)
                assert np.mean(own["cosine"].to_pylist()) == pytest.approx(mean, abs=0.1)
            assert all(-1.01 <= value <= 1.01 for value in here["between"].to_pylist())


def test_a_report_tells_the_strongest_pairs_with_their_texts_while_the_file_is_the_same(rose_run, tmp_path):
    section = why(open_run(rose_run), True)
    first, *_ = texts = [block for block in section.blocks if block.kind == "texts"]
    cosines = [item.figures["cosine"] for item in first.items]
    assert cosines == sorted(cosines, reverse=True)
    asked = {" ".join(turn["content"] for turn in pair["prompt"]) for pair in nano_pairs(PAIRS, 0)}
    assert all(any(one.split("\n")[-1] in item.text for one in asked) for block in texts for item in block.items)
    assert all("better: " in item.text and "worse: " in item.text for item in first.items)
    hidden = [item for block in why(open_run(rose_run), False).blocks if block.kind == "texts" for item in block.items]
    assert [item.text for item in hidden] == [None] * len(hidden)
    assert len(hidden) == PAIRS


def test_settings_of_target_files_decide_only_where_they_are_set(rose_run):
    assert read_manifest(open_run(rose_run).folder / "targets").settings["targets"] == {"aggregation": "mean_of_units"}


def test_selection_does_not_depend_on_workers_batches_or_blocks(rose_run, repeat, tmp_path):
    other = repeat(
        tmp_path / "run",
        resources__workers=2, resources__batch_rows=7, resources__block_rows=20, resources__tokens_per_pass=700,
    )  # fmt: skip
    assert selected(other) == selected(open_run(rose_run))
    np.testing.assert_allclose(numbers(other), numbers(open_run(rose_run)), atol=1e-5)


def test_a_store_without_projection_selects_as_exact_matching(rose_run, stored_run):
    exact = open_run(rose_run)
    assert selected(stored_run) == selected(exact)
    np.testing.assert_allclose(numbers(stored_run), numbers(exact), atol=1e-5)
    assert stored_run.manifest("gradients").counts == exact.manifest("gradients").counts


@pytest.mark.slow
def test_beta_changes_scores_only_where_pairs_are_not_normalised(rose_run, repeat, tmp_path):
    steep = repeat(tmp_path / "units", rose__preference__beta=5.0)
    np.testing.assert_allclose(numbers(steep), numbers(open_run(rose_run)), atol=1e-5)
    means = [
        repeat(tmp_path / f"mean-{beta}", rose__preference__beta=beta, rose__targets__aggregation="unit_of_mean")
        for beta in (0.1, 20.0)
    ]
    assert np.abs(numbers(means[0]) - numbers(means[1])).max() > 1e-4


@pytest.mark.slow
def test_projected_scores_are_off_by_what_theory_allows_and_by_less_in_more_numbers(repeat, stored_run, tmp_path):
    """One standard deviation of a cosine with target t is that of a unit vector times |t|, where |t| <= 1.

    Errors fall as theory says, within a factor of two: these are of 27 rows at three checkpoints with one target.
    """
    errors, theories = [], []
    for kind, dimension in (("sketch", 512), ("sketch", 8192), ("signs", 131072)):
        drawn = {"rose__projection__kind": kind, "rose__projection__dimension": dimension}
        run = repeat(tmp_path / f"{kind}-{dimension}", rose__matching="store", **drawn)
        errors.append((numbers(run) - numbers(stored_run)).std())
        theories.append(estimate_distortion(ProjectionSettings(kind=kind, dimension=dimension), 1).cosine_sd())
        assert errors[-1] < theories[-1]
    for fewer, more in ((0, 1), (1, 2)):
        assert errors[more] / errors[fewer] < 2 * theories[more] / theories[fewer]


def test_less_takes_examples_and_its_rows_get_their_own_directions(repeat, tmp_path, monkeypatch):
    path = write_lines(tmp_path / "examples.jsonl", list(examples(6, 0, ["add", "subtract"])))
    run = repeat(tmp_path / "run", method="less", target=[path], less__warmup={"recipe": "nano"})
    assert len(selected(run)) == 12
    target = read_manifest(run.folder / "targets")
    assert target.values["subtasks"] == ["add", "subtract"]
    # Two random rows for three examples would be too few, and no pass is spent on them.
    assert target.values["null"] == {"kind": "rows", "columns": 0, "why": "small_pool", "members": [3, 3]}
    assert "null" not in target.files
    monkeypatch.setattr(room, "shutil", SimpleNamespace(disk_usage=lambda _path: SimpleNamespace(free=1)))
    with pytest.raises(StageError, match=r"targets: .* GiB on disk \(2 subtasks at .*less\.matching=store"):
        repeat(tmp_path / "full", method="less", target=[path], less__warmup={"recipe": "nano"})
    assert not list((tmp_path / "full").rglob("*.safetensors"))
    with pytest.raises(ConfigError, match=r"target.* is missing. rose needs preference pairs"):
        repeat(tmp_path / "none", target=[])


def test_target_files_with_weights_are_targets_of_their_own(rose_run, repeat, tmp_path, capsys):
    """The first file is that of `rose_run`; the second has two subtasks."""
    (first,) = open_run(rose_run).config().target
    second = write_lines(
        tmp_path / "second.jsonl",
        [pair | {"subtask": name} for name in ("x", "y") for pair in nano_pairs(3, ord(name), "style")],
    )
    run = repeat(tmp_path / "run", target=[first, second], rose__match__target_weights=[2.0, 0.5])
    target = read_manifest(run.folder / "targets")
    own = [name.startswith("pairs: ") for name in target.values["subtasks"]]
    assert target.values["subtasks"][own.count(True) :] == ["second: x", "second: y"]
    assert target.values["target_of"] == [0] * own.count(True) + [1, 1]
    found = scores(run).drop_null()
    by_subtask = np.stack(found["by_subtask"].to_pylist())
    first_best, second_best = by_subtask[:, own].max(axis=1), by_subtask[:, -2:].max(axis=1)
    np.testing.assert_allclose(numbers(run), 2 * first_best + 0.5 * second_best, atol=1e-6)
    np.testing.assert_allclose(first_best, numbers(open_run(rose_run)), atol=1e-5)
    pulls = by_subtask * np.where(own, 2, 0.5)
    assert found["subtask"].to_pylist() == [target.values["subtasks"][i] for i in pulls.argmax(axis=1)]
    show(told := explain(str(run.folder.path), found["id"][0].as_py(), pairs=False), Console("plain"))
    assert told.subtask_weights == [2.0 if mine else 0.5 for mine in own]
    assert "target ×" in capsys.readouterr().out
    with pytest.raises(
        ConfigError, match=r"target_weights' has 2 numbers for 1 target files .*target_weights=null takes them off"
    ):
        repeat(tmp_path / "one", target=[first], rose__match__target_weights=[2.0, 0.5])


def test_targets_without_any_usable_pair_are_refused(repeat, tmp_path):
    pairs = [pair | {"rejected": None} for pair in nano_pairs(2, 0)]
    path = write_lines(tmp_path / "pairs.jsonl", pairs)
    with pytest.raises(
        DataError, match=r"no usable pair.*2 records give no pair \(one_sided\).*First: line 1; line 2\."
    ):
        repeat(tmp_path / "run", target=[path])


# --- kills ----------------------------------------------------------------------------------------------------------

DRIVER = """
    import json, os, sys, time
    import raysift.jobs.{module} as module
    from raysift.actors import row_gradients
    from raysift.jobs.cluster.starting import start_ray

    class Watched(row_gradients.{actor}):
        "Leaves its process id and the ids of the rows it was asked for; slow enough to be killed in the middle."

        def answer(self, rows):
            with open("{log}", "a") as log:
                log.write(json.dumps([os.getpid(), [row["id"] for row in rows]]) + chr(10))
            time.sleep(0.2)
            return super().answer(rows)

    module.{actor} = Watched
    import raysift

    start_ray()
    raysift.select("rose", "{pool}", run="{run}", target=["{pairs}"], budget="20",
                   rose={{"warmup_share": 0.1, "warmup": {{"recipe": "nano", "epochs": 1, "max_length": 128}},
                         "matching": "{matching}", "projection": {{"dimension": 512}}}},
                   resources={{"train": 0, "workers": 2, "cpus_per_worker": 0.5, "block_rows": 10}})
"""


@pytest.fixture
def driver(joined, tmp_path):
    """Starts the same small run as a process of its own, which joins the tests' Ray; gives it and its log of work."""
    write_pool(tmp_path / "pool.jsonl", 240, 0)
    write_lines(tmp_path / "pairs.jsonl", nano_pairs(4, 0))

    def start(name, matching):
        log = tmp_path / f"{name}.log"
        code = textwrap.dedent(DRIVER).format(
            pool=tmp_path / "pool.jsonl", pairs=tmp_path / "pairs.jsonl", run=tmp_path / name, log=log, matching=matching,
            module="gradients.store" if matching == "store" else "gradients.stages",
            actor="GradientVectors" if matching == "store" else "GradientMatch",
        )  # fmt: skip
        process = subprocess.Popen([sys.executable, "-c", code], env=joined, cwd="/", stderr=subprocess.PIPE, text=True)
        return process, log

    return start


def work(log):
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def wait_for(process, log, batches):
    """Until so many batches were begun; False if the run ended first."""
    while process.poll() is None and len(work(log)) < batches:
        time.sleep(0.02)
    return process.poll() is None


def finish(process):
    _, text = process.communicate(timeout=280)
    assert process.returncode == 0, text[-3000:]


@pytest.mark.chaos
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("matching", ["exact", "store"])
def test_killed_gradient_actors_change_nothing(driver, tmp_path, matching):
    calm, _ = driver("calm", matching)
    finish(calm)
    for attempt, batches in enumerate((2, 5, 9, 14, 18)):
        process, log = driver(f"killed-{attempt}", matching)
        assert wait_for(process, log, batches)
        os.kill(work(log)[-1][0], signal.SIGKILL)
        finish(process)
        assert selection_of(tmp_path / f"killed-{attempt}") == selection_of(tmp_path / "calm")
        # The killed actor's blocks, two of 10 rows at most in its queue, are all that is done again.
        assert count_repeated(log, f"{matching}, actor killed at batch {batches}") <= 20


@pytest.mark.chaos
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("matching", ["exact", "store"])
def test_a_killed_driver_continues_without_computing_finished_rows_again(driver, tmp_path, matching):
    calm, _ = driver("calm", matching)
    finish(calm)
    for batches in (4, 12, 20):
        process, log = driver("killed", matching)
        assert wait_for(process, log, batches)
        process.kill()
        process.communicate()
    process, log = driver("killed", matching)
    finish(process)
    assert selection_of(tmp_path / "killed") == selection_of(tmp_path / "calm")
    # At each kill two actors had two blocks of 10 rows at most open.
    assert count_repeated(log, f"{matching}, driver killed three times") <= 3 * 40


def count_repeated(log, where):
    """Rows that were asked for once more; `pytest -rP` shows the count."""
    asked = [row for _, rows in work(log) for row in rows]
    print(f"{where}: {len(asked) - len(set(asked))} of {len(set(asked))} rows computed twice")
    return len(asked) - len(set(asked))


def selection_of(folder):
    return pq.read_table(folder / "selection.parquet")["id"].to_pylist()


def test_a_run_and_its_rescoring_keep_how_like_the_pool_their_targets_are(rose_run, stored_run):
    for folder in (open_run(rose_run).folder, stored_run.folder):
        (figures,) = read_manifest(folder / "likeness").values["likeness"].values()
        assert (figures["texts"], figures["script"]) == (PAIRS + 1, "Latin")
        assert figures["usual_words"] > 0.5
