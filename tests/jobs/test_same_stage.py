"""What decides a result, and nothing else, identifies it: the stages of all methods, walked with bodies that compute nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysift.actors.language_model import load_tokenizer, resolve_model
from raysift.config import make_config
from raysift.errors import DataError, ModelError
from raysift.evaluation.examples import example_key, read_examples
from raysift.gradients.moments import Moments, save_moments
from raysift.jobs.commands.search import find_settings
from raysift.jobs.pairwise.win_rate import compare
from raysift.jobs.recipes import run_method
from raysift.jobs.runs.models import find_model
from raysift.jobs.runs.run import Run, StageResult
from raysift.methods import METHODS
from raysift.nano.world import examples, generate_pool, preference_pairs
from raysift.storage import Location, open_location
from raysift.tensors import save_tensors

from .conftest import write_lines

ELSEWHERE: dict[str, Any] = {
    "workers": 7,
    "cpus_per_worker": 0.25,
    "gpus_per_worker": 0.5,
    "batch_rows": 9,
    "block_rows": 11,
    "tokens_per_pass": 512,
    "worker_gib": 1.5,
    "gpus": 4,
    "wait_s": 5,
    "restarts": 2,
    "tokenise": 5,
    "score": {"gpus": 0.25, "workers": 2},
    "embed": {"gib": 3},
    "generate": {"workers": 2, "gpus": 1},
    "gradients": {"cpus": 0.5},
    "train": {"workers": 3, "least": 2},
    "reduce": 2,
    "driver": {"cpus": 1, "gib": 4},
    "gradient_checkpointing": True,
    "threads": 3,
    "device": "cuda",
    "no_progress_timeout_s": 77,
    "engine": {"arguments": {"max_num_seqs": 8}},
}
FILES = {
    "score": "scores",
    "influence": "scores",
    "similarity": "scores",
    "order": "scores",
    "choose": "selection",
    "win_rate": "verdicts",
    "learn": "policy",
    "search": "best",
    "targets": "targets",
}
COUNTS: dict[str, dict[str, int]] = {"seeds": {"kept": 1}}
ONE_PAIR = {
    "kind": "pairs",
    "count": 1,
    "members": 1,
    "left_out": 0,
    "halves": None,
    "mean_cosine": None,
    "level": "unknown",
}
ONE_PAIR |= {"between": None, "subtasks": {"a": {}}, "against": {"count": 0, "first": []}}
VALUES = {
    "targets": {"subtasks": ["a"], "target_of": [0], "layout": "l", "projection": "p", "parameters": 64}
    | {"agreement": ONE_PAIR},
    "likeness": {"likeness": {}},
}


def left_by(stage: str, folder: Location, test: str) -> StageResult:
    """What later stages read of a stage."""
    files = {"rows": ["rows"], "epochs": ["epoch-1"], "answers": ["answers.parquet"], "fitted": ["fitted"], "table": []}
    files[FILES.get(stage, "other")] = ["made"]
    epoch = folder / "epoch-1"
    save_tensors(epoch / "adapter/adapter_model.safetensors", {"a": np.arange(3.0)}, {})
    (epoch / "adapter/adapter_config.json").write(json.dumps({"r": 4, "base_model_name_or_path": str(folder)}))
    save_moments(epoch / "moments.safetensors", Moments({"a": np.ones(3)}, {"a": np.ones(3)}, 1))
    rates = dict.fromkeys(("mean_learning_rate", "first_learning_rate", "last_learning_rate"), 1.0)
    losses = {"mean_loss": 1.0, "loss_sum": 1.0, "label_tokens": 1, "seconds": 0.1}
    (epoch / "epoch.json").write(json.dumps({"epoch": 1, "step": 1} | rates | losses))
    for name in ("made", "rows", "fitted"):
        (folder / name).write("x")
    ids = [example_key(example.id) for example in read_examples(test)]
    answers = pa.table({"id": ids, "answer": ["a"] * len(ids), "error": pa.nulls(len(ids), pa.string())})
    pq.write_table(answers, (folder / "answers.parquet").path)
    return StageResult(files, {"rows_in": 40, "kept": 40} | COUNTS.get(stage, {}), VALUES.get(stage, {}))


@pytest.fixture
def stubbed(monkeypatch, data):
    """All stages of all runs compute nothing."""
    real = Run.stage

    def stage(run, name, settings, inputs, body, version=1):
        return real(run, name, settings, inputs, lambda folder: left_by(name, folder, data["test"]), version)

    monkeypatch.setattr(Run, "stage", stage)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, str]:
    """A pool, targets, a test set, the models that methods load, and an adapter, each at a path of its own."""
    home = tmp_path_factory.mktemp("data")
    found = {
        "pool": write_lines(home / "pool.jsonl", list(generate_pool(40, 0))),
        "pairs": write_lines(home / "pairs.jsonl", list(preference_pairs(4, 0, ["add"], "correctness"))),
        "target": write_lines(home / "target.jsonl", list(examples(8, 0, ["add"], "validation"))),
        "test": write_lines(home / "test.jsonl", list(examples(4, 0, ["add"], "test"))),
    }
    for name in ("foundation", "reward", "encoder"):
        shutil.copytree(resolve_model(f"nano:{name}"), home / name)
        found[name] = str(home / name)
    left_by("tune", open_location(home).make_folder(), found["test"])
    return found | {"adapter": str(home / "epoch-1/adapter")}


JOURNEYS = [
    *(method for method in METHODS if method != "rose"),
    "rose exact",
    "rose store",
    "less store",
    "evaluate",
    "search",
    "win rate by scores",
    "win rate by comparison",
]


def walk(journey: str, data: dict[str, str], folder: Path, **changes: Any) -> dict[str, str]:
    """Fingerprints of all stages of a journey, by where their manifests lie."""
    method, _, kind = journey.partition(" ")
    scorer, vectors = {"model": data["reward"]}, {"model": data["encoder"]}
    features = {"model": data["foundation"], "embedding": vectors}
    sections: dict[str, Any] = {
        "quality": {"scorer": scorer},
        "coverage": {"embedding": vectors},
        "mods": {"scorer": scorer, "embedding": vectors, "alpha": {"quantile": 0.5}},
        "rose": {"matching": kind or "exact"},
        "less": {"matching": kind or "exact"},
        "raise": {"features": features, "episode": {"steps": 2}},
        "search": {"trials": 2, "rounds": 1, "last_rounds": 1, "grace_rounds": 1},
        "win_rate": {
            "judge": scorer if "scores" in kind else {"model": data["foundation"]},
            "by": "scores" if "scores" in kind else "comparison",
            "against": {"adapter": data["adapter"]},
        },
    }
    used = {"search": ("raise", "search"), "win": ("win_rate",)}.get(method, (method,))
    config = make_config(
        {
            "method": method if method in METHODS else "raise" if method == "search" else None,
            "pool": data["pool"],
            "target": data["pairs" if method == "rose" else "target"],
            "test": data["test"],
            "model": data["foundation"],
            "adapter": data["adapter"] if method in ("uniform", "evaluate", "raise") else None,
            "budget": "12",
            "train_on_selection": True,
            "train": {"recipe": "nano", "batch_size": 4},
            "run": str(folder),
            **{name: sections[name] for name in used if name in sections},
            **changes,
        }
    )
    run = Run(folder)
    if method == "win":
        compare(run, config, config.win_rate)
    elif method == "search":
        find_settings(run, config)
    elif method == "evaluate":
        from raysift.jobs import stages

        stages.evaluate(run, config, None)
    else:
        run_method(run, config)
    places = folder.rglob("manifest.json")
    return {str(p.parent.relative_to(folder)): json.loads(p.read_text())["fingerprint"] for p in places}


def moved(data: dict[str, str], folder: Path) -> dict[str, str]:
    """The same files elsewhere: with other times, as a download leaves them, and named from the folder they are in."""
    found = {}
    for name, path in data.items():
        copy = folder / name / Path(path).name
        if Path(path).is_dir():
            shutil.copytree(path, copy, copy_function=shutil.copyfile)
            notes = open_location(copy) / ".cache/huggingface/download/config.json.metadata"
            notes.write("0123abcd\netag\n1767225600.25\n")
        else:
            copy.parent.mkdir(parents=True)
            shutil.copyfile(path, copy)
        for file in [copy, *copy.rglob("*")]:
            os.utime(file, ns=(10**18, 10**18))
        found[name] = f"./{copy.relative_to(folder)}"
    settings = Path(found["adapter"]) / "adapter_config.json"
    place = folder / settings
    place.write_text(json.dumps(json.loads(place.read_text()) | {"base_model_name_or_path": "/gone/model"}))
    return found


@pytest.mark.parametrize("journey", JOURNEYS)
def test_where_the_files_lie_how_old_they_are_and_how_they_are_spelled_is_in_no_fingerprint(
    stubbed, data, tmp_path, monkeypatch, journey
):
    first = walk(journey, data, tmp_path / "a")
    there = moved(data, tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    assert walk(journey, there, tmp_path / "b") == first
    shutil.copytree(tmp_path / "a", tmp_path / "copied")
    assert walk(journey, there, tmp_path / "copied") == first  # and nothing of the copied run is refused


@pytest.mark.parametrize("journey", JOURNEYS)
def test_where_and_how_fast_is_in_no_fingerprint(stubbed, data, tmp_path, journey):
    first = walk(journey, data, tmp_path / "a")
    resources = ELSEWHERE | {"store": str(tmp_path / "shared")}
    assert walk(journey, data, tmp_path / "b", resources=resources) == first


LOADING = {
    "lengths": "tokenizer",
    "encode": "tokenizer",
    "embed": "encoder",
    "quality": "scorer",
    "necessity": "scorer",
    "judge": "judge",
    **dict.fromkeys(("warmup", "tune", "final", "learn", "search", "generate", "difficulty", "evaluate"), "model"),
    **dict.fromkeys(("targets", "gradients", "own", "against"), "model"),
}


@pytest.mark.parametrize("journey", JOURNEYS)
def test_every_stage_that_loads_a_model_says_which_and_whether_its_own_code_was_run(stubbed, data, tmp_path, journey):
    plain = walk(journey, data, tmp_path / "a")
    trusting = walk(journey, data, tmp_path / "b", trust_remote_code=True)
    loading = {name for name in plain if name.rpartition("/")[2] in LOADING}
    for name in loading:
        inputs = json.loads((tmp_path / "b" / name / "manifest.json").read_text())["inputs"]
        identity = inputs[LOADING[name.rpartition("/")[2]]]
        assert identity["trust_remote_code"] is True
        assert len(identity["content"]) == 16
    assert loading <= {name for name in plain if plain[name] != trusting[name]}
    assert plain.keys() == trusting.keys()


def test_another_weight_of_a_model_is_another_model(stubbed, data, tmp_path):
    first = walk("quality", data, tmp_path / "a")
    other = data | {"reward": str(tmp_path / "reward")}
    shutil.copytree(data["reward"], other["reward"])
    weights = Path(other["reward"]) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    changed = walk("quality", other, tmp_path / "b")
    assert [name for name in sorted(first) if first[name] == changed[name]] == ["ingest"]


# --- ids on the hub ------------------------------------------------------------------------------------------------------

OLD, NEW = "0" * 39 + "1", "0" * 39 + "2"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The cache of this machine, with a model at two commits; nothing else is known of the hub."""
    from huggingface_hub import constants

    home = tmp_path / "hub"
    repo = home / "models--somebody--nano"
    for commit in (OLD, NEW):
        shutil.copytree(resolve_model("nano"), repo / "snapshots" / commit)
    (repo / "snapshots" / NEW / "chat_template.jinja").write_text("{{ 'changed' }}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(home))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def point(branch, commit):
        (open_location(repo) / f"refs/{branch}").write(commit)

    point("main", OLD)
    return point


def test_a_run_stays_at_the_commit_that_an_id_had_when_it_began(stubbed, hub, data, tmp_path):
    data = data | {"foundation": "somebody/nano"}
    first = walk("longest", data, tmp_path / "a")
    inputs = json.loads((tmp_path / "a/lengths/manifest.json").read_text())["inputs"]
    assert inputs["tokenizer"] == {"commit": OLD}
    hub("main", NEW)
    shutil.rmtree(tmp_path / "a/final")
    assert walk("longest", data, tmp_path / "a") == first  # a restart, which does `final` again
    found = find_model(Run(tmp_path / "a"), make_config({"model": "somebody/nano"}))
    assert found.name == f"somebody/nano@{OLD}"
    later = Run(tmp_path / "b")
    assert find_model(later, make_config({"model": "somebody/nano"})).identity == {"commit": NEW}
    reusing = Run(tmp_path / "c", reuse=[str(tmp_path / "a")])
    assert find_model(reusing, make_config({"model": "somebody/nano"})).identity == {"commit": OLD}
    hub("v1", OLD)
    assert find_model(later, make_config({"model": "somebody/nano@v1"})).identity == {"commit": OLD}


def test_workers_load_the_commit_that_they_are_given(hub):
    hub("main", NEW)
    templates = [load_tokenizer(f"somebody/nano@{commit}").chat_template for commit in (OLD, NEW)]
    assert templates == [load_tokenizer("nano").chat_template, "{{ 'changed' }}"]


def test_an_id_of_which_no_commit_is_known_is_refused_with_what_to_do(hub, tmp_path):
    for name in ("somebody/other", "somebody/nano@v2"):
        with pytest.raises(ModelError, match=rf"which commit '{name}' is.*Check the name, download the model first"):
            find_model(Run(tmp_path / "a"), make_config({"model": name}))
    Run(tmp_path / "a").claim()
    (tmp_path / "a/models.json").write_text("{")
    with pytest.raises(DataError, match=r"models\.json does not say which commits"):
        find_model(Run(tmp_path / "a"), make_config({"model": "somebody/nano"}))
