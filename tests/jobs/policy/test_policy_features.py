"""The features of a small pool: accounted for, the same for any order of files and number of workers, and transferable."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysift.config import CommonConfig
from raysift.errors import ConfigError, DataError, StageError
from raysift.jobs import stages
from raysift.jobs.coverage.centers import embed
from raysift.jobs.policy import features as policy_features
from raysift.jobs.policy.features import difficulty, features, fit_sample
from raysift.jobs.runs.run import Run, StageResult
from raysift.manifest import Manifest
from raysift.nano.world import generate_pool
from raysift.policy.features import difficulty_block, fit_features, load_fitted, transform
from raysift.policy.pool import read_pool
from raysift.policy.settings import FeatureSettings
from raysift.records import ERROR, ID
from raysift.scoring.columns import DIFFICULTY_SCHEMA

from ... import tiny_embeddings  # noqa: TID252
from ...tiny_embeddings import write_embeddings  # noqa: TID252

SETTINGS = FeatureSettings(semantic_dimensions=6, fit_rows=100)
ROWS, WIDTH, CLASSES = 300, 10, 3
MEASURED = {"template": "auto", "max_length": None}
EMBEDDING = {"embedding": {"pooling": "mean"}}


def measures(seed=0):
    """Ids, the four measures and vectors of a pool whose rows 5 and 6 have no difficulty, 6 and 7 no vector."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 200, (2, ROWS))
    logprobs = -lengths[1] * rng.uniform(0.1, 3, (2, ROWS))
    ids = rng.choice(10**15, ROWS, replace=False) - 5 * 10**14
    vectors = (rng.standard_normal((ROWS, WIDTH)) * 0.7 ** np.arange(WIDTH)).astype(np.float32)
    return ids, [*lengths, *logprobs], vectors


def answers(ids, columns, failed):
    names = ["prompt_tokens", "answer_tokens", "logprob_given", "logprob_alone"]
    records = [
        {ID: int(ids[i]), ERROR: "no"}
        if i in failed
        else {ID: int(ids[i]), "truncated": False, **{n: c[i].item() for n, c in zip(names, columns, strict=True)}}
        for i in range(len(ids))
    ]
    return pa.Table.from_pylist(records, pa.schema([(ID, pa.int64()), *DIFFICULTY_SCHEMA, (ERROR, pa.string())]))


def stage(run: Run, name: str, settings: Any, inputs: Any, tables: list[Any]) -> Manifest:
    """What an earlier stage would have left: tables written by `write`, one a file."""

    def body(folder):
        (folder / "answers").make_folder()
        names = [f"answers/{i}.parquet" for i in range(len(tables))]
        for file, write in zip(names, tables, strict=True):
            write(folder / file)
        return StageResult(files={"answers": names}, counts={"rows_in": ROWS, "kept": ROWS - 2, "failed": 2})

    return run.stage(name, settings, inputs, body)


def measured_run(folder, order, parts, seed=0, encoder="e"):
    """A run whose rows were measured and embedded into so many files, in this order."""
    run = Run(str(folder))
    ids, columns, vectors = measures(seed)
    rows = run.stage("ingest", {"seed": seed}, {}, lambda _: StageResult(counts={"kept": ROWS}))
    mine = [part.tolist() for part in np.array_split(order, parts)]
    known = [
        lambda place, part=part: pq.write_table(
            answers(ids[part], [column[part] for column in columns], [k for k, i in enumerate(part) if i in (5, 6)]),
            place.path,
        )
        for part in mine
    ]
    vector_files = []
    for part in mine[::-1]:
        good = [i for i in part if i not in (6, 7)]
        lost = {int(ids[i]): "no" for i in part if i in (6, 7)}
        vector_files.append(lambda place, good=good, lost=lost: write_embeddings(place, ids[good], vectors[good], lost))
    measured = stage(run, "difficulty", MEASURED, {"model": "m", "rows": rows.fingerprint}, known)
    embedded = stage(run, "embed", EMBEDDING, {"encoder": encoder, "rows": rows.fingerprint}, vector_files)
    return run, rows, measured, embedded


