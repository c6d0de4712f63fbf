"""The null of ROSE and LESS from end to end: its columns, what the tables say, what is told, and runs that have none."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from laid_runs import begin, id_of, lay_choice, lay_gradient, lay_pool
from rich.console import Console as RichConsole

from raysift.actors.row_gradients import MATCHES
from raysift.config import make_selector
from raysift.evaluation.entries import UNIFORM
from raysift.gradients.null import WHOLE
from raysift.gradients.null_columns import NO_ROOM, OLD, TOO_FEW, NullColumns, mixes
from raysift.jobs.commands.show_selection import show_selection
from raysift.jobs.compare import rendering
from raysift.jobs.compare.compare import tell_null
from raysift.jobs.compare.selections import Chosen
from raysift.jobs.explaining.explain import explain
from raysift.jobs.gradients import stages as gradients
from raysift.jobs.gradients import targeting
from raysift.jobs.gradients.null import FoundNull, found_null, null_rows, save_null_rows
from raysift.jobs.gradients.store_match import MATCH_COLUMNS, match_table
from raysift.jobs.report.alerts import alerts_section
from raysift.jobs.report.gather import Gathered
from raysift.jobs.report.scores import scores_section
from raysift.jobs.report.writing import record_of
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import StageResult, open_run
from raysift.nano.world import examples
from raysift.store.gradient_store import read_shard
from raysift.tensors import load_tensors

from ..conftest import PAIRS, nano_pairs, write_lines  # noqa: TID252

ray_test = pytest.mark.ray


def table(run, name="scores"):
    return pq.read_table(f"{run.folder.path}/{name}.parquet").sort_by("id")


def shown(run):
    console = Console("plain")
    console.out = RichConsole(file=io.StringIO(), width=200, highlight=False)
    console.err = RichConsole(file=io.StringIO(), width=200, highlight=False)
    show_selection(run, run.manifest("choose"), console, whole=True)
    return console.out.file.getvalue() + console.err.file.getvalue()


def stands(run):
    return json.loads(run.files(run.manifest("influence"), "null")[0].read_text())


def columns_of(run):
    """Ids and the columns (rows, subtasks, 1 + null columns) of a run, weighed over its checkpoints."""
    scores, target = run.manifest("influence"), run.manifest("targets")
    found = pa.concat_tables(
        [
            pq.read_table(f.path, columns=["id", MATCHES])
            for f in run.files(run.manifest("match", "gradients"), "answers")
        ]
    ).drop_null()
    cells = np.array(found[MATCHES].to_pylist(), np.float64)
    weighed = np.tensordot(scores.values["checkpoint_weights"], cells, (0, 1))
    each = 1 + target.values["null"]["columns"]
    return found["id"].to_numpy(), weighed.reshape(len(weighed), -1, each)


@ray_test
def test_rows_stand_above_the_null_by_the_rule_on_the_columns_that_the_pass_left(rose_run):
    run = open_run(rose_run)
    told = run.manifest("targets").values["null"]
    assert (told["kind"], told["columns"], told["why"], sum(told["members"])) == ("signs", 2, "", PAIRS)
    ids, cells = columns_of(run)
    real = cells[..., 0].max(axis=1)
    pools = np.stack([(cells[..., 1:] @ mix).max(axis=1) for mix in mixes("signs", 2)])
    lowest = np.inf
    for score in sorted(real, reverse=True):
        if ((pools >= score).mean() * len(real) + 1 / 4) / (real >= score).sum() <= 0.1:
            lowest = score
    scores = table(run)
    assert scores["above_null"].null_count == scores["score"].null_count == 1
    above = dict(zip(scores["id"].to_pylist(), scores["above_null"].to_pylist(), strict=True))
    assert {row for row, is_above in above.items() if is_above} == set(ids[real >= lowest * (1 - 1e-6)].tolist())
    chosen = table(run, "selection")
    assert chosen["above_null"].to_pylist() == [above[row] for row in chosen["id"].to_pylist()]
    found = found_null(run)
    assert (found.selected, found.above) == (12, sum(chosen["above_null"].to_pylist()))
    assert found.pool == stands(run)[WHOLE]["above"] == sum(value is True for value in above.values())


@ray_test
def test_a_store_without_projection_has_the_null_of_exact_matching(rose_run, stored_run):
    exact = open_run(rose_run)
    assert table(stored_run)["above_null"].equals(table(exact)["above_null"])
    one, other = (columns_of(run) for run in (exact, stored_run))
    order, again = np.argsort(one[0]), np.argsort(other[0])
    np.testing.assert_allclose(one[1][order], other[1][again], atol=1e-5)


@ray_test
def test_the_verdict_is_told_wherever_the_selection_is(rose_run):
    run = open_run(rose_run)
    found = found_null(run)
    assert f"null: {found.sentence}" in " ".join(shown(run).split())
    told = explain(str(run.folder.path), table(run)["id"][0].as_py(), pairs=False)
    assert sum("random signs of the same pairs" in reason for reason in told.reasons) == 1
    page = json.dumps(record_of([run]), ensure_ascii=False)
    assert page.count(found.sentence) >= 1
    assert found.excess is not None and np.isfinite(found.excess)
    (pool, _, null) = next(block.series for block in scores_section(Gathered(run)).blocks if block.kind == "histogram")
    assert null.name == "null" and sum(null.counts) == pytest.approx(sum(pool.counts), rel=0.2)


@ray_test
def test_a_run_without_room_for_a_null_selects_the_same_and_says_so(rose_run, repeat, tmp_path, monkeypatch):
    monkeypatch.setattr(targeting, "null_fits", lambda *_: False)
    run, exact = repeat(tmp_path / "run"), open_run(rose_run)
    assert run.manifest("targets").values["null"] | {"members": []} == {
        "kind": "signs", "columns": 0, "why": NO_ROOM, "members": [],
    }  # fmt: skip
    scores, whole = table(run), table(exact)
    assert scores["above_null"].null_count == len(scores)
    np.testing.assert_allclose(scores["score"].drop_null(), whole["score"].drop_null(), atol=1e-5)
    assert table(run, "selection")["id"].equals(table(exact, "selection")["id"])
    assert "not known: there was no memory or disk" in " ".join(shown(run).split())


@ray_test
@pytest.mark.slow
def test_one_pair_is_too_few_for_a_verdict(repeat, tmp_path):
    run = repeat(tmp_path / "run", target=[write_lines(tmp_path / "pairs.jsonl", nano_pairs(1, 0))])
    assert run.manifest("targets").values["null"]["why"] == TOO_FEW
    assert "random signs of so few pairs say nothing" in found_null(run).sentence
    assert table(run)["above_null"].null_count == len(table(run))


@ray_test
@pytest.mark.slow
def test_random_rows_are_a_null_of_less_and_do_not_count_against_themselves(repeat, tmp_path):
    path = write_lines(tmp_path / "examples.jsonl", list(examples(4, 0, ["add", "subtract"])))
    run = repeat(tmp_path / "run", method="less", target=[path], less__warmup={"recipe": "nano"})
    target = run.manifest("targets")
    told = target.values["null"]
    assert (told["kind"], told["columns"], told["members"]) == ("rows", 2, [2, 2])
    own = null_rows(run, target, 2)
    assert [len(rows) for rows in own] == [4, 4] and len({*own[0].tolist(), *own[1].tolist()}) == 8
    ids, cells = columns_of(run)
    for number, rows in enumerate(own):
        matched = cells[..., 1 + number].max(axis=1)
        mine = np.isin(ids, rows)
        # Of two rows a and b of one column, each matches itself by 1 and the other alike: (1 + cos(a, b)) / 2.
        pairs = np.sort(matched[mine]).reshape(2, 2)
        np.testing.assert_allclose(pairs[:, 0], pairs[:, 1], atol=1e-4)
        assert pairs.min() > 0.5
    assert found_null(run).kind == "rows" and "random rows of the pool give as a target" in found_null(run).sentence
    again = repeat(
        tmp_path / "again", method="less", target=[path], less__warmup={"recipe": "nano"}, less__matching="store",
        less__projection__kind="none", resources__workers=2, resources__batch_rows=7, resources__tokens_per_pass=700,
    )  # fmt: skip
    assert [rows.tolist() for rows in null_rows(again, again.manifest("targets"), 2)] == [o.tolist() for o in own]
    assert table(again)["above_null"].equals(table(run)["above_null"])
    for vectors in null_vectors(again):
        totals = 2 * vectors.reshape(2, 3, -1)[:, 1:].sum(axis=0)  # of 2 rows for each of two subtasks
        errors = [np.abs(totals - stored).max(axis=1) for stored in stored_sums(again, own)]
        assert np.min(errors, axis=0).max() < 2e-3  # as the store's pass took them, in half precision


def null_vectors(run):
    """Of each checkpoint: the subtasks' vectors, each followed by its null ones."""
    target = run.manifest("targets")
    return [load_tensors(place, "targets")[0]["targets"].reshape(6, -1) for place in run.files(target, "targets")]


