"""A fingerprint changes when a value or a content changes, and never else; what it cannot spell it refuses."""

import json
import os

import pytest
from pydantic import BaseModel

from raysift.errors import ConfigError
from raysift.fingerprint import (
    adapter_fingerprint,
    differences,
    file_fingerprint,
    fingerprint,
    folder_fingerprint,
)
from raysift.storage import Location, open_location


class Settings(BaseModel):
    alpha: float = 0.5
    names: list[str] = ["a"]


def test_order_of_keys_does_not_matter():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_tuples_and_lists_are_the_same_and_models_are_their_fields():
    assert fingerprint({"x": (1, 2)}) == fingerprint({"x": [1, 2]})
    assert fingerprint(Settings()) == fingerprint({"alpha": 0.5, "names": ["a"]})


@pytest.mark.parametrize("other", [{"a": 2}, {"a": "1"}, {"a": True}, {"a": None}, {"b": 1}, {"a": [1]}])
def test_any_changed_value_changes_it(other):
    assert fingerprint({"a": 1}) != fingerprint(other)


@pytest.mark.parametrize("value", [{1, 2}, object(), b"x", float("nan"), float("inf")])
def test_what_has_no_single_spelling_is_refused(value):
    with pytest.raises(ConfigError, match=r"section\.x"):
        fingerprint({"section": {"x": value}})


def test_differences_name_the_fields():
    old = {"train": {"epochs": 3, "rank": 8}, "seed": 0}
    new = {"train": {"epochs": 4, "rank": 8, "dtype": "bf16"}, "seed": 0}
    assert differences(old, new) == ["train.dtype: (absent) -> 'bf16'", "train.epochs: 3 -> 4"]


@pytest.fixture
def small_blocks(tmp_path, monkeypatch):
    """Limits under which a few bytes are a large file in several blocks, and a cache of its own."""
    monkeypatch.setattr("raysift.fingerprint.BLOCK_BYTES", 3)
    monkeypatch.setattr("raysift.fingerprint.CACHED_BYTES", 8)
    monkeypatch.setattr("raysift.fingerprint.SETTLED_NS", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def reads(monkeypatch):
    """Paths of the files that were opened to be hashed."""
    opened, real = [], Location.open_input
    monkeypatch.setattr(Location, "open_input", lambda place: opened.append(place.name) or real(place))
    return opened


@pytest.mark.parametrize("content", [b"", b"small", b"0123456789" * 3])
def test_a_file_is_known_by_all_it_holds_and_by_nothing_else(tmp_path, small_blocks, content):
    places = [open_location(tmp_path / name) for name in ("a", "deep/b", "c")]
    for place, more in zip(places, (b"", b"", b"x"), strict=True):
        place.write(content + more)
    os.utime(places[0].path, ns=(1, 1))
    one, two, other = (file_fingerprint(place) for place in places)
    assert one == two != other
    os.utime(places[0].path, ns=(2, 2))
    assert file_fingerprint(places[0]) == one
    if content:
        places[0].write(content[:-1] + b"?")  # the last byte alone, and no other size
        assert file_fingerprint(places[0]) != one


def test_the_cache_saves_reading_and_never_answers_for_another_content(tmp_path, small_blocks, monkeypatch):
    path, opened = tmp_path / "large", reads(monkeypatch)
    path.write_bytes(b"a" * 20)
    first = file_fingerprint(open_location(path))
    assert file_fingerprint(open_location(path)) == first
    assert opened == ["large"]
    info = path.stat()
    (tmp_path / "other").write_bytes(b"b" * 20)
    os.utime(tmp_path / "other", ns=(info.st_atime_ns, info.st_mtime_ns))
    os.replace(tmp_path / "other", path)  # other bytes, the same name, size and time
    assert file_fingerprint(open_location(path)) != first
    (entry, *_) = (tmp_path / "cache").rglob("*.json")
    for damaged in ("", "[]", '{"file": [], "hash": "ffff"}'):
        for entry in (tmp_path / "cache").rglob("*.json"):
            entry.write_text(damaged)
        path.write_bytes(b"a" * 20)
        assert file_fingerprint(open_location(path)) == first


def test_a_file_written_a_moment_ago_and_a_small_one_are_not_remembered(tmp_path, small_blocks, monkeypatch):
    (tmp_path / "small").write_bytes(b"a")
    file_fingerprint(open_location(tmp_path / "small"))
    monkeypatch.setattr("raysift.fingerprint.SETTLED_NS", 10**12)
    (tmp_path / "large").write_bytes(b"a" * 20)
    file_fingerprint(open_location(tmp_path / "large"))
    assert not (tmp_path / "cache").exists()


def test_a_home_that_cannot_be_written_into_changes_no_answer(tmp_path, small_blocks, monkeypatch):
    (tmp_path / "large").write_bytes(b"a" * 20)
    first = file_fingerprint(open_location(tmp_path / "large"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert file_fingerprint(open_location(tmp_path / "large")) == first


def test_a_model_is_its_files_but_for_what_a_download_leaves_beside_them(tmp_path, small_blocks):
    for name in ("one", "two"):
        for file, content in (
            ("config.json", b"{}"),
            ("sub/model.safetensors", b"weights" * 9),
            ("tokenizer.json", b"t"),
        ):
            (open_location(tmp_path / name) / file).write(content)
    one, two = (open_location(tmp_path / name) for name in ("one", "two"))
    (two / ".cache/huggingface/download/config.json.metadata").write("commit\n1767225600.25\n")
    (two / ".gitattributes").write("*.bin")
    (two / "README.md").write("about")
    for part in ("all", "tokenizer", "weights"):
        assert folder_fingerprint(one, part) == folder_fingerprint(two, part)
    parts = {part: folder_fingerprint(one, part) for part in ("all", "tokenizer", "weights")}
    (two / "sub/model.safetensors").write(b"others")
    changed = [part for part in parts if folder_fingerprint(two, part) != parts[part]]
    assert changed == ["all", "weights"]
    (one / "vocab.json").write("{}")  # an older tokenizer's own files count as well
    assert folder_fingerprint(one, "tokenizer") != parts["tokenizer"]


def test_an_adapter_is_its_weights_and_settings_wherever_its_base_lay(tmp_path):
    config = {"r": 8, "lora_alpha": 16, "target_modules": ["q", "v"], "base_model_name_or_path": "./m"}

    def adapter(name, weights=b"w", **changes):
        place = open_location(tmp_path / name)
        (place / "adapter_model.safetensors").write(weights)
        (place / "adapter_config.json").write(json.dumps(config | changes))
        return adapter_fingerprint(place)

    first = adapter("a")
    assert first == adapter("b", base_model_name_or_path="/elsewhere/m", target_modules=["v", "q"], peft_version="0")
    assert len({first, adapter("c", weights=b"x"), adapter("d", use_dora=True), adapter("e", lora_alpha=8)}) == 4
