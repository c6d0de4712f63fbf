"""`map_rows` on a real local Ray: each row once, whatever the number of workers and whoever is killed."""

import json
import signal
import subprocess
import sys
import textwrap
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysift.actors.contract import Failed, RowActor
from raysift.errors import ModelError, StageError
from raysift.jobs.runs.progress import Bar
from raysift.records import ERROR, ID
from raysift.settings.resources import Resources
from raysift.storage import open_location

pytestmark = pytest.mark.ray


class Lengths(RowActor):
    """Length of `text`; 7 fails, 11 raises for its whole batch."""

    inputs = ("text",)
    outputs = pa.schema([("n", pa.int64()), ("attempt", pa.int64())])

    def __init__(self, attempt=1, breaker=200):
        self.attempt = attempt
        self.max_failures_in_a_row = breaker

    def answer(self, rows):
        if any(row[ID] == 11 for row in rows):
            raise ValueError("poisoned")
        return [Failed("bad row") if row[ID] == 7 else {"n": len(row["text"]), "attempt": self.attempt} for row in rows]


class AlwaysBad(Lengths):
    def answer(self, rows):
        return [Failed("no model") for _ in rows]


class Refusing(Lengths):
    def __init__(self, kind):
        raise kind("model: the checkpoint has no weights")


def resources(**settings):
    return Resources(
        **({"block_rows": 100, "batch_rows": 16, "no_progress_timeout_s": 60, "cpus_per_worker": 0.5} | settings)
    )


def write_rows(folder, rows, files=2):
    """The rows in several files; returns their places."""
    places = []
    for number in range(files):
        ids = list(range(number, rows, files))
        path = folder / f"rows-{number}.parquet"
        pq.write_table(pa.table({ID: pa.array(ids, pa.int64()), "text": ["x" * (i % 50) for i in ids]}), path)
        places.append(open_location(path))
    return places


def read_answers(files):
    return pa.concat_tables([pq.read_table(file.path) for file in files]).sort_by(ID)


def map_lengths(files, out, actor=Lengths, arguments=None, **settings):
    from raysift.jobs.on_ray.raydata import map_rows

    return read_answers(map_rows(files, actor, arguments or {}, open_location(out), resources(**settings)))


def test_what_a_constructor_refuses_is_one_sentence_and_other_errors_keep_their_traceback(ray_local, tmp_path, capfd):
    files = write_rows(tmp_path, 40)
    time.sleep(1)  # Ray's own messages come by another thread: here those of tests before
    capfd.readouterr()
    with pytest.raises(ModelError, match=r"^model: the checkpoint has no weights$"):
        map_lengths(files, tmp_path / "ours", Refusing, {"kind": ModelError})
    time.sleep(1)
    said = "".join(capfd.readouterr())
    assert not any(word in said for word in ("Traceback", "(raylet)", "user code", "max_errored_blocks")), said
    with pytest.raises(Exception, match="the checkpoint has no weights"):
        map_lengths(files, tmp_path / "other", Refusing, {"kind": ZeroDivisionError})
    said, deadline = "", time.monotonic() + 60
    while "Traceback" not in said and time.monotonic() < deadline:
        time.sleep(0.2)
        said += "".join(capfd.readouterr())
    assert "Traceback" in said


def test_progress_ends_at_all_rows_and_leaves_nothing_in_ray(ray_local, tmp_path, monkeypatch):
    from ray.experimental.internal_kv import _internal_kv_list

    from raysift.jobs.on_ray import counts
    from raysift.jobs.on_ray.raydata import map_rows

    told = []
    monkeypatch.setattr(Bar, "update", lambda self, done, total=None, words="", tokens=0: told.append(done))
    files = write_rows(tmp_path, 300)

    def progress(total, unit="rows"):
        assert (total, unit) == (300, "rows")
        return Bar("log", "", total, unit, lambda told, words: None)

    with monkeypatch.context() as patch:
        patch.setattr(counts, "TELL_EVERY_S", 0.05)
        map_rows(files, Lengths, {}, open_location(tmp_path / "out"), resources(), rows=300, progress=progress)
    assert told == sorted(told) and 0 <= told[-1] <= 300
    assert _internal_kv_list(b"raysift-progress") == []


