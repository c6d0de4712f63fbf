"""Of a large pool a report holds a sample, bins and a few rows: its size does not grow with the pool."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sound_reports import blocks, sound

from raysift.draws import seed_for, uniform_of
from raysift.jobs.report import gather
from raysift.jobs.report.record import report_of
from raysift.jobs.report.scored import Quotas, draw, read_scored
from raysift.jobs.runs.run import open_run
from raysift.storage import open_location

from .conftest import made_run, pool_of

MANY, TAKEN = 2_000_000, 1_000


def scores_of(ids):
    return uniform_of(ids, 5)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Scores of two million rows in files of several row groups; every tenth failed."""
    place = open_location(str(tmp_path_factory.mktemp("many")))
    ids = np.random.default_rng(0).permutation(MANY).astype(np.int64)
    scores = pa.array(scores_of(ids), mask=ids % 10 == 0)
    for number, part in enumerate(np.array_split(np.arange(MANY), 3)):
        columns = {"id": ids[part], "score": scores.take(pa.array(part))}
        pq.write_table(pa.table(columns), f"{place.path}/{number}.parquet", compression="none")
    return place.files()


def test_two_million_scores_leave_bins_a_sample_and_a_few_rows(table):
    ids = np.arange(MANY)
    scored = ids[ids % 10 != 0]
    order = scored[np.lexsort((scored, -scores_of(scored)))]
    chosen = order[:TAKEN]
    found = read_scored(table, chosen, scores_of(chosen), Quotas(), sampled=10_000)
    assert found.rows == MANY and found.missing == MANY // 10
    assert found.pool.sum() == MANY - found.missing and found.selected.sum() == TAKEN and len(found.pool) == 40
    assert found.cut == scores_of(chosen).min()
    assert [line["id"] for line in found.notable["just out"]] == order[TAKEN : TAKEN + 40].tolist()
    assert [line["id"] for line in found.notable["bottom"]] == order[:-41:-1].tolist()
    assert 8_000 < len(found.ids) < 10_000 and not found.is_whole
    assert (found.scores == scores_of(found.ids)).all()
    assert abs(np.mean(found.scores) - np.mean(scores_of(scored))) < 0.02
    held = sum(len(lines) for lines in found.notable.values())
    assert held <= 80


def test_the_sample_is_decided_by_the_ids_alone():
    ids = np.arange(50_000)
    whole = ids[draw(ids, 1000, 50_000)]
    parts = [part[draw(part, 1000, 50_000)] for part in np.array_split(np.random.default_rng(1).permutation(ids), 7)]
    assert sorted(np.concatenate(parts).tolist()) == whole.tolist()
    assert 850 < len(whole) < 1150 and draw(ids, 50_000, 50_000).all()
    assert seed_for(0, "report") != seed_for(0, "random rows")


def test_the_record_of_a_pool_ten_times_as_large_is_as_small(tmp_path, monkeypatch):
    monkeypatch.setattr(gather, "SAMPLED", 500)
    sizes = []
    for count in (1_000, 10_000):
        run = made_run(tmp_path / str(count), pool_of(count, np.random.default_rng(0).random(count)), budget="100")
        plain = sound(report_of(open_run(str(run.folder))))
        assert "drawn by id" in blocks(plain, "scores", "what_if")[0]["note"]
        sizes.append(len(json.dumps(plain)))
    assert sizes[1] < 1.05 * sizes[0]
