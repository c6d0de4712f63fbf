"""RDS+ from end to end: the same selection however the work and the target's lines are laid out."""

import orjson
import pyarrow.parquet as pq
import pytest

from raysift.config import make_config
from raysift.jobs.explaining.explain import explain
from raysift.jobs.recipes import run_method
from raysift.jobs.report.why import why
from raysift.jobs.runs.run import Run, open_run
from raysift.jobs.runs.tables import read_ids
from raysift.nano.world import examples, write_pool

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    home = tmp_path_factory.mktemp("world")
    write_pool(home / "pool.jsonl", 80, 3)
    asked = [orjson.dumps(row) + b"\n" for row in examples(5, 3, ["last_letters", "roman"])]
    (home / "target.jsonl").write_bytes(b"".join(asked))
    (home / "turned.jsonl").write_bytes(b"".join(asked[::-1]))
    return home


def chosen(folder, world, target="target.jsonl", budget="12", **resources):
    config = make_config(
        {
            "method": "rds",
            "pool": [str(world / "pool.jsonl")],
            "target": [str(world / target)],
            "budget": budget,
            "reuse": [str(folder.parent / "run")] if budget != "12" else [],
            "resources": {"threads": 1, **resources},
        }
    )
    run = Run(str(folder), reuse=config.reuse)
    with run.replayable(config.model_dump(mode="json")):
        pass
    return read_ids(run.files(run_method(run, config), "rows")).tolist()


def test_workers_batches_and_the_order_of_the_target_change_nothing(world, tmp_path):
    one = chosen(tmp_path / "one", world, workers=1)
    assert len(set(one)) == 12
    assert chosen(tmp_path / "two", world, "turned.jsonl", workers=2, batch_rows=7, block_rows=30) == one


def test_a_row_is_told_the_examples_nearest_to_it_and_the_budget_that_its_turn_takes(world, tmp_path):
    taken = chosen(tmp_path / "run", world)
    table = pq.read_table(tmp_path / "run" / "scores.parquet").to_pylist()
    row = next(line for line in table if line["id"] not in taken)
    found = explain(tmp_path / "run", row["id"])
    assert [pull.pull for pull in found.pulls] == sorted(row["by_subtask"], reverse=True)
    assert found.pulls[0].record == row["subtask"]
    asked = {example["id"]: example for example in examples(5, 3, ["last_letters", "roman"])}
    assert found.pulls[0].text == asked[row["subtask"]]["prompt"]
    (change,) = found.changes
    budget = change.settings[0].removeprefix("budget=")
    assert row["id"] in chosen(tmp_path / "again", world, budget=budget)
    assert row["id"] not in chosen(tmp_path / "less", world, budget=str(int(budget) - 1))
    (texts,) = why(open_run(str(tmp_path / "run")), True).blocks
    assert sum(item.figures["chosen rows"] for item in texts.items) <= 12
    assert all(item.text for item in texts.items)