def test_workers_counts_add_up_and_a_named_one_goes_on_after_a_restart(ray_local):
    from raysift.jobs.on_ray.counts import Count, counted, read_counts

    with counted(Bar("log", "", 100, "rows", lambda told, words: None)) as name:
        Count(name).add(30)
        Count(name).add(12)
        Count(name, "rank 0").set(5, 9, "loss 1.5")
        Count(name, "rank 0").set(6, 9, "loss 1.2")
        told = read_counts(name)
        assert sorted(told) == [(6, 9, "loss 1.2"), (12, None, ""), (30, None, "")]
    assert read_counts(name) == []
    with counted(Bar("nowhere", "", 100, "rows", lambda told, words: None)) as name:
        assert name is None


def test_our_datasets_draw_no_bars_of_ray_data_and_a_host_s_settings_stay(ray_local):
    from ray.data import DataContext

    from raysift.jobs.on_ray.raydata import data_context

    before = DataContext.get_current().enable_progress_bars
    with data_context(resources()) as context:
        assert context is DataContext.get_current() and not context.enable_progress_bars
    assert DataContext.get_current().enable_progress_bars == before


def test_an_actor_that_refuses_later_keeps_its_name(ray_local):
    from raysift.jobs.on_ray.lives import Watch, watched

    actor = watched(Lengths, Watch("a-test"))
    assert actor().name == actor.__name__ == "Lengths"


def test_answers_do_not_depend_on_workers_batches_or_blocks(ray_local, tmp_path):
    files = write_rows(tmp_path, 1000)
    expected = None
    for workers, batch_rows, block_rows in ((1, 16, 100), (2, 1000, 2000), (7, 3, 50)):
        answers = map_lengths(
            files[::-1] if workers == 2 else files, tmp_path / f"out-{workers}",
            workers=workers, batch_rows=batch_rows, block_rows=block_rows,
        )  # fmt: skip
        expected = expected or answers
        assert answers.equals(expected)
    assert expected[ID].to_pylist() == list(range(1000))
    failed = {row[ID]: row[ERROR] for row in expected.to_pylist() if row[ERROR] is not None}
    assert failed == {7: "bad row", 11: "ValueError: poisoned"}
    assert sum(n is None for n in expected["n"].to_pylist()) == 2


def test_finished_rows_are_not_computed_again(ray_local, tmp_path):
    few, all_rows = write_rows(tmp_path, 300, files=1), tmp_path / "all"
    all_rows.mkdir()
    map_lengths(few, tmp_path / "out", arguments={"attempt": 1})
    answers = map_lengths(write_rows(all_rows, 500), tmp_path / "out", arguments={"attempt": 2})
    assert answers[ID].to_pylist() == list(range(500))
    attempts = [row["attempt"] for row in answers.to_pylist() if row[ERROR] is None]
    assert (attempts.count(1), attempts.count(2)) == (298, 200)


def test_breaker_ends_the_stage(ray_local, tmp_path):
    # Past the limit each further batch raises too, before Ray has ended the stage.
    with pytest.raises(StageError, match=r"^AlwaysBad: 2\d rows failed one after the other, the last with 'no model'"):
        map_lengths(write_rows(tmp_path, 400), tmp_path / "out", AlwaysBad, {"breaker": 20})


def test_no_files_is_an_error(ray_local, tmp_path):
    with pytest.raises(StageError, match="no files to read"):
        map_lengths([], tmp_path / "out")