def stored_sums(run, replicates):
    """Of each checkpoint of the run's store, in any order: the sum of the vectors of these rows."""
    for shard in (run.folder / "store" / "segments").files(".parquet", recursive=True):
        names = [name[7:] for name in pq.read_schema(shard.path).names if name.startswith("vector_")]
        for name in names:
            ((ids, (units,)),) = read_shard(shard, [name])
            yield np.stack([units[np.isin(ids, rows)].astype(np.float32).sum(axis=0) for rows in replicates])


def lay_matched(path, real, nulls, kind="signs", members=()):
    """A run whose store was matched at two checkpoints, in two shards and a file of failed rows; row 0 failed."""
    run, config = begin(path, method="less", budget="20", target=["target.jsonl"])
    count, subtasks = real.shape
    rows, ids = lay_pool(run, count), np.array([id_of(k) for k in range(count)])
    given = [
        {"name": f"epoch-{n}", "adapter": "a", "moments": None, "learning_rate": rate} for n, rate in ((1, 3), (2, 1))
    ]
    warm = run.stage("warmup", {}, {}, lambda _: StageResult(values={"source": str(path), "given": given}))
    told = {"kind": kind, "columns": nulls.shape[2], "why": "", "members": [9] * subtasks}
    names = [f"task {i}" for i in range(subtasks)]

    def targets(folder):
        save_null_rows(folder / "null_rows.parquet", members)
        files = {"null": ["null_rows.parquet"]} if members else {}
        values = {"subtasks": names, "target_of": [0] * subtasks, "parameters": 9, "null": told}
        return StageResult(files=files, counts={"rows_in": 9}, values=values)

    cells = np.float32(np.concatenate([real[:, :, None], nulls], axis=2).reshape(count, 1, -1)).repeat(2, axis=1)

    def matched(folder):
        for number, part in enumerate(np.array_split(np.arange(1, count), 2)):
            pq.write_table(match_table(ids[part], cells[part]), f"{folder.path}/part-{number}.parquet")
        failed = pa.table([ids[:1], pa.nulls(1, MATCH_COLUMNS.field(1).type), ["ill"]], schema=MATCH_COLUMNS)
        pq.write_table(failed, f"{folder.path}/failed.parquet")
        return StageResult(files={"answers": ["part-0.parquet", "failed.parquet", "part-1.parquet"]})

    target, match = run.stage("targets", {}, {}, targets), run.stage("match", {}, {}, matched)
    selector = make_selector(config)
    scores = gradients.influence(run, config, selector.config, selector, rows, warm, target, match)
    lay_choice(run, config, rows, scores)
    return run, ids


