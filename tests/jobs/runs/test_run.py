"""A run folder: skip what is done, continue what was cut off, refuse what does not fit."""

import errno
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from pyarrow.fs import LocalFileSystem

from raysift.errors import ConfigError, DataError, StageError, StaleRunError
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import Run, StageResult, free_name, open_run
from raysift.jobs.runs.tables import publish
from raysift.manifest import read_manifest
from raysift.storage import Location, open_location


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
    with run.replayable({"method": "uniform", "pool": ["/ä.jsonl"]}):
        assert not saved.exists()  # nothing is made with these settings yet
        stage(run)
        assert yaml.safe_load(saved.read_text()) == {"method": "uniform", "pool": ["/ä.jsonl"]}
    with pytest.raises(StaleRunError), run.replayable({"method": "longest"}):
        stage(run, settings={"alpha": 2})
    assert yaml.safe_load(saved.read_text())["method"] == "uniform"


def test_the_config_is_that_of_the_command_that_went_on_with_the_run(tmp_path):
    saved = tmp_path / "r/run.yaml"
    with pytest.raises(DataError), Run(tmp_path / "r").replayable({"pool": ["/wrong"]}):
        raise DataError("no such pool")
    assert not (tmp_path / "r").exists()
    with pytest.raises(DataError), Run(tmp_path / "r").replayable({"pool": ["/right"]}):
        run = Run(tmp_path / "r")
        with run.replayable({"pool": ["/right"]}):
            stage(run)
            raise DataError("a later stage failed")
    assert yaml.safe_load(saved.read_text()) == {"pool": ["/right"]}
    later = Run(tmp_path / "r")
    with later.replayable({"pool": ["/right"], "train": True}):
        stage(later)
        assert "train" not in yaml.safe_load(saved.read_text())  # skipped: nothing was made with the new settings
        later.stage("more", {}, {}, lambda _: StageResult())
    assert yaml.safe_load(saved.read_text()) == {"pool": ["/right"], "train": True}


def test_a_step_added_to_a_selection_leaves_its_config(tmp_path):
    for settings in ({"method": "less"}, {"method": None, "test": ["/t"]}):
        run = Run(tmp_path / "r")
        with run.replayable(settings):
            run.stage(str(settings["method"]), {}, {}, lambda _: StageResult())
    assert yaml.safe_load((tmp_path / "r/run.yaml").read_text()) == {"method": "less"}


def test_names_in_the_config_mean_the_same_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("model", "nano"):
        (tmp_path / folder).mkdir()
    given = {
        "pool": ["p.jsonl", "data/*.jsonl", "s3://b/x?a=b"],
        "target": ["~/t.jsonl"],
        "model": "model",
        "less": {"warmup_from": "runs/a", "warmup": {"epochs": 2}},
        "quality": {"scorer": {"model": "nano"}},
        "win_rate": {"against": {"model": "owner/name", "answers": "b.parquet"}},
    }
    run = Run("r")
    with run.replayable(given):
        stage(run)
    assert yaml.safe_load((tmp_path / "r/run.yaml").read_text()) == {
        "pool": [f"{tmp_path}/p.jsonl", f"{tmp_path}/data/*.jsonl", "s3://b/x?a=b"],
        "target": [f"{Path.home()}/t.jsonl"],
        "model": f"{tmp_path}/model",
        "less": {"warmup_from": f"{tmp_path}/runs/a", "warmup": {"epochs": 2}},
        "quality": {"scorer": {"model": "nano"}},
        "win_rate": {"against": {"model": "owner/name", "answers": f"{tmp_path}/b.parquet"}},
    }


def test_a_folder_of_other_files_is_no_place_for_a_run(tmp_path):
    own = tmp_path / "mine"
    own.mkdir()
    Run(own)  # an empty folder is
    (own / ".keep").write_text("")
    Run(own)
    (own / "run.yaml").write_text("mine: true")
    with pytest.raises(ConfigError, match=r"is no run folder: it holds 'run\.yaml'.*--run"):
        Run(own)
    assert [file.name for file in own.iterdir()] == [".keep", "run.yaml"]
    for name in ("", " ", "/"):
        with pytest.raises(ConfigError, match=r"empty|is no run folder"):
            Run(name)


def test_places_that_the_system_refuses_are_told_with_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    for name in (tmp_path / "file", tmp_path / "file/r", tmp_path / ("x" * 300), "/proc/r"):
        with pytest.raises(ConfigError, match=r"^run: .*(is a file|cannot)"):
            stage(Run(name))


