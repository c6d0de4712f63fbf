"""RDS+ from end to end: the same selection however the work and the target's lines are laid out."""

import orjson
import pytest

from raysift.jobs.recipes import run_method
from raysift.jobs.runs.run import Run
from raysift.jobs.runs.tables import read_ids
from raysift.nano.world import examples, write_pool
from raysift.settings.config import make_config

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    home = tmp_path_factory.mktemp("world")
    write_pool(home / "pool.jsonl", 80, 3)
    asked = [orjson.dumps(row) + b"\n" for row in examples(5, 3, ["last_letters", "roman"])]
    (home / "target.jsonl").write_bytes(b"".join(asked))
    (home / "turned.jsonl").write_bytes(b"".join(asked[::-1]))
    return home


def chosen(folder, world, target="target.jsonl", **resources):
    config = make_config(
        {
            "method": "rds",
            "pool": [str(world / "pool.jsonl")],
            "target": [str(world / target)],
            "budget": "12",
            "resources": {"threads": 1, **resources},
        }
    )
    run = Run(str(folder))
    return read_ids(run.files(run_method(run, config), "rows")).tolist()


def test_workers_batches_and_the_order_of_the_target_change_nothing(world, tmp_path):
    one = chosen(tmp_path / "one", world, workers=1)
    assert len(set(one)) == 12
    assert chosen(tmp_path / "two", world, "turned.jsonl", workers=2, batch_rows=7, block_rows=30) == one
