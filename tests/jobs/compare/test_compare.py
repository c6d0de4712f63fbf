"""A comparison from end to end on a small world: what is shared, what a restart does again, and what the files hold."""

import csv
import json
from pathlib import Path

import pytest
from sound_reports import blocks, sound

from raysift.config import make_config
from raysift.errors import ConfigError, StaleRunError
from raysift.jobs import stages
from raysift.jobs.commands.compare import read_plan
from raysift.jobs.commands.show import show_run
from raysift.jobs.compare.compare import compare, require_claims
from raysift.jobs.compare.plan import make_plan
from raysift.jobs.compare.result import SETTINGS, read_result
from raysift.jobs.recipes import run_method
from raysift.jobs.report.record import report_of, report_of_runs
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import Run

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(scope="module")
def values(world):
    own = {name: value for name, value in world.items() if name != "pairs"}
    return own | {"compare": {"methods": {"quality": {}, "mine": {"rows": world["pool"]}}, "seeds": 2, "selections": 1}}


@pytest.fixture(scope="module")
def done(values, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("compared") / "run")
    return folder, compare(Run(folder), make_plan(values), values, ["uniform>=uniform"])


def cells(folder):
    return {file.parent.name: file.stat().st_mtime_ns for file in Path(folder).glob("cells/*/cell.json")}


def test_every_method_has_a_line_and_every_file_the_same_figures(done):
    folder, found = done
    lines = {line["name"]: line for line in found["methods"]}
    assert list(lines) == ["base model", "uniform", "longest", "quality", "mine"]
    assert {name: line["seeds"] for name, line in lines.items() if name != "base model"} == dict.fromkeys(
        [*lines][1:], 2
    )
    assert [lines[name]["rows"] for name in ("uniform", "longest", "quality")] == [10, 10, 10]
    assert len({line["steps"] for line in lines.values()} - {None}) == 1  # also of the rows trained on whole
    assert all(line["loss"] > 0 for line in lines.values())
    assert read_result(Run(folder).folder) == json.loads(json.dumps(found))
    table = list(csv.DictReader(Path(folder, "compare.csv").read_text().splitlines()))
    assert [line["name"] for line in table] == list(lines)
    assert [float(line["score"]) for line in table] == [line["score"] for line in lines.values()]
    page = Path(folder, "compare.md").read_text()
    assert all(f"| {name} |" in page for name in lines) and found["methods"][3]["verdict"] in page


def test_uniform_draws_anew_in_each_seed_and_the_others_train_again(done):
    folder, _ = done
    drawn = [Path(folder, name) for name in ("uniform/seed-1", "quality/seed-1")]
    assert [place.exists() for place in drawn] == [True, False]
    # The base model, two draws of uniform, and two trainings of each of the three others.
    assert len(cells(folder)) == 1 + 2 + 2 * 3


def test_selections_share_their_stages(done):
    folder, _ = done
    manifest = json.loads(Path(folder, "quality/seed-0/ingest/manifest.json").read_text())
    assert manifest["reused_from"].endswith("uniform/seed-0")


def test_a_repeated_comparison_does_nothing_again_and_a_larger_one_only_what_is_new(done, values):
    folder, found = done
    before = cells(folder)
    again = compare(Run(folder), make_plan(values), values)
    assert cells(folder) == before
    assert again["methods"] == found["methods"]
    larger = values | {"compare": values["compare"] | {"seeds": 3}}
    more = compare(Run(folder), make_plan(larger), larger)
    now = cells(folder)
    assert {name: now[name] for name in before} == before and len(now) == len(before) + 4
    assert not more["indicative"]


def test_a_cell_is_what_the_method_alone_gives(done, values):
    folder, _ = done
    config = make_config({**{k: v for k, v in values.items() if k not in ("compare", "target")}, "method": "uniform"})
    run = Run(f"{folder}-alone")
    stages.evaluate(run, config, stages.finetune(run, config, run_method(run, config.model_copy(update={"test": []}))))
    alone = json.loads(run.files(run.manifest("evaluate"), "answers")[1].read_text())["overall"]["mean"]
    results = [json.loads(file.read_text()) for file in Path(folder).glob("cells/*/cell.json")]
    ours = next(one for one in results if (one["name"], one["seed"]) == ("uniform", 0))["scores"]
    assert sum(ours.values()) / len(ours) == pytest.approx(alone)


def test_finished_runs_are_compared_by_the_rows_that_they_chose(done, values, tmp_path):
    folder, found = done
    plan, settings = read_plan([f"{folder}/quality/seed-0"], {"test": values["test"]}, [])
    assert plan.seeds == [0] and [one.name for one in plan.contenders] == ["uniform", "longest", "quality"]
    compared = compare(Run(str(tmp_path / "runs")), plan, settings)
    old, new = (next(line for line in one["methods"] if line["name"] == "quality") for one in (found, compared))
    assert new["rows"] == old["rows"] and new["seeds"] == 1
    assert not (tmp_path / "runs" / "quality").exists()  # nothing was selected again


def test_runs_of_other_budgets_are_refused(done, values, tmp_path):
    folder, _ = done
    shared = {name: value for name, value in values.items() if name not in ("compare", "target", "test")}
    other = make_config({**shared, "method": "longest", "budget": "7", "run": str(tmp_path / "other")})
    run_method(Run(other.run), other)
    with pytest.raises(ConfigError, match="another budget"):
        read_plan([f"{folder}/quality/seed-0", other.run], {"test": values["test"]}, [])
    with pytest.raises(StaleRunError, match="holds a selection"):
        compare(Run(other.run), make_plan(values), values)


def test_show_prints_the_comparison_again(done, tmp_path, capsys):
    folder, found = done
    show_run(folder, Console("plain"))
    shown = capsys.readouterr()
    assert all(line["name"] in shown.out for line in found["methods"])
    begun = Run(str(tmp_path / "begun"))
    begun.claim()
    (begun.folder / SETTINGS).write("{}")
    show_run(begun.name, Console("plain"))
    assert "not finished" in capsys.readouterr().err


def test_claims_are_told_after_the_result_is_written(done):
    from raysift.errors import ClaimError

    _, found = done
    require_claims(found)
    assert found["claims"][0]["holds"]
    with pytest.raises(ClaimError, match="does not hold"):
        require_claims({"claims": [{"claim": "a>b", "holds": False, "verdict": "a: worse than b"}]})


def test_its_report_and_those_of_its_runs_stand_side_by_side(done):
    folder, found = done
    plain = sound(report_of(Run(folder)))
    assert [row[0] for row in blocks(plain, "standings", "table")[0]["rows"]] == [
        one["name"] for one in found["methods"]
    ]
    runs = [Run(f"{folder}/{name}/seed-0") for name in ("uniform", "longest", "quality", "mine")]
    for run in runs:
        assert blocks(sound(report_of(run)), "evaluation", "table")[-1]["rows"][0][0] == "base model"
    both = sound(report_of_runs(runs))
    overlaps = blocks(both, "differences", "heatmap")[0]
    assert overlaps["columns"] == [
        "uniform/seed-0",
        "longest/seed-0",
        "quality/seed-0",
    ]  # the rows of `mine` were not chosen
