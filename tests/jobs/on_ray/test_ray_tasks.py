"""Plain Ray tasks: what a failed one says."""

import pyarrow as pa
import pytest

from raysift.errors import DataError, StageError
from raysift.jobs.on_ray.ray_tasks import run_tasks
from raysift.settings.resources import Resources
from raysift.storage import open_location

pytestmark = pytest.mark.ray


def break_on(place, error):
    raise error


def test_a_damaged_file_is_named_with_what_to_do(ray_local, tmp_path):
    shard = open_location(tmp_path / "part-00007.parquet")
    tasks = [(shard, pa.ArrowInvalid("Parquet magic bytes not found"))]
    with pytest.raises(
        StageError, match=r"shards: task 0 of 1 \(.*part-00007\.parquet\) did not .*magic.*\. Delete it\."
    ):
        list(run_tasks(break_on, tasks, Resources(), "shards", "Delete it."))


def test_an_error_of_ours_stays_what_it_is(ray_local, tmp_path):
    with pytest.raises(DataError) as caught:
        list(run_tasks(break_on, [(None, DataError("ingest: no rows."))], Resources(), "shards"))
    assert str(caught.value) == "ingest: no rows."
