"""`raysift settings`: every setting has a sentence, and what is listed is what a run takes."""

import json

import pytest

from raysift.config import load_config
from raysift.errors import ConfigError
from raysift.jobs.commands.settings import settings_of, show_settings
from raysift.jobs.runs.console import Console
from raysift.methods import METHODS
from raysift.settings.describe import allowed_by


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_setting_has_its_sentence(method):
    assert [one.key for one in settings_of(method) if not one.meaning] == []


@pytest.mark.parametrize("method", sorted(METHODS))
def test_what_is_listed_with_its_default_is_what_a_run_takes(method):
    plain = load_config(None, {"method": method})
    overrides = [f"{one.key}={json.dumps(one.default, default=list)}" for one in settings_of(method)]
    overrides = [one for one in overrides if not one.startswith(("method=", "run=", "reuse="))]
    assert load_config(None, {"method": method}, overrides) == plain


def test_another_methods_settings_are_not_listed():
    keys = {one.key.partition(".")[0] for one in settings_of("less")}
    assert "less" in keys and not keys & (METHODS.keys() - {"less"})


def test_where_and_how_fast_decides_no_result():
    undeciding = {one.key for one in settings_of("less") if not one.decides}
    assert "resources.workers" in undeciding and "less.matching" not in undeciding and "seed" not in undeciding


def test_the_defaults_are_those_of_the_model():
    def rate(model):
        return next(one.default for one in settings_of("less", model) if one.key == "train.learning_rate")

    assert rate("nano") != rate("owner/model")


def test_one_setting_is_told_whole_and_an_unknown_one_with_its_neighbour(capsys):
    show_settings("less", "less.matching", "nano", Console("plain"))
    shown = capsys.readouterr().out
    assert "store" in shown and "exact" in shown
    with pytest.raises(ConfigError, match=r"Did you mean less\.matching"):
        show_settings("less", "less.maching", "nano", Console("plain"))


def test_choices_are_named():
    assert "exact, store" in {one.allowed for one in settings_of("less")}
    assert allowed_by(int | None) == "int or none"
    assert allowed_by(list[str]) == "list"


def test_kinds_beside_choices_are_named_too():
    allowed = {one.key: one.allowed for one in settings_of("less")}
    assert allowed["less.targets.limit"] == "none or int"
    assert allowed["train.lora_targets"] == "all-linear or tuple"
    assert {one.allowed for one in settings_of("less") if one.key == "pool"} == {"list"}