def test_a_finished_run_can_be_asked_where_nothing_can_be_written(tmp_path, monkeypatch):
    with (made := Run(tmp_path / "r")).replayable({"method": "uniform"}):
        first = stage(made)
    (tmp_path / "r/table").write_text("1")

    def refuses(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Location, "whole", refuses)  # as root may write anywhere
    run = Run(tmp_path / "r")
    with run.replayable({"method": "uniform"}):
        assert stage(run) == first
    publish(run.folder / "table", run.folder / "table")
    with pytest.raises(PermissionError):
        run.record("started", "count")


def test_what_stages_need_is_started_with_the_first_that_has_work_to_do(tmp_path):
    log: list[str] = []
    stage(Run(tmp_path / "r", start=lambda: log.append("started")), log=log)
    assert log[0] == "started"
    stage(Run(tmp_path / "r", start=lambda: log.append("started again")))
    assert len(log) == 2


def test_an_error_of_the_system_inside_a_stage_is_a_sentence(tmp_path):
    def fails(folder):
        raise OSError(errno.ENOSPC, "No space left on device", "/r/x")

    with pytest.raises(StageError, match=r"left on device: '/r/x'\. Make room; the same command continues"):
        Run(tmp_path / "r").stage("count", {}, {}, fails)
    with pytest.raises(DataError, match=r"^files: there is no '/nowhere/x'\. Check the name"):
        Run(tmp_path / "r").stage("count", {}, {}, lambda _: pq.read_table("/nowhere/x", filesystem=LocalFileSystem()))


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


@pytest.mark.parametrize("content", [None, "do"])
def test_a_finished_stage_whose_file_is_lost_or_cut_off_is_told_with_what_to_do(tmp_path, content):
    manifest = stage(Run(tmp_path / "r"))
    file = tmp_path / "r/count" / manifest.fingerprint / "out.txt"
    file.unlink() if content is None else file.write_text(content)
    found = rf"{file} " + ("is gone" if content is None else "has 2 bytes, the stage left 4")
    with pytest.raises(
        DataError, match=rf"count: this stage of .*/r is finished, but {found}.*delete .*/r/count to do"
    ):
        stage(Run(tmp_path / "r"))
    file.write_text("done")
    assert stage(Run(tmp_path / "r")) == manifest


def test_files_in_a_folder_that_a_stage_names_are_looked_after_too(tmp_path):
    def body(folder):
        (folder / "epoch-1/adapter/weights").write("weights")
        return StageResult(files={"epochs": ["epoch-1"]})

    manifest = Run(tmp_path / "r").stage("final", {}, {}, body)
    assert manifest.sizes == {f"{manifest.fingerprint}/epoch-1/adapter/weights": 7}
    (tmp_path / "r/final" / manifest.fingerprint / "epoch-1/adapter/weights").unlink()
    with pytest.raises(DataError, match=r"final: .*epoch-1/adapter/weights is gone"):
        Run(tmp_path / "r").stage("final", {}, {}, body)


def test_a_damaged_line_of_the_log_ends_no_run(tmp_path):
    stage(Run(tmp_path / "r"))
    log = tmp_path / "r/events.jsonl"
    log.write_bytes(log.read_bytes() + b'{"time": "2026\n[]\n\xff\n')
    again = stage(Run(tmp_path / "r"))
    assert open_run(str(tmp_path / "r")).manifests() == [again]
    assert json.loads(log.read_text().splitlines()[-1])["event"] == "skipped"


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"runs": null}'])
def test_a_damaged_list_of_reused_runs_is_named_with_what_to_do(tmp_path, content):
    stage(Run(tmp_path / "r"))
    (tmp_path / "r/reuse.json").write_text(content)
    with pytest.raises(
        DataError, match=r"r/reuse\.json does not name the runs .* Delete it, and name them with --reuse"
    ):
        Run(tmp_path / "r")


def test_ids_of_all_64_bits_are_text_in_every_json(tmp_path, capsys):
    """Readers that round numbers beyond 2^53, as JavaScript and jq do, would name a row that is not there."""
    row, counts = -1153341648148542396, {"rows": 2**53, "share": 0.5, "done": True}
    run = Run(str(tmp_path), Console("json"))
    run.record("failed", "score", first=row, counts=counts, near=[{"id": row}])
    run.console.table("Rows", ["id", "rank"], [(row, 1)])
    said = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    for event in (json.loads((tmp_path / "events.jsonl").read_text()), said[0]):
        assert (event["first"], event["counts"], event["near"]) == (
            "effe81e1b5714c44",
            counts,
            [{"id": "effe81e1b5714c44"}],
        )
    assert said[1]["rows"] == [["effe81e1b5714c44", 1]]
