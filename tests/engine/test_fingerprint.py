"""A fingerprint changes when a value changes, and refuses what it cannot spell."""

import pytest
from pydantic import BaseModel

from raysift.errors import ConfigError
from raysift.fingerprint import differences, file_fingerprint, fingerprint
from raysift.storage import open_location


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


def test_a_file_is_known_by_its_content_not_its_name(tmp_path):
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name).write_text(text)
    a, b, c = (file_fingerprint(open_location(tmp_path / name)) for name in "abc")
    assert a == b != c


def test_a_large_file_is_known_by_samples_and_time(tmp_path, monkeypatch):
    import os

    monkeypatch.setattr("raysift.fingerprint.WHOLE_FILE_BYTES", 10)
    monkeypatch.setattr("raysift.fingerprint.SAMPLE_BYTES", 4)
    path = tmp_path / "large"
    path.write_text("abcdefghijklmnop")
    os.utime(path, (1, 1))
    before = file_fingerprint(open_location(path))
    assert before == file_fingerprint(open_location(path))
    os.utime(path, (2, 2))
    assert before != file_fingerprint(open_location(path))
