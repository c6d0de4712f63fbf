"""`raysift compare` and `raysift demo` on the command line: what is refused before Ray starts, and what the demo compares."""

import subprocess
import sys

import pytest

from raysift.jobs.commands import cli, compare, demo, guard
from raysift.jobs.commands.options import spread_multiple
from raysift.jobs.compare.plan import make_plan
from raysift.nano.world import generate_pool, is_clean, is_relevant
from raysift.storage import open_location


def run(*arguments):
    return guard.run_guarded(lambda: cli.app(args=spread_multiple(["compare", *map(str, arguments)])))


@pytest.fixture
def comparison(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    demo.write_world(open_location(tmp_path))
    (tmp_path / "c.yaml").write_text("pool: world/pool.jsonl\ntest: world/test.jsonl\nbudget: 5%\n")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere.yaml"], 2, "nowhere.yaml"),
        (["nowhere"], 2, "is no run folder"),
        (["c.yaml", "d.yaml"], 2, "expected one YAML file"),
        (["c.yaml", "--format", "xml"], 2, "'xml' is unknown"),
        (["c.yaml", "--methods", "lest"], 2, "'lest' is unknown"),
        (["c.yaml", "--methods", "less"], 2, "'less' needs a target"),
        (["c.yaml", "--assert", "rose>uniform"], 2, "'rose' is not compared"),
        (["c.yaml", "--assert", "longest"], 2, "is no claim"),
        (["c.yaml", "--test", "nowhere.jsonl"], 3, "nowhere.jsonl"),
        (["c.yaml", "compare.gain=2"], 2, "compare.gain"),
    ],
)
def test_bad_input_is_refused_before_ray_starts(comparison, capsys, monkeypatch, arguments, code, message):
    monkeypatch.setattr(compare, "own_session", None)  # calling it would end the command with another code
    assert run(*arguments) == code
    assert message in capsys.readouterr().err
    assert not (comparison / "runs").exists()


def test_the_demo_compares_every_method_with_yardsticks_and_references(tmp_path):
    folder = open_location(tmp_path)
    plan = make_plan(demo.write_world(folder) | {"compare": {"methods": demo.contenders(folder)}})
    named = {contender.name for contender in plan.contenders}
    assert named == {"uniform", "longest", "less", "rose", "mods", "raise", "full pool", "oracle"}


def test_the_oracle_holds_rows_of_the_pool_that_are_right_and_practise_the_target():
    pool = {str(row["messages"]) for row in generate_pool(demo.POOL_ROWS, demo.WORLD_SEED)}
    rows = demo.oracle_rows()
    assert len(rows) == demo.BUDGET == len({str(row["messages"]) for row in rows})
    assert all(is_clean(row) and is_relevant(row, demo.TARGET) and str(row["messages"]) in pool for row in rows)


def test_files_are_found_from_any_folder(comparison):
    plan, values = compare.read_plan(
        ["c.yaml"], {"target": ["world/target.jsonl"]}, ["compare.loss_on=world/pairs.jsonl"]
    )
    home = f"{comparison}/world"
    assert (plan.shared.pool, plan.shared.test) == ([f"{home}/pool.jsonl"], [f"{home}/test.jsonl"])
    assert values["compare"]["loss_on"] == f"{home}/pairs.jsonl"


def test_help_of_compare_loads_no_heavy_library():
    code = "import sys; from raysift.jobs.commands.cli import app; app(['compare', '-h'], standalone_mode=False); "
    code += "sys.exit(bool({'ray', 'torch', 'transformers', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120).returncode == 0
