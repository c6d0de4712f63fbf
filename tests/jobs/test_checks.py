"""What can be known before a stage is refused before the first one: no stage begins, nothing is written, Ray is not started."""

import json
import os
import re
import shutil
import signal
import sys

import pytest

import raysift
from raysift.config import make_config
from raysift.errors import ConfigError, DataError, ModelError, StaleRunError
from raysift.jobs.commands import cli, guard
from raysift.jobs.commands.options import is_override, spread_multiple
from raysift.jobs.recipes import run_method
from raysift.jobs.runs.checks import check_models, check_run
from raysift.jobs.runs.run import Run, StageResult
from raysift.nano import nano_path
from raysift.nano.world import examples, generate_pool, preference_pairs

METHODS = ("uniform", "longest", "quality", "coverage", "mods", "less", "rds", "rose", "raise")


def lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Small files of every kind, in the folder that commands run in."""
    monkeypatch.chdir(tmp_path)
    lines(tmp_path / "pool.jsonl", list(generate_pool(40, 0)))
    lines(tmp_path / "examples.jsonl", list(examples(6, 0, ["add"], "test")))
    lines(tmp_path / "pairs.jsonl", list(preference_pairs(4, 0, ["add"])))
    return tmp_path


def settings_of(method, **changes):
    target = {
        "rose": ["pairs.jsonl"],
        "less": ["examples.jsonl"],
        "rds": ["examples.jsonl"],
        "raise": ["examples.jsonl"],
    }.get(method, [])
    return {"method": method, "pool": ["pool.jsonl"], "target": target, "run": "run", **changes}


def refused(values):
    """The error of a run that must end before its first stage, and leave nothing behind."""
    before = sorted(os.listdir())

    def start():
        raise AssertionError("a stage began")

    with pytest.raises(raysift.RaysiftError) as caught:
        run = Run("run", start=start)
        run_method(run, make_config(values))
    assert sorted(os.listdir()) == before
    return caught.value


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"pool": ["nowhere.jsonl"]}, DataError, "'nowhere.jsonl' does not exist"),
        ({"pool": []}, ConfigError, "'pool' is missing"),
        ({"ingest": {"format": "alpacca"}}, ConfigError, "alpacca"),
        ({"train_on_selection": True, "test": ["no.jsonl"]}, DataError, "test: 'no.jsonl' does not exist"),
        ({"train_on_selection": True, "test": ["pairs.jsonl"]}, DataError, "test: .*line 1: field 'metric' is missing"),
        ({"train_on_selection": True, "model": "./nowhere"}, ModelError, "model: there is no folder './nowhere'"),
        ({"train_on_selection": True, "adapter": "nowhere"}, ModelError, "adapter: 'nowhere' holds no adapter_config"),
    ],
)
def test_every_method_looks_at_its_files_first(world, method, changes, kind, message):
    error = refused(settings_of(method, **changes))
    assert isinstance(error, kind)
    assert re.search(message, str(error)), error


@pytest.mark.parametrize("method", ["less", "rose", "raise"])
@pytest.mark.parametrize("target", [[], ["nowhere.jsonl"], ["another kind"]])
def test_targets_are_looked_at_first(world, method, target):
    target = [{"rose": "pool.jsonl"}.get(method, "pairs.jsonl") if name == "another kind" else name for name in target]
    assert isinstance(refused(settings_of(method, target=target)), ConfigError | DataError)


@pytest.mark.parametrize("method", ["longest", "less", "raise", "quality", "coverage", "mods"])
def test_models_that_a_method_reads_are_looked_at_first(world, method):
    own = {
        "quality": {"quality": {"scorer": {"model": "./none"}}},
        "coverage": {"coverage": {"embedding": {"model": "./none"}}},
        "mods": {"mods": {"embedding": {"model": "./none"}}},
        "raise": {"raise": {"features": {"model": "./none"}}},
    }
    assert isinstance(refused(settings_of(method, **own.get(method, {"model": "./none"}))), ModelError)


@pytest.mark.parametrize("method", ["coverage", "mods", "raise", "less"])
def test_a_budget_in_tokens_is_refused_first_where_rows_are_not_chosen_one_by_one(world, method):
    changes = {"less": {"match": {"subtasks": "round_robin"}}} if method == "less" else {}
    assert "not tokens" in str(refused(settings_of(method, budget="100tok", **changes)))


def test_a_model_is_its_description_and_a_tokenizer(tmp_path):
    shutil.copytree(nano_path("foundation"), tmp_path / "m")
    check_models(make_config({"model": str(tmp_path / "m")}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "m" / name).unlink()
    with pytest.raises(ModelError, match=r"model: .* has no tokenizer"):
        check_models(make_config({"model": str(tmp_path / "m")}))
    for content, found in (("[]", "holds a list"), ("{", "can be read")):
        (tmp_path / "m/config.json").write_text(content)
        with pytest.raises(ModelError, match=found):
            check_models(make_config({"model": str(tmp_path / "m")}))
    with pytest.raises(ModelError, match=r"^model: .*'no-such-owner/model'"):  # tests ask no hub
        check_models(make_config({"model": "no-such-owner/model"}))


def finished(folder, stages, **settings):
    run = Run(str(folder))
    with run.replayable(settings):
        for name in stages:
            run.stage(name, {}, {}, lambda _: StageResult())
    return Run(str(folder))


def test_a_run_is_of_one_method_budget_seed_and_model(tmp_path):
    made = {"method": "less", "budget": "5%", "seed": 0, "model": "nano"}
    run = finished(tmp_path / "r", ["ingest", "lengths", "score", "choose"], **made)
    check_run(run, make_config(made))
    check_run(run, make_config(made | {"method": None}))  # a step of its own, such as `evaluate`
    for change in ({"method": "rose"}, {"budget": "6%"}, {"seed": 1}, {"model": "owner/name"}):
        ((name, value),) = change.items()
        with pytest.raises(StaleRunError, match=rf"{name}: {made[name]!r} -> {value!r}\nGive the run another name"):
            check_run(run, make_config(made | change))


def test_what_an_unfinished_run_has_not_done_may_still_change(tmp_path):
    made = {"method": "less", "budget": "1000", "seed": 0, "model": "nano"}
    early = finished(tmp_path / "early", ["ingest"], **made)
    check_run(early, make_config(made | {"budget": "5%", "method": "rose"}))
    later = finished(tmp_path / "later", ["ingest", "warmup"], **made)
    check_run(later, make_config(made | {"budget": "5%"}))
    with pytest.raises(StaleRunError, match="method: 'less' -> 'rose'"):
        check_run(later, make_config(made | {"method": "rose"}))


def test_a_model_in_another_folder_is_no_other_model(tmp_path):
    shutil.copytree(nano_path("foundation"), tmp_path / "m")
    made = {"method": "less", "budget": "5%", "seed": 0, "model": str(tmp_path / "gone")}
    run = finished(tmp_path / "r", ["ingest", "choose"], **made)
    check_run(run, make_config(made | {"model": str(tmp_path / "m")}))


# --- the command line -------------------------------------------------------------------------------------------------


def command(*arguments):
    return guard.run_guarded(lambda: cli.app(args=spread_multiple(list(map(str, arguments)))))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["uniform", "--pool", "pool.jsonl", "--target", "nofile.jsonl"], 2, "uniform selects for no target"),
        (["less", "--pool", "pool.jsonl", "--target", "examples.jsonl", "--test", "t"], 2, "Add --train"),
        (["uniform", "--pool", "pool.jsonl", "output_format=csv"], 2, "'messages', 'alpaca', 'sharegpt'"),
        (["uniform", "--pool", "pool.jsonl", "--run", ""], 2, "'run' is '': a name must not be empty"),
        (["uniform", "--pool", ""], 2, "'pool.0' is '': a name must not be empty"),
        (["uniform", "--pool", "pool.jsonl", "--run", "/"], 2, "'/' is no run folder"),
        (["uniform", "--pool", "pool.jsonl", "--config", "."], 2, "config: '.' cannot be read"),
        (["uniform", "--pool", "pool.jsonl", "trian.epochs=3"], 3, "If a setting is meant: it is 'train'"),
        (["finetune", "--pool", "pool.jsonl", "--test", "nofile.jsonl"], 3, "test: 'nofile.jsonl' does not exist"),
        (["evaluate", "--test", "pairs.jsonl"], 3, "field 'metric' is missing"),
        (["ingest", "nowhere.jsonl"], 3, "'nowhere.jsonl' does not exist"),
        (["search", "--pool", "nowhere.jsonl"], 3, "'nowhere.jsonl' does not exist"),
        (["search", "--pool", "pool.jsonl", "--target", "nowhere.jsonl"], 3, "'nowhere.jsonl' does not exist"),
        (["win-rate", "--test", "examples.jsonl", "--against-model", "./none"], 6, "there is no folder './none'"),
        (["submit", "--submission-id", "a b/../c", "--", "uniform"], 2, "expected letters, digits"),
    ],
)
def test_a_command_refuses_before_it_starts_ray(world, monkeypatch, capsys, arguments, code, message):
    import ray

    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was started"))
    before = sorted(os.listdir())
    assert command(*arguments) == code
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert sorted(os.listdir()) == before


def test_a_file_may_name_a_target_for_several_methods(world, monkeypatch):
    from raysift.jobs.commands import actions

    seen = []
    monkeypatch.setattr(actions, "run_selection", lambda settings, console, *follow: seen.append(settings.run))
    (world / "mine.yaml").write_text("pool: pool.jsonl\ntarget: examples.jsonl\ntest: examples.jsonl\n")
    for name in ("uniform", "less"):
        assert command(name, "--config", "mine.yaml") == 0
    assert command("less", "--config", "mine.yaml", "--run", "r") == 0
    assert seen == ["runs/uniform", "runs/less", "r"]  # a run of its own for each method


def test_show_refuses_a_column_where_nothing_was_selected(tmp_path, capsys):
    finished(tmp_path / "r", ["ingest"], method="less")
    assert command("show", tmp_path / "r", "--by", "skill") == 2
    assert "no finished selection" in capsys.readouterr().err


def test_what_is_a_setting_and_what_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed=1").mkdir()
    for setting in ("train.adam_beta1=0.8", "seed=3", "less.warmup.epochs=2", "resources.store=s3://bucket/store"):
        assert is_override(setting)
    for path in ("lang=en/p.jsonl", "./seed=2", "seed=1", "s3://b/x?a=b", "a.jsonl", "lang=*/p.jsonl"):
        assert not is_override(path)
    given = ["uniform", "--pool", "lang=en/p.jsonl", "b.jsonl", "train.adam_beta1=0.8"]
    spread = ["uniform", "--pool", "lang=en/p.jsonl", "--pool", "b.jsonl", "train.adam_beta1=0.8"]
    assert spread_multiple(given) == spread


def test_settings_that_multiply_through_aliases_are_refused_in_a_line(tmp_path, capsys):
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    (tmp_path / "bomb.yaml").write_text("\n".join([*levels, "budget: *a8"]))
    assert command("uniform", "--config", tmp_path / "bomb.yaml") == 2
    assert len(capsys.readouterr().err) < 500


def test_an_interrupted_command_says_that_it_continues(monkeypatch, capsys, tmp_path):
    from raysift.jobs.commands import actions

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(actions, "run_evaluate", interrupted)
    assert command("evaluate", "--test", "t.jsonl") == 130
    assert "interrupted; the same command continues the run" in capsys.readouterr().err
    monkeypatch.setattr(actions, "run_evaluate", lambda *_: sys.exit(130))  # whoever handled it has said what holds
    assert command("evaluate", "--test", "t.jsonl") == 130
    assert "continues" not in capsys.readouterr().err


@pytest.mark.parametrize("by_library", ["passed on", "made an error", "lost"])
def test_a_terminated_command_ends_with_a_sentence_and_its_own_code(capsys, by_library):
    def body():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except SystemExit as stop:
            if by_library == "passed on":
                raise
            if by_library == "made an error":
                raise RuntimeError("SystemExit: 143") from stop

    before = signal.getsignal(signal.SIGTERM)
    assert guard.run_guarded(body) == 143
    assert capsys.readouterr().err.splitlines()[-1].endswith("terminated; the same command continues the run.")
    assert signal.getsignal(signal.SIGTERM) is before


# --- Python -----------------------------------------------------------------------------------------------------------


def test_python_is_refused_with_the_names_of_arguments(world):
    with pytest.raises(DataError, match=r"nowhere\.jsonl' does not exist"):
        raysift.uniform(world / "nowhere.jsonl", run=world / "r")
    with pytest.raises(ConfigError, match=r"uniform selects for no target"):
        raysift.uniform(world / "pool.jsonl", target="nowhere.jsonl")
    with pytest.raises(ConfigError, match="'run' is ''"):
        raysift.uniform(world / "pool.jsonl", run="")
    with pytest.raises(ConfigError, match=r"'pool\.0' is a list"):
        make_config({"pool": [["secret"]]})
    with pytest.raises(ConfigError, match=r"trains no model to test\. Add train_on_selection=True"):
        raysift.uniform(world / "pool.jsonl", test=world / "examples.jsonl")
    with pytest.raises(ConfigError, match=r"less needs examples.*: target=\.\.\."):
        raysift.less(world / "pool.jsonl")
    assert not (world / "runs").exists()


def test_a_cluster_that_is_not_there_is_told_at_once(monkeypatch):
    from raysift.jobs.cluster import starting

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(starting.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(starting.ray, "init", lambda **_: pytest.fail("Ray was asked"))
    with pytest.raises(ConfigError, match=r"nothing answers at RAY_ADDRESS=127\.0\.0\.1:1"):
        starting.start_ray()


def test_a_cluster_that_refuses_is_told_with_the_settings_of_tokens(monkeypatch):
    from raysift.jobs.cluster import starting

    def refuses(**_):
        raise ConnectionError("Failed to connect")

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(starting.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(starting.ray, "init", refuses)
    with pytest.raises(ConfigError, match="RAY_AUTH_TOKEN_PATH"):
        starting.start_ray()


@pytest.mark.parametrize(("metric", "hint"), [("bleu", ""), ("exact_mach", r" Did you mean 'exact_match'\?")])
def test_an_unknown_metric_is_refused_with_those_that_are_known(world, metric, hint):
    records = list(examples(3, 0, ["add"], "test"))
    lines(world / "odd.jsonl", [records[0], records[1] | {"metric": metric}])
    found = refused(settings_of("uniform", train_on_selection=True, test=["odd.jsonl"]))
    assert re.search(
        rf"test: odd.jsonl: metric '{metric}' is unknown\.{hint} Scored here: exact_match, .*judge", str(found)
    )