def of(run, manifest):
    (place,) = run.files(manifest, "features")
    return read_pool(place)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    made = measured_run(tmp_path_factory.mktemp("plain"), np.arange(ROWS), 1)
    run = made[0]
    return run, features(run, CommonConfig(), SETTINGS, CLASSES, *made[1:])


def test_features_are_those_of_the_engine_over_the_rows_that_hash_lowest(plain):
    run, manifest = plain
    ids, columns, vectors = measures()
    good = np.array([i for i in range(ROWS) if i not in (5, 6, 7)])
    good = good[np.argsort(ids[good])]
    block = difficulty_block(*(column[good] for column in columns), settings=SETTINGS)
    sample = np.isin(ids[good], fit_sample(ids[good], 100, 0))
    assert sample.sum() == 100
    fitted = fit_features(block[sample], vectors[good][sample], SETTINGS, CLASSES, 0)
    expected, pool = transform(fitted, block, vectors[good]), of(run, manifest)
    assert pool.ids.tolist() == ids[good].tolist()
    assert np.array_equal(pool.features, expected.features)
    assert np.array_equal(pool.classes, expected.classes)


def test_rows_are_accounted_for_and_the_manifest_tells_the_fit(plain):
    run, manifest = plain
    assert manifest.counts == {"rows_in": ROWS, "kept": ROWS - 3, "failed": 3}
    values = manifest.values
    assert (
        values["inputs"][:3] == ["performance", "progress", "prompt_length"] and len(values["inputs"]) == 2 + 4 + 6 + 1
    )
    assert sum(values["class_sizes"]) == ROWS - 3 and len(values["class_sizes"]) == CLASSES
    assert values["fit_rows"] == 100
    assert 0.5 < sum(values["explained_variance"]) < 1
    assert np.abs(values["pool_mean"]).max() < 0.5 and len(values["difficulty_std"]) == 4
    (place,) = run.files(manifest, "fitted")
    assert load_fitted(place).difficulty_mean.tolist() == values["difficulty_mean"]


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_other_files_in_another_order_give_the_same_bytes(plain, tmp_path, monkeypatch, parts):
    monkeypatch.setattr(tiny_embeddings, "_ROW_GROUP_BYTES", 4 * WIDTH * 40)
    made = measured_run(tmp_path, np.random.default_rng(parts).permutation(ROWS), parts)
    manifest = features(made[0], CommonConfig(), SETTINGS, CLASSES, *made[1:])
    for kind in ("features", "fitted"):
        mine, first = (run.files(m, kind)[0].read_bytes() for run, m in ((made[0], manifest), plain))
        assert mine == first


@pytest.mark.ray
def test_tasks_over_shards_give_the_bytes_of_one_process(plain, ray_local, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_embeddings, "_ROW_GROUP_BYTES", 4 * WIDTH * 40)
    monkeypatch.setattr(policy_features, "SHARD_BYTES", 4 * WIDTH * 100)
    shards, usual = [], policy_features.deal
    monkeypatch.setattr(policy_features, "deal", lambda *given: shards.append(usual(*given)) or shards[-1])
    made = measured_run(tmp_path, np.random.default_rng(3).permutation(ROWS), 2)
    manifest = features(made[0], CommonConfig(), SETTINGS, CLASSES, *made[1:])
    assert [len(found) for found in shards] == [3] * 4, "range, sums, scores, and features of all rows"
    for kind in ("features", "fitted"):
        mine, first = (run.files(m, kind)[0].read_bytes() for run, m in ((made[0], manifest), plain))
        assert mine == first