@pytest.mark.parametrize("kind", ["signs", "rows"])
def test_scores_of_a_store_are_held_against_the_null_and_joined_with_the_selection(tmp_path, kind):
    rng = np.random.default_rng(0)
    real, nulls = 0.05 * rng.standard_normal((400, 3)), 0.05 * rng.standard_normal((400, 3, 2))
    real[1:41, 1] += 0.5
    nulls[50:60, :, 0] = nulls[60:70, :, 1] = 0.9
    ids = np.array([id_of(k) for k in range(400)])
    members = [ids[50:60].tolist(), ids[60:70].tolist()] if kind == "rows" else ()
    if kind == "signs":
        nulls[50:70] = 0
    run, _ = lay_matched(tmp_path / "run", real, nulls, kind, members)
    scores = pq.read_table(f"{run.folder.path}/scores.parquet")
    above = dict(zip(scores["id"].to_pylist(), scores["above_null"].to_pylist(), strict=True))
    assert above[ids[0]] is None and scores["above_null"].null_count == 1
    assert all(above[row] for row in ids[1:41])
    assert sum(value is True for value in above.values()) <= 48
    found = found_null(run)
    assert (found.selected, found.above, found.rows) == (20, 20, 399) and found.excess > 3
    assert [part.selected for part in found.parts] == [0, 20, 0]
    assert found.parts[0].pool == found.parts[2].pool == 0 and found.parts[1].above == 20
    assert f"null: {found.sentence}" in " ".join(shown(run).split())
    assert found.sentence.startswith("of 20 selected rows 20 stand above what random")


