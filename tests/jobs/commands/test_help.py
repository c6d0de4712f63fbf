"""Help, completion, and `raysift run`: what commands say of themselves and what a YAML file starts."""

import re

import pytest
import yaml

from raysift.config import load_config, make_config
from raysift.jobs.commands import actions, cli, guard
from raysift.jobs.commands.look import starter_yaml
from raysift.jobs.commands.method_help import method_help
from raysift.jobs.commands.options import complete_setting, spread_multiple
from raysift.jobs.commands.settings import settings_of
from raysift.methods import METHODS


def command(*arguments):
    return guard.run_guarded(lambda: cli.app(args=spread_multiple(list(map(str, arguments)))))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_methods_help_tells_its_needs_an_example_and_its_main_settings(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert command(name, "--help") == 0
    shown = capsys.readouterr().out
    assert METHODS[name].summary in shown and "Needs: a pool" in shown and f"raysift settings {name}" in shown
    for key in METHODS[name].main_settings:
        default = next(one.default for one in settings_of(name) if one.key == f"{name}.{key}")
        assert f"{name}.{key}={'none' if default is None else default}: " in shown
    assert ("--target" in shown) == METHODS[name].takes_target
    assert "default: 5%" in shown and "default: nano" in shown


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_example_in_the_help_is_a_command_that_is_taken(name, monkeypatch):
    seen = []
    monkeypatch.setattr(actions, "run_selection", lambda settings, console, *follow: seen.append(settings))
    example = next(line for line in method_help(name).splitlines() if line.startswith("Example: raysift "))
    assert command(*example.removeprefix("Example: raysift ").split()) == 0
    assert (seen[0].method, seen[0].run) == (name, f"runs/{name}")


def test_the_shell_completes_names_of_settings(capsys, monkeypatch):
    for name in ("less", "mods"):
        context = type("Context", (), {"info_name": name})()
        keys = {one.key for one in settings_of(name)}
        level = complete_setting(context, "")
        while any(one.endswith(".") for one in level):
            assert all(one.endswith((".", "=")) for one in level)
            level = [one for part in level for one in (complete_setting(context, part) if part[-1] == "." else [part])]
        assert sorted(level) == sorted(f"{key}=" for key in keys)
    monkeypatch.setenv("_RAYSIFT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "raysift less less.ma")
    monkeypatch.setenv("COMP_CWORD", "2")
    guard.run_guarded(lambda: cli.app(args=[], prog_name="raysift"))
    assert re.fullmatch(r"less\.match\.\s+less\.matching=\s*", capsys.readouterr().out)


@pytest.fixture
def started(monkeypatch):
    """What a command would start: the name of the action and its settings."""
    seen = []
    for name in ("run_selection", "run_finetune", "run_evaluate", "run_ingest"):
        monkeypatch.setattr(actions, name, lambda settings, console, name=name: seen.append((name, settings)))
    from raysift.jobs.commands import run_yaml

    for step in run_yaml.STEPS:
        monkeypatch.setitem(run_yaml.STEPS, step, getattr(actions, f"run_{step}"))
    return seen


def write(path, **values):
    path.write_text(yaml.safe_dump(values))
    return path


def test_run_starts_what_the_yaml_names(tmp_path, monkeypatch, started):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "my.yaml"
    file.write_text(starter_yaml(make_config({"method": "uniform", "pool": ["data/p.jsonl"], "seed": 7}), ["longest"]))
    assert command("run", file) == command("run", file, "longest.unit=chars", "--run", "other") == 0
    (first, plain), (_, changed) = started
    assert first == "run_selection"
    assert plain == load_config(str(file)).model_copy(update={"run": "runs/longest"})
    assert plain.pool == ["data/p.jsonl"]  # as with --config, of the current folder
    assert (changed.run, changed.longest.unit, changed.seed) == ("other", "chars", 7)
    started.clear()
    write(tmp_path / "t.yaml", method="finetune", pool=["p.jsonl"], train={"epochs": 2})
    write(tmp_path / "e.yaml", test=["t.jsonl"])
    for name in ("t.yaml", "e.yaml"):
        assert command("run", name) == 0
    assert command("run", "t.yaml", "method=ingest") == 0
    assert [name for name, _ in started] == ["run_finetune", "run_evaluate", "run_ingest"]
    assert [(one.method, one.run) for _, one in started] == [
        (None, f"runs/{n}") for n in ("finetune", "evaluate", "ingest")
    ]
    assert started[0][1].train.epochs == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pool": ["p.jsonl"]}, "names no method. Add a line such as `method: less`"),
        ({"method": "lest"}, "names the method 'lest', which is unknown"),
        ({"method": "less", "bugdet": "5%"}, "bugdet"),
    ],
)
def test_run_refuses_a_yaml_that_tells_not_what_to_do(tmp_path, capsys, started, values, message):
    assert command("run", write(tmp_path / "a.yaml", **values)) == 2
    assert message in capsys.readouterr().err and not started
    assert command("run", tmp_path / "none.yaml") == 2


def test_look_takes_the_pool_as_its_argument(tmp_path, capsys):
    pool = tmp_path / "pool.jsonl"
    pool.write_text('{"instruction": "a", "output": "b"}\n')
    assert command("look", pool, "--write", tmp_path / "my.yaml") == 0
    assert f"raysift run {tmp_path / 'my.yaml'}" in capsys.readouterr().err
    assert yaml.safe_load((tmp_path / "my.yaml").read_text())["pool"] == [str(pool)]
