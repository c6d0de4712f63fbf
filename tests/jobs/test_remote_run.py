"""A run on an object store is a run like any other: same selection, skipped when done, loadable again."""

import orjson
import pytest

import raysift
from raysift.nano.world import generate_pool
from raysift.storage import open_location


@pytest.mark.ray
def test_pool_and_run_on_an_object_store(ray_local, s3_uri, tmp_path):
    base, _, query = s3_uri.partition("?")
    lines = b"\n".join(orjson.dumps(row) for row in generate_pool(300, 0))
    remote_pool, run = f"{base}/pool.jsonl?{query}", f"{base}/remote?{query}"
    open_location(remote_pool).write(lines)
    (tmp_path / "pool.jsonl").write_bytes(lines)

    remote = raysift.longest(remote_pool, budget="10%", run=run)
    local = raysift.longest(str(tmp_path / "pool.jsonl"), budget="10%", run=str(tmp_path / "local"))
    assert remote.table().equals(local.table())
    assert remote.dataset().count() == len(remote) == len(local)

    again = raysift.longest(remote_pool, budget="10%", run=run)
    assert again.manifest == remote.manifest
    assert raysift.load_selection(run).ids == remote.ids
    place = open_location(run)
    assert (place / "selection.parquet").exists()
    assert (place / "run.yaml").exists()
    assert sum("skipped" in line for line in (place / "events.jsonl").read_text().splitlines()) == 4
