"""A target beside the pool: the sample of rows, and what is said of a target in another language, for every kind of target."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysift.jobs.commands.console import Console
from raysift.jobs.commands.show import show_run
from raysift.jobs.gradients.targeting import like_pool, read_targets
from raysift.jobs.policy.stages import like_pool as like_pool_of_policies
from raysift.jobs.pool.target_check import LIKENESS
from raysift.jobs.runs.run import Run, StageResult
from raysift.jobs.runs.samples import MOST_FILES, sample_rows, texts_of
from raysift.nano.world import examples, generate_pool
from raysift.pool.row_ids import row_id
from raysift.records import ID, MESSAGE, MESSAGES, Message
from raysift.settings.config import make_config, make_selector
from raysift.storage import open_location

from ..conftest import nano_pairs, write_lines  # noqa: TID252

FRENCH = "Combien de pommes reste-t-il dans le panier quand on en prend la moitié pour les enfants de la maison ?"
RUSSIAN = "Сколько яблок останется в корзине, если половину взять для детей?"
FOREIGN = [
    {"messages": [{"role": "user", "content": RUSSIAN}, {"role": "assistant", "content": f"Их {i}"}]} for i in range(9)
]


def rows_table(records):
    ids = [row_id([Message(**message) for message in record["messages"]]) for record in records]
    messages = pa.array([record["messages"] for record in records], pa.list_(MESSAGE))
    return pa.table({ID: pa.array(ids, pa.int64()), MESSAGES: messages})


def compare_target(run, config, rows):
    """By the method's own kind of target."""
    if config.method == "raise":
        return like_pool_of_policies(run, config, rows)
    selector = make_selector(config)
    return like_pool(run, config, selector, read_targets(config, selector), rows)


def ingested(run, table):
    def body(folder):
        pq.write_table(table, (folder / "rows.parquet").path)
        counts = {"rows_in": len(table), "kept": len(table), "rejected": {}, "failed": 0, "bad_files": {}}
        return StageResult(files={"rows": ["rows.parquet"]}, counts=counts)

    return run.stage("ingest", {}, {"rows": len(table)}, body)


@pytest.fixture
def pool(tmp_path):
    """A run whose ingest is finished: what a target is compared with."""
    run = Run(tmp_path / "run", Console("plain"))

    return run, ingested(run, rows_table(list(generate_pool(400, 0))))


def test_the_sample_is_the_lowest_ids_however_the_pool_is_split(tmp_path):
    table = rows_table(list(generate_pool(300, 1)))
    lowest = np.sort(table[ID].to_numpy())[:50]
    for parts in (1, 2, 7, MOST_FILES):
        places = []
        for number in range(parts):
            places.append(open_location(str(tmp_path / f"{parts}-{number}.parquet")))
            pq.write_table(table.take(pa.array(np.arange(number, len(table), parts))), places[-1].path)
        sample = sample_rows(places, 50)
        np.testing.assert_array_equal(sample[ID].to_numpy(), lowest)
    whole = dict(zip(table[ID].to_pylist(), texts_of(table), strict=True))
    assert list(texts_of(sample)) == [whole[id_] for id_ in lowest]


def test_of_a_pool_in_many_files_some_are_read(tmp_path):
    table = rows_table(list(generate_pool(80, 1)))
    places = [open_location(str(tmp_path / f"{number}.parquet")) for number in range(2 * MOST_FILES)]
    for number, place in enumerate(places):
        pq.write_table(table.slice(number, 1), place.path)
    assert set(sample_rows(places, 50)[ID].to_pylist()) == set(table[ID].to_pylist()[: 2 * MOST_FILES : 2])


@pytest.mark.parametrize("method", ["rose", "less", "raise"])
def test_a_target_in_another_language_is_said_by_file_and_kept(pool, tmp_path, method, capsys):
    run, rows = pool
    if method == "rose":
        good = nano_pairs(8, 0)
        french = [pair | {"prompt": [{"role": "user", "content": FRENCH}], "chosen": FRENCH} for pair in good]
    else:
        good = list(examples(8, 0, ["add"]))
        french = [example | {"id": f"fr{i}", "prompt": FRENCH} for i, example in enumerate(good)]
    paths = [write_lines(tmp_path / "own.jsonl", good), write_lines(tmp_path / "french.jsonl", french)]
    config = make_config({"method": method, "target": paths})
    found = compare_target(run, config, rows).values[LIKENESS]
    assert found[paths[0]]["usual_words"] > 0.5 and found[paths[1]]["usual_words"] < 0.25
    said = capsys.readouterr().err
    assert f"likeness: {paths[1]}: " in said and "of its words are usual in a sample of 400 rows of the pool" in said
    assert paths[0] not in said
    show_run(str(tmp_path / "run"), Console("plain"))
    assert f"{paths[1]}: " in capsys.readouterr().err


@pytest.mark.parametrize("method", ["less", "raise"])
def test_another_pool_is_compared_anew_also_where_the_targets_stages_are_taken_over(pool, tmp_path, method):
    run, rows = pool
    config = make_config(
        {"method": method, "target": [write_lines(tmp_path / "t.jsonl", list(examples(8, 0, ["add"])))]}
    )
    own = ingested(Run(tmp_path / "own", reuse=[str(tmp_path / "run")]), rows_table(FOREIGN))
    first = compare_target(run, config, rows).values[LIKENESS]
    other = compare_target(Run(tmp_path / "own"), config, own).values[LIKENESS]
    assert [figures["script_share_of_pool"] for figures in (*first.values(), *other.values())] == [1.0, 0.0]


@pytest.mark.parametrize("method", ["rose", "less"])
def test_target_files_are_read_once_a_run(pool, tmp_path, method):
    """What the check has read is what the stages after it work with: they need only the name and the hash of a file."""
    run, rows = pool
    records = nano_pairs(8, 0) if method == "rose" else list(examples(8, 0, ["add"]))
    path = write_lines(tmp_path / "target.jsonl", records)
    config = make_config({"method": method, "target": [path]})
    selector = make_selector(config)
    found = read_targets(config, selector)
    (tmp_path / "target.jsonl").write_text("no record")
    assert like_pool(run, config, selector, found, rows).counts["kept"] == 8
