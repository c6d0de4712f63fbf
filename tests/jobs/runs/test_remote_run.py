"""A run on an object store is a run like any other: same selection, skipped when done, loadable again."""

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import yaml

import raysift
from raysift.actors.loaded import load
from raysift.actors.train_checkpoints import epoch_records, template_of
from raysift.config import make_config
from raysift.jobs import stages
from raysift.jobs.commands.cli import app
from raysift.jobs.gradients.given_checkpoints import adopt_checkpoints
from raysift.jobs.gradients.stages import checkpoints_of
from raysift.jobs.policy.transfer import learned_by
from raysift.jobs.runs.run import Run, StageResult, open_run
from raysift.nano.world import examples, generate_pool
from raysift.records import ROWS
from raysift.storage import open_location

TRAIN = {"recipe": "nano", "epochs": 1, "max_length": 128}
HERE = {"train": 0, "workers": 1}


def ingested(run, count=8):
    """Rows as `ingest` leaves them, without Ray."""
    rows = [{"id": n, "source": "nano", **row} for n, row in enumerate(generate_pool(count, 0))]

    def body(folder):
        pq.write_table(pa.Table.from_pylist(rows, ROWS), (folder / "rows.parquet").path, filesystem=folder.fs)
        return StageResult(files={"rows": ["rows.parquet"]}, counts={"rows_in": count, "kept": count})

    return run.stage("ingest", {}, {}, body)


@pytest.fixture(scope="module")
def warmed():
    """A run whose `warmup` has trained two epochs, on a store that this process alone sees."""
    run = Run("memory://warmed/run")
    config = make_config({"train": TRAIN | {"epochs": 2}, "resources": HERE})
    with run.replayable(config.model_dump(mode="json")):
        return run, stages.finetune(run, config, ingested(run), "warmup")


def test_an_adapter_is_loaded_from_where_a_remote_run_has_left_it(warmed):
    model, adapter = stages.trained_model(*warmed, "nano")
    assert model == "nano"
    assert (adapter / "adapter_config.json").exists()
    assert load(model, adapter).model.peft_config["default"].r == 16


def test_given_checkpoints_of_a_remote_folder_or_run_are_found_again(warmed):
    run, trained = warmed
    own = checkpoints_of(run, trained, None)
    for number, source in enumerate((f"{run.name}/warmup/{trained.fingerprint}", run.name, "memory://given/1")):
        adopt_checkpoints(Run(f"memory://given/{number}"), make_config({}), source)
        with Run(f"memory://given/{number}").replayable({}):
            pass
        again = open_run(f"memory://given/{number}")
        assert checkpoints_of(again, again.manifest("warmup"), None) == own


def test_a_policy_is_taken_over_from_a_remote_run():
    theirs = {"policy": {"classes": 7}}
    config = make_config({"method": "raise", "raise": theirs}).model_dump(mode="json")

    def leave(name, **files):
        def body(folder):
            for kind, text in files.items():
                (folder / kind).write(text)
            return StageResult(files={kind: [kind] for kind in files})

        return lambda run: run.stage(name, {}, {}, body)

    learned = [leave("learn", policy="own"), leave("features", fitted="classes")]
    searched = [leave("search", best=yaml.safe_dump(config), policy="own", fitted="classes")]
    for source, left in (("memory://learned/run", learned), ("memory://searched/run", searched)):
        run = Run(source)
        with run.replayable(config):
            for do in left:
                do(run)
        found = learned_by(getattr(make_config({"raise": {"policy_from": source}}), "raise"))
        assert (found.policy.read_text(), found.fitted.read_text()) == ("own", "classes")
        assert found.settings.policy.classes == 7