DRIVER = """
    import sys, time
    import pyarrow as pa
    from raysift.actors.contract import RowActor
    from raysift.jobs.cluster.starting import start_ray
    from raysift.jobs.on_ray.raydata import map_rows
    from raysift.settings.resources import Resources
    from raysift.storage import open_location

    class Slow(RowActor):
        inputs = ("text",)
        outputs = pa.schema([("n", pa.int64()), ("attempt", pa.int64())])

        def answer(self, rows):
            time.sleep(0.01 * len(rows))
            return [{"n": len(row["text"]), "attempt": 1} for row in rows]

    start_ray()
    folder = open_location(sys.argv[1])
    map_rows(folder.files(".parquet"), Slow, {}, folder / "out",
             Resources(block_rows=50, batch_rows=10, workers=2, cpus_per_worker=0.5))
"""


def test_each_row_is_answered_once_after_the_driver_was_killed(joined, tmp_path):
    rows = 1000
    files = write_rows(tmp_path, rows)
    driver = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(DRIVER), str(tmp_path)],
        env=joined, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    done = tmp_path / "out" / "done"
    give_up = time.monotonic() + 120
    while time.monotonic() < give_up and driver.poll() is None and len(committed(done)) < 3:
        time.sleep(0.05)
    assert driver.poll() is None, driver.stderr.read().decode()[-2000:]
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    driver.stderr.close()
    assert len(committed(done)) >= 3

    answers = map_lengths(files, tmp_path / "out", arguments={"attempt": 2})
    assert answers[ID].to_pylist() == list(range(rows))
    attempts = [row["attempt"] for row in answers.to_pylist() if row[ERROR] is None]
    assert attempts.count(1) >= 100
    assert attempts.count(2) >= 100
    assert [n for i, n in enumerate(answers["n"].to_pylist()) if n is not None and n != i % 50] == []


def committed(done):
    return [path for path in done.glob("*") if "pending" not in path.name] if done.is_dir() else []


@pytest.mark.slow
def test_an_actor_is_told_to_compute_on_the_gpu_it_was_granted_and_else_on_the_cpu(tmp_path):
    """In a session with two logical GPUs, which Ray leaves visible to actors that ask for none."""
    pq.write_table(pa.table({"id": [1, 2, 3], "text": ["a", "b", "c"]}), tmp_path / "rows.parquet")
    script = """
        import json, sys
        import pyarrow as pa, pyarrow.parquet as pq, ray
        from raysift.actors.contract import RowActor
        from raysift.jobs.cluster.machines import for_role
        from raysift.jobs.cluster.starting import start_ray
        from raysift.jobs.on_ray.raydata import map_rows
        from raysift.jobs.stages import placing
        from raysift.config import make_config
        from raysift.storage import open_location

        class Where(RowActor):
            inputs, outputs = ("text",), pa.schema([("device", pa.string()), ("granted", pa.int64())])

            def __init__(self, device, **others):
                self.device = device

            def answer(self, rows):
                return [{"device": self.device, "granted": len(ray.get_gpu_ids())} for _ in rows]

        start_ray(num_cpus=3, num_gpus=2)
        folder, found = open_location(sys.argv[1]), {}
        for gpus in (0, 1):
            config = for_role(make_config({"resources": {"gpus_per_worker": gpus, "workers": 1}}), "score")
            answers = map_rows([folder / "rows.parquet"], Where, placing(config), folder / str(gpus), config.resources)
            rows = pa.concat_tables([pq.read_table(file.path) for file in answers]).to_pylist()
            found[gpus] = sorted({(row["device"], row["granted"]) for row in rows})
        print(json.dumps(found))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"0": [["cpu", 0]], "1": [["auto", 1]]}


def test_on_gpus_an_actor_sorts_a_block_of_rows_at_once():
    """Passes of 16,384 tokens out of 64 rows of real lengths would be padding for the most part."""
    from raysift.jobs.on_ray.raydata import rows_at_once
    from raysift.settings.cluster import Cluster, Machine

    here = Cluster((Machine(64, 4),), 64, 4)
    assert rows_at_once(Resources(block_rows=500).of("score", here)) == 500
    assert rows_at_once(Resources(block_rows=500).of("tokenise", here)) == 64
    assert rows_at_once(Resources(gpus=0).of("score", here)) == 64