def test_a_selection_of_noise_is_called_noise(tmp_path):
    rng = np.random.default_rng(1)
    run, _ = lay_matched(tmp_path / "run", rng.standard_normal((400, 1)) / 9, rng.standard_normal((400, 1, 4)) / 9)
    assert found_null(run).sentence.endswith("this selection is noise")
    (alert,) = [item for item in alerts_section(Gathered(run)).blocks[0].items if item.key == "noise"]
    assert alert.level == "warning" and alert.count == 0


def test_a_run_from_before_there_was_a_null_is_shown_as_ever(tmp_path):
    scores = np.random.default_rng(0).standard_normal((40, 3)) / 5
    run = lay_gradient(tmp_path / "run", scores, "7")
    assert found_null(run).sentence.endswith("`raysift rescore` or a new run has one")
    assert found_null(run).above is None
    assert "made before runs had a null" in " ".join(shown(run).split())
    told = explain(str(run.folder.path), table(run)["id"][0].as_py(), pairs=False)
    assert len(told.matches[0]) == 3 and not any("stand above" in reason for reason in told.reasons)
    assert "made before runs had a null" in json.dumps(record_of([run]))
    assert NullColumns.of(run.manifest("targets").values).why == OLD


def test_a_comparison_has_the_share_above_the_null_of_each_method_by_gradient():
    def chosen(name, seed, null):
        return Chosen(name, seed, None, (), "", np.arange(3), 9, 1.0, None, null)

    own = [FoundNull("three of four", "signs", 9, 9, 4, above) for above in (3, 1)]
    lines = [{"name": "rose", "length_rank": None}, {"name": UNIFORM, "length_rank": None}]
    tell_null(lines, [chosen("rose", 0, own[0]), chosen("rose", 1, own[1]), chosen(UNIFORM, 0, None)])
    assert [(line["above_null"], line["null"]) for line in lines] == [(0.5, "three of four"), (None, None)]
    found = {"methods": [line | {"verdict": "v"} for line in lines], "indicative": False}
    assert rendering.sentences(found) == ["v", "rose: three of four"]
    assert rendering.sentences({"methods": [{"name": "rose", "verdict": "v"}], "indicative": False}) == ["v"]