def test_a_fit_is_applied_to_another_pool(plain, tmp_path):
    place = plain[0].files(plain[1], "fitted")[0]
    run, *made = measured_run(tmp_path, np.arange(ROWS), 2, seed=9)
    manifest = features(run, CommonConfig(), SETTINGS, 1, *made, fitted=place)
    pool = of(run, manifest)
    ids, columns, vectors = measures(9)
    where = np.argsort(ids)
    where = where[np.isin(ids[where], pool.ids)]
    block = difficulty_block(*(column[where] for column in columns), settings=SETTINGS)
    expected = transform(load_fitted(place), block, vectors[where])
    assert np.array_equal(pool.features, expected.features) and np.array_equal(pool.classes, expected.classes)
    assert manifest.values["fit_rows"] == 0 and len(manifest.values["class_sizes"]) == CLASSES
    assert "fitted" in manifest.inputs and "fitted" not in plain[1].inputs
    assert run.files(manifest, "fitted")[0].read_bytes() == place.read_bytes()


def test_a_fit_of_other_models_is_refused(plain, tmp_path):
    place = plain[0].files(plain[1], "fitted")[0]
    run, *made = measured_run(tmp_path, np.arange(ROWS), 1, encoder="another")
    other = SETTINGS.model_copy(update={"logprob": "sum"})
    with pytest.raises(ConfigError) as refused:
        features(run, CommonConfig(), other, CLASSES, *made, fitted=place)
    assert "difficulty.logprob: 'mean' -> 'sum'" in str(refused.value)
    assert "embedding.model: 'e' -> 'another'" in str(refused.value)


def test_stages_of_different_pools_and_pools_without_rows_are_refused(tmp_path):
    run, rows, measured, embedded = measured_run(tmp_path, np.arange(ROWS), 1)
    less = rows.model_copy(update={"counts": {"kept": 7}})
    with pytest.raises(StageError, match="300 rows were measured and 300 embedded, ingest kept 7"):
        features(run, CommonConfig(), SETTINGS, CLASSES, less, measured, embedded)
    ids, columns, _ = measures()
    everything = answers(ids, columns, range(ROWS))
    pq.write_table(everything, run.files(measured, "answers")[0].path)
    with pytest.raises(DataError, match="none of 300 rows has both a difficulty"):
        features(run, CommonConfig(), SETTINGS, CLASSES, rows, measured, embedded)


@pytest.mark.ray
@pytest.mark.slow
def test_one_worker_or_two_and_files_in_another_order(ray_local, tmp_path):
    long = "three one two " * 200  # a prompt after which no token of the answer is seen
    unseen = {"messages": [{"role": "user", "content": long}, {"role": "assistant", "content": "one"}]}
    rows, settings, pools = [*generate_pool(60, 4), unseen], FeatureSettings(semantic_dimensions=8), []
    for workers, names, order in ((1, "ab", 1), (2, "ba", -1)):
        folder = tmp_path / f"pool-{workers}"
        folder.mkdir()
        for name, part in zip(names, (rows[:20], rows[20:]), strict=True):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part[::order]))
        placed = {"workers": workers, "cpus_per_worker": 0.5, "batch_rows": 8, "block_rows": 15, "threads": 1}
        config = CommonConfig.model_validate({"pool": [str(folder)], "resources": placed})
        run = Run(str(tmp_path / f"run-{workers}"))
        kept = stages.ingest(run, config)
        known, vectors = difficulty(run, config, settings, kept), embed(run, config, settings.embedding, kept)
        manifest = features(run, config, settings, 2, kept, known, vectors)
        assert known.counts["failed"] == manifest.counts["failed"] == 1
        assert manifest.counts["kept"] == kept.counts["kept"] - 1
        assert features(run, config, settings, 2, kept, known, vectors) == manifest
        pools.append(of(run, manifest))
    one, two = pools
    assert len(one) >= 50
    assert one.ids.tolist() == two.ids.tolist()
    np.testing.assert_allclose(one.features, two.features, atol=2e-3)
    assert np.array_equal(one.classes, two.classes)
