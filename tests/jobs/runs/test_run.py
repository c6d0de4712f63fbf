"""A run folder: skip what is done, continue what was cut off, refuse what does not fit."""

import json

import pytest
import yaml

from raysift.errors import ConfigError, DataError, StaleRunError
from raysift.jobs.runs.run import Run, StageResult, free_name, open_run
from raysift.manifest import read_manifest
from raysift.storage import open_location


def stage(run, settings=None, inputs=None, log=None, version=1):
    def body(folder):
        (log if log is not None else []).append(folder.path)
        (folder / "out.txt").write("done")
        return StageResult(files={"out": ["out.txt"]}, counts={"rows_in": 3, "kept": 3}, values={"x": 1}, rows=3)

    return run.stage("count", settings or {"alpha": 1}, inputs or {"pool": "aa"}, body, version=version)


def test_a_finished_stage_is_skipped_and_gives_the_same_manifest(tmp_path):
    log: list[str] = []
    first = stage(Run(tmp_path / "r"), log=log)
    second = stage(Run(tmp_path / "r"), log=log)
    assert len(log) == 1
    assert first == second
    assert first.counts == {"rows_in": 3, "kept": 3}
    assert first.rows_per_second > 0
    assert first.versions["raysift"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"settings": {"alpha": 2}}, "settings.alpha: 1 -> 2"),
        ({"inputs": {"pool": "bb"}}, "inputs.pool: 'aa' -> 'bb'"),
        ({"settings": {"alpha": 1, "beta": 0}}, r"settings.beta: \(absent\) -> 0"),
        ({"version": 2}, "the version of the stage"),
    ],
)
def test_other_settings_or_inputs_are_refused_field_by_field(tmp_path, change, line):
    stage(Run(tmp_path / "r"))
    with pytest.raises(StaleRunError, match=line):
        stage(Run(tmp_path / "r"), **change)


@pytest.mark.ray
def test_an_error_of_a_ray_task_is_told_in_one_sentence_without_its_traceback(ray_local, tmp_path):
    import ray

    @ray.remote(max_retries=0)
    def work():
        raise DataError("targets: nothing to work on.")

    run = Run(tmp_path / "r")
    with pytest.raises(DataError) as caught:
        run.stage("targets", {}, {}, lambda folder: ray.get(work.remote()))
    assert str(caught.value) == "targets: nothing to work on."
    last = json.loads((tmp_path / "r/events.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["error"]) == ("failed", "targets: nothing to work on.")


def test_a_killed_stage_continues_in_its_own_folder_and_only_with_the_same_settings(tmp_path):
    run = Run(tmp_path / "r")

    def dies(folder):
        (folder / "half.txt").write("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.stage("count", {"alpha": 1}, {}, dies)
    assert read_manifest(run.folder / "count") is None

    seen = {}

    def continues(folder):
        seen["half"] = (folder / "half.txt").exists()
        return StageResult()

    again = Run(tmp_path / "r")
    again.stage("count", {"alpha": 2}, {}, continues)
    assert seen == {"half": False}  # other settings start in a folder of their own
    (again.folder / "count" / "manifest.json").delete()
    again.stage("count", {"alpha": 1}, {}, continues)
    assert seen == {"half": True}


def test_files_that_the_manifest_does_not_name_do_not_count(tmp_path):
    run = Run(tmp_path / "r")
    manifest = stage(run)
    (run.folder / "count" / manifest.fingerprint / "stray.txt").write("x")
    assert [place.name for place in run.files(manifest, "out")] == ["out.txt"]
    assert run.files(manifest, "other") == []


def test_events_tell_what_happened_and_survive_a_restart(tmp_path):
    stage(Run(tmp_path / "r"))
    stage(Run(tmp_path / "r"))
    lines = [json.loads(line) for line in (tmp_path / "r/events.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["started", "finished", "skipped"]
    assert [m.stage for m in open_run(str(tmp_path / "r")).manifests()] == ["count"]


def test_a_failure_is_an_event_too(tmp_path):
    run = Run(tmp_path / "r")

    def fails(_):
        raise DataError("count: no rows")

    with pytest.raises(DataError):
        run.stage("count", {}, {}, fails)
    assert json.loads((tmp_path / "r/events.jsonl").read_text().splitlines()[-1])["error"] == "count: no rows"


def test_a_damaged_manifest_is_named(tmp_path):
    stage(Run(tmp_path / "r"))
    (tmp_path / "r/count/manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"count/manifest\.json cannot be read"):
        stage(Run(tmp_path / "r"))


def test_the_config_is_kept_as_yaml_and_not_lost_to_settings_that_the_run_refuses(tmp_path):
    run, saved = Run(tmp_path / "r"), tmp_path / "r/run.yaml"
    with run.replayable({"method": "uniform", "pool": ["ä.jsonl"]}):
        assert yaml.safe_load(saved.read_text()) == {"method": "uniform", "pool": ["ä.jsonl"]}
        stage(run)
    with pytest.raises(StaleRunError), run.replayable({"method": "longest"}):
        stage(run, settings={"alpha": 2})
    assert yaml.safe_load(saved.read_text())["method"] == "uniform"


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match="is no run folder"):
        open_run(str(tmp_path))


def test_free_names_count_up(tmp_path):
    assert free_name(str(tmp_path / "r")) == str(tmp_path / "r")
    (tmp_path / "r").mkdir()
    (tmp_path / "r-2").mkdir()
    assert free_name(str(tmp_path / "r")) == str(tmp_path / "r-3")


def test_free_names_of_a_uri_count_up_before_its_query(s3_uri):
    base, _, query = s3_uri.partition("?")
    wanted = f"{base}/free?{query}"
    for name in ("free", "free-2"):
        assert free_name(wanted) == f"{base}/{name}?{query}"
        (open_location(f"{base}/{name}?{query}") / "events.jsonl").write("")
    assert free_name(f"{base}/free/?{query}") == f"{base}/free-3?{query}"


def test_no_password_comes_into_the_files_of_a_run(tmp_path):
    uri = "s3://KEY:secret@bucket/runs/a"
    with pytest.raises(ConfigError, match="holds a password"):
        Run(tmp_path / "b", reuse=[uri])
    with (
        pytest.raises(ConfigError, match="holds a password"),
        Run(tmp_path / "b").replayable({"pool": [uri], "train": {"note": "a long text " * 20 + uri}}),
    ):
        pass
    assert not [file for file in open_location(tmp_path / "b").files(recursive=True) if b"secret" in file.read_bytes()]