def test_a_full_fine_tune_on_a_store_is_loaded_from_there(tmp_path, monkeypatch):
    """The name holds its content, so that a worker on another machine loads these very weights."""
    monkeypatch.setenv("RAYSIFT_CACHE", str(tmp_path))
    run = Run("memory://whole/run")
    config = make_config({"train": TRAIN | {"method": "full"}, "resources": HERE})
    with run.replayable(config.model_dump(mode="json")):
        trained = stages.finetune(run, config, ingested(run), "final")
    model, adapter = stages.trained_model(run, trained, "nano")
    assert adapter is None and model.startswith("memory://whole/run/final/") and "#" in model
    assert (
        template_of("train", model, None, "unknown") == epoch_records(trained.home / trained.fingerprint)[-1].template
    )
    saved = safetensors.numpy.load((trained.locations("epochs")[-1] / "model/model.safetensors").read_bytes())
    found = load(model, dtype="fp32").model.state_dict()
    assert len(saved) > 10 and all((found[name].numpy() == saved[name]).all() for name in saved)
    assert (tmp_path / "models" / model.partition("#")[2]).is_dir()


@pytest.mark.ray
def test_pool_and_run_on_an_object_store(ray_local, s3_uri, tmp_path):
    base, _, query = s3_uri.partition("?")
    lines = b"\n".join(orjson.dumps(row) for row in generate_pool(300, 0))
    remote_pool, run = f"{base}/pool.jsonl?{query}", f"{base}/remote?{query}"
    open_location(remote_pool).write(lines)
    (tmp_path / "pool.jsonl").write_bytes(lines)

    remote = raysift.longest(remote_pool, budget="10%", run=run)
    local = raysift.longest(str(tmp_path / "pool.jsonl"), budget="10%", run=str(tmp_path / "local"))
    assert remote.table().drop_columns("file").equals(local.table().drop_columns("file"))
    assert set(remote.table()["file"].to_pylist()) == {f"{base}/pool.jsonl"}
    assert remote.dataset().count() == len(remote) == len(local)

    again = raysift.longest(remote_pool, budget="10%", run=run)
    assert again.manifest == remote.manifest
    assert raysift.load_run(run).selection.ids == remote.ids
    place = open_location(run)
    assert (place / "selection.parquet").exists()
    assert (place / "run.yaml").exists()
    exported = [
        {f.name: f.read_bytes() for f in (run / "selected").files(".jsonl")} for run in (place, local.run.opened.folder)
    ]
    assert len(exported[0]) == 1 and exported[0] == exported[1]
    assert set(raysift.uniform(run, budget="100%", run=str(tmp_path / "chosen")).ids) == set(remote.ids)
    assert sum("skipped" in line for line in (place / "events.jsonl").read_text().splitlines()) == 4


@pytest.mark.ray
@pytest.mark.slow
def test_a_model_trained_on_an_object_store_answers_there(ray_local, s3_uri, tmp_path, monkeypatch):
    base, _, query = s3_uri.partition("?")
    pool, test = tmp_path / "pool.jsonl", tmp_path / "test.jsonl"
    pool.write_bytes(b"\n".join(orjson.dumps(row) for row in generate_pool(60, 0)))
    test.write_bytes(b"\n".join(orjson.dumps(line) for line in examples(6, 1, ["add"])))
    common = [
        "train.method=full",
        "train.epochs=1",
        "resources.train=0",
        "resources.workers=1",
        "evaluate.max_new_tokens=4",
    ]
    monkeypatch.setenv("RAYSIFT_CACHE", str(tmp_path / "cache"))
    scores = []
    for run in (f"{base}/trained?{query}", str(tmp_path / "local")):
        app(["finetune", "--pool", str(pool), "--test", str(test), "--run", run, *common], standalone_mode=False)
        scores.append(open_run(run).manifest("evaluate").values["overall"])
    assert scores[0] == scores[1]
    mods = {"seed_train": TRAIN, "generation": {"max_new_tokens": 4, "backend": "transformers"}}
    places = {"resources": HERE, "mods": mods, "budget": "6"}
    remote = raysift.mods(str(pool), run=f"{base}/mods?{query}", **places)
    assert remote.ids == raysift.mods(str(pool), run=str(tmp_path / "mods"), **places).ids
