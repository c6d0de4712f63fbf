"""Models on an object store: each machine copies one once, whole or not at all, and knows it by its content."""

import os
import shutil
import subprocess
import sys

import pytest
from slow_store import CUT

from raysift.actors import fetched_models
from raysift.actors.fetched_models import fetched, look_at, pin
from raysift.actors.language_model import load_language_model, load_tokenizer, resolve_model
from raysift.config import make_config
from raysift.errors import ModelError
from raysift.jobs.runs.models import find_model
from raysift.jobs.runs.run import Run
from raysift.nano import nano_path
from raysift.storage import open_location

WEIGHTS = "model.safetensors"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYSIFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def model(slow_store, request):
    """Nano on the store, below a name of its own."""
    uri = slow_store.uri(f"models/{request.node.name.replace('[', '-').rstrip(']')}")
    put(uri)
    slow_store.requests.clear()
    return uri


def put(uri, **changed):
    place = open_location(uri)
    for file in nano_path("foundation").iterdir():
        (place / file.name).write(changed.get(file.name.partition(".")[0], file.read_bytes()))


def folders(cache):
    return sorted(place.name for place in cache.iterdir() if place.is_dir())


def test_two_processes_that_begin_at_once_fetch_a_model_once(slow_store, model, cache):
    slow_store.delay = 0.03
    code = "import sys; from raysift.actors.fetched_models import fetched; print(fetched(sys.argv[1]))"
    command = [sys.executable, "-c", code, model]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) for _ in range(2)]
    told = {process.communicate(timeout=120)[0].strip() for process in both}
    assert told == {str(cache / look_at(model).identity())} and all(process.returncode == 0 for process in both)
    assert slow_store.count("GET", of=WEIGHTS) == 1
    (folder,) = told
    for file in nano_path("foundation").iterdir():
        if not file.name.endswith(".md"):
            assert (cache / folder / file.name).read_bytes() == file.read_bytes()


def test_a_tokenizer_is_read_without_the_weights_and_the_model_is_the_same(slow_store, model, cache):
    text = "What is two and two?"
    assert load_tokenizer(model)(text)["input_ids"] == load_tokenizer("nano")(text)["input_ids"]
    assert slow_store.count("GET", of=WEIGHTS) == 0
    own, nano = (load_language_model(name, device="cpu").state_dict() for name in (model, "nano"))
    assert own.keys() == nano.keys() and all(own[name].equal(nano[name]) for name in own)
    identity = look_at(model).identity()
    assert folders(cache) == [identity, f"{identity}-tokenizer"]


def test_a_large_file_is_fetched_in_pieces(slow_store, model, cache, monkeypatch):
    monkeypatch.setattr(fetched_models, "PIECE_BYTES", 2**20)
    size = (nano_path("foundation") / WEIGHTS).stat().st_size
    assert (open_location(fetched(model)) / WEIGHTS).read_bytes() == (nano_path("foundation") / WEIGHTS).read_bytes()
    assert slow_store.count("GET", of=WEIGHTS) == -(-size // 2**20) > 1


def test_a_pinned_model_asks_the_store_for_nothing_and_is_never_another(slow_store, model, cache):
    named = pin(look_at(model))
    folder = fetched(named)
    slow_store.requests.clear()
    assert resolve_model(named) == resolve_model(named, "tokenizer") == folder and not slow_store.requests
    put(model, config=b"{}")
    assert fetched(named) == folder and fetched(model) != folder
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match=r"models/.* have changed since the run began"):
        fetched(named)


def test_a_fetch_that_breaks_off_leaves_nothing_and_is_done_again(slow_store, model, cache, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    stored = look_at(model)
    left = cache / f"{stored.identity()}.part"
    left.mkdir(parents=True)
    (left / "half").write_text("of a process that died")
    slow_store.fault = lambda method, path, number: CUT if method == "GET" and WEIGHTS in path else None
    with pytest.raises(ModelError, match=rf"models/.* could not be fetched to .*{WEIGHTS}"):
        fetched(model)
    assert folders(cache) == []
    slow_store.fault = lambda method, path, number: None
    assert "half" not in os.listdir(fetched(model)) and folders(cache) == [stored.identity()]


def test_a_disk_without_room_is_told_before_anything_is_fetched(slow_store, model, cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**30, 2**30, 1000))
    with pytest.raises(ModelError, match=r"has 0\.0 GiB, and .* has room for 0\.0 GiB.*RAYSIFT_CACHE"):
        fetched(model)
    assert slow_store.count("GET", of=WEIGHTS) == 0 and folders(cache) == []


def test_the_identity_is_the_content_part_by_part(model, slow_store, cache, tmp_path):
    other = slow_store.uri("models/elsewhere")
    put(other)
    config, run = make_config({}), Run(str(tmp_path / "run"))
    one, two = find_model(run, config, model), find_model(run, config, other)
    assert one.identity == two.identity and one.name != two.name
    put(other, tokenizer=b"{}")
    changed = find_model(run, config, other)
    assert changed.identity != one.identity
    assert look_at(other).identity("weights") == look_at(model).identity("weights")
    assert find_model(run, config, other, "tokenizer").identity != find_model(run, config, model, "tokenizer").identity
    assert slow_store.count("GET", of=WEIGHTS) == 0 and not cache.exists()


def test_a_store_that_tells_no_marks_is_read(cache):
    put("memory://models/own")
    assert look_at("memory://models/own").identity() == look_at("memory://models/own/").identity()
    assert sorted(os.listdir(fetched("memory://models/own"))) == sorted(look_at("memory://models/own").sizes)


def test_a_model_that_is_not_there_is_told(slow_store, cache):
    with pytest.raises(ModelError, match=r"there are no files below 's3://bucket/models/none"):
        resolve_model(slow_store.uri("models/none"))
