"""What can go wrong: bad input is refused with its name, and a run that was cut off ends as if it had not been."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raysift
from raysift.actors.contract import RowActor
from raysift.errors import ConfigError, DataError, ModelError, StageError
from raysift.nano.world import examples, generate_pool
from raysift.records import ID
from raysift.settings.resources import Resources
from raysift.storage import open_location

STAGES = ("ingest", "lengths", "score", "choose", "final", "evaluate")


@pytest.fixture
def pool(tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_bytes(b"\n".join(orjson.dumps(row) for row in generate_pool(120, 0)))
    return str(path)


@pytest.mark.ray
def test_bad_input_is_refused_with_its_name(ray_local, pool, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"missing\.jsonl"):
        raysift.uniform(str(tmp_path / "missing.jsonl"))
    with pytest.raises(DataError, match=r"empty\.jsonl"):
        raysift.uniform(str(tmp_path / "empty.jsonl"))
    with pytest.raises(DataError, match="folder"):
        raysift.uniform(str(tmp_path / "folder"))
    with pytest.raises(ConfigError, match=r"no column 'question'.*found: .*messages"):
        raysift.uniform(pool, ingest={"columns": {"messages": "question"}})
    with pytest.raises(ConfigError, match="5000 rows asked for, the pool has"):
        raysift.uniform(pool, budget="5000")


@pytest.mark.ray
@pytest.mark.parametrize("model", ["./nowhere", "nobody/has-this-model", "nano:large"])
def test_an_unknown_model_is_refused_with_what_was_tried(ray_local, pool, model):
    with pytest.raises(ModelError, match=model.rpartition("/")[2]):
        raysift.longest(pool, model=model)


@pytest.mark.ray
def test_a_pool_of_rejected_rows_only_is_refused_and_the_reasons_are_named(ray_local, tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_text('{"instruction": "a", "output": ""}\n' * 3)
    with pytest.raises(DataError, match="empty_response"):
        raysift.uniform(str(path))


def command(tmp_path, run):
    return [
        *(sys.executable, "-m", "raysift.jobs", "longest", "--pool", str(tmp_path / "pool.jsonl")),
        *("--test", str(tmp_path / "test.jsonl"), "--train", "--run", str(run), "--log", "json"),
        *("train.epochs=2", "resources.train=0", "evaluate.limit=8", "budget=30%"),
    ]


def kill_when_it_starts(arguments, stage, environment):
    """Start the command, and SIGKILL its driver as soon as the stage has begun; True if it came to that."""
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment)
    for line in process.stderr:
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("stage") == stage and event.get("event") in ("started", "continued"):
            time.sleep(0 if stage in ("score", "choose") else 0.3)  # those two take milliseconds
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return True
    process.wait()
    return False


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_driver_killed_in_every_stage_ends_with_the_undisturbed_selection(pool, tmp_path, joined):
    lines = [orjson.dumps(e) for e in examples(8, 0, ["last_letters"], "test")]
    (tmp_path / "test.jsonl").write_bytes(b"\n".join(lines))
    once = {"capture_output": True, "text": True, "timeout": 300, "env": joined}
    subprocess.run(command(tmp_path, tmp_path / "calm"), check=True, **once)
    for stage in STAGES:
        assert kill_when_it_starts(command(tmp_path, tmp_path / "killed"), stage, joined), stage
    done = subprocess.run(command(tmp_path, tmp_path / "killed"), **once)
    assert done.returncode == 0, done.stderr
    calm, killed = (pq.read_table(tmp_path / name / "selection.parquet") for name in ("calm", "killed"))
    assert killed.equals(calm)
    for name in STAGES:
        counts = [
            json.loads((tmp_path / run / name / "manifest.json").read_text())["counts"] for run in ("calm", "killed")
        ]
        assert counts[0] == counts[1], name
    tasks = [
        json.loads((tmp_path / run / "evaluate/manifest.json").read_text())["values"]["tasks"]
        for run in ("calm", "killed")
    ]
    assert tasks[0] == tasks[1]


@pytest.mark.slow
@pytest.mark.ray
def test_a_full_disk_is_named_and_the_run_continues_once_there_is_room(tmp_path, joined):
    disk, pool = tmp_path / "disk", tmp_path / "pool.jsonl"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    pool.write_bytes(b"\n".join(orjson.dumps(row) for row in generate_pool(20_000, 0)))
    ingest = [sys.executable, "-m", "raysift.jobs", "ingest", str(pool), "--run", str(disk / "run")]
    try:
        full = subprocess.run(ingest, capture_output=True, text=True, timeout=200, env=joined)
        assert full.returncode not in (0, None)
        assert "No space left" in full.stderr
        assert "Traceback" not in full.stderr
        assert not (disk / "run/ingest/manifest.json").exists()
        subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True)
        again = subprocess.run(ingest, capture_output=True, text=True, timeout=200, env=joined)
        assert again.returncode == 0, again.stderr
        counts = json.loads((disk / "run/ingest/manifest.json").read_text())["counts"]
        assert counts["rows_in"] == 20_000 == counts["kept"] + sum(counts["rejected"].values()) + counts["failed"]
    finally:
        subprocess.run(["umount", disk], check=True)


class Wordy(RowActor):
    """Three hundred letters that no file format makes fewer."""

    outputs = pa.schema([("text", pa.string())])

    def answer(self, rows):
        return [{"text": random.Random(row[ID]).randbytes(150).hex()} for row in rows]


@pytest.mark.slow
@pytest.mark.ray
def test_a_disk_that_fills_up_under_answers_is_named_and_the_answered_rows_stay(ray_local, tmp_path):
    from raysift.jobs.on_ray.raydata import map_rows

    disk, rows = tmp_path / "disk", tmp_path / "rows.parquet"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    pq.write_table(pa.table({ID: pa.array(range(4000), pa.int64())}), rows)
    own = Resources(workers=1, cpus_per_worker=0.5, block_rows=500, no_progress_timeout_s=120)
    try:
        with pytest.raises(
            StageError, match=rf"^files: no space is left on node .* for {disk}/out/answers\. Make room"
        ):
            map_rows([open_location(rows)], Wordy, {}, open_location(disk / "out"), own)
        kept = {file.stem for file in (disk / "out" / "done").iterdir() if "pending" not in file.name}
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        files = map_rows([open_location(rows)], Wordy, {}, open_location(disk / "out"), own)
        found = pa.concat_tables([pq.read_table(file.path) for file in files])
        assert sorted(found[ID].to_pylist()) == list(range(4000))
        assert kept and kept <= {file.name.rpartition("-")[0] for file in files}
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
