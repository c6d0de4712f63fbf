"""`raysift plan` without Ray: the sample, the checks before a run, plans of described clusters, cheaper settings."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from raysift.config import load_config, make_config, make_selector
from raysift.errors import ConfigError, DataError, StageError
from raysift.jobs.planning import preflight
from raysift.jobs.planning.cheaper import with_settings
from raysift.jobs.planning.planning import Asked, describe, make_plan
from raysift.jobs.planning.pool import SAMPLED, sample_pool
from raysift.jobs.planning.recipes import works
from raysift.jobs.recipes import run_method
from raysift.jobs.runs.stage_names import WHAT_IT_DOES
from raysift.methods import METHODS
from raysift.nano.world import examples, generate_pool, preference_pairs
from raysift.planning.cards import CARDS
from raysift.planning.record import read_plan

ROWS = 900
USUAL = Asked(gpus="8xH100", price=2.0)


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    pool = list(generate_pool(ROWS, 0))
    return {
        "pool": write_lines(folder / "pool.jsonl", pool),
        "half": write_lines(folder / "half.jsonl", pool[: ROWS // 2]),
        "pairs": write_lines(folder / "pairs.jsonl", list(preference_pairs(12, 0, ["add", "subtract"], "correctness"))),
        "examples": write_lines(folder / "examples.jsonl", list(examples(24, 0, ["add", "subtract"]))),
    }


def settings(files, method, tmp_path, pool="pool", **more):
    own = METHODS[method]
    target = [files["pairs" if "pairs" in own.needs else "examples"]] if own.takes_target else []
    return make_config(
        {"method": method, "pool": [files[pool]], "target": target, "run": str(tmp_path / "run"), **more}
    )


def described(config, asked=USUAL):
    def no_ray():
        raise AssertionError("a described cluster needs no Ray")

    return make_plan(config, asked, no_ray, lambda words: None)


def test_a_sample_is_random_and_counts_what_ingest_keeps(files, tmp_path):
    config = settings(files, "less", tmp_path)
    sample = sample_pool(config)
    assert sample.whole and sample.rows_in == ROWS and len(sample.rows) == SAMPLED < sample.kept <= ROWS
    ids = sample.rows["id"].to_pylist()
    assert all(a < b for a, b in pairwise(ids))
    assert ids == sample_pool(config).rows["id"].to_pylist()


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_is_planned_stage_by_stage_and_nothing_is_left_in_its_run(files, tmp_path, method):
    plan = described(settings(files, method, tmp_path))
    stages = [stage.stage for stage in plan.stages]
    assert stages[0] == "ingest" and stages[-1] == "choose" and len(set(stages)) == len(stages)
    assert set(stages) <= WHAT_IT_DOES.keys()
    assert not plan.measured and any("arithmetic, not measured" in note for note in plan.notes)
    assert all(0 < s.seconds.low < s.seconds.likely < s.seconds.high for s in plan.stages)
    assert plan.dollars == pytest.approx(2.0 * plan.likely_s / 3600, rel=0.01)  # nano asks for no GPU: a machine-hour
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["less", "mods", "raise", "rds"])
def test_half_the_pool_takes_less_and_more_than_a_quarter_of_the_tokens(files, tmp_path, method):
    whole, half = (described(settings(files, method, tmp_path, pool=pool)) for pool in ("pool", "half"))
    # How fast the pool is read is measured here, too.
    times = [sum(s.seconds.likely for s in plan.stages if s.stage != "ingest") for plan in (half, whole)]
    assert times[0] < times[1]
    tokens = [sum(stage.tokens for stage in plan.stages) for plan in (half, whole)]
    assert tokens[0] < 0.75 * tokens[1]


def test_a_cheaper_setting_saves_what_the_plan_with_it_takes_less(files, tmp_path):
    config = settings(files, "mods", tmp_path)
    plan = described(config)
    assert plan.cheaper
    for cheaper in plan.cheaper:
        assert cheaper.seconds < plan.likely_s and cheaper.loses
        again = described(with_settings(config, cheaper.settings))
        read = [plan.stages[0].seconds.likely, again.stages[0].seconds.likely]  # measured anew
        assert again.likely_s - read[1] == pytest.approx(cheaper.seconds - read[0], abs=0.2)


def test_solving_for_hours_keeps_to_them_and_an_impossible_wish_is_refused(files, tmp_path):
    config = settings(files, "mods", tmp_path)
    hours = described(config).likely_s / 3600
    solved = described(config, Asked(gpus="8xH100", hours=0.9 * hours))
    assert solved.solved and solved.likely_s <= 0.9 * hours * 3600 * 1.0001
    assert described(config, Asked(gpus="8xH100", hours=2 * hours)).solved == []
    with pytest.raises(ConfigError, match="still takes"):
        described(config, Asked(gpus="8xH100", hours=hours / 1000))
    with pytest.raises(ConfigError, match="--price"):
        described(config, Asked(gpus="8xH100", dollars=1.0))


def test_all_that_is_wrong_is_told_at_once(files, tmp_path):
    config = settings(files, "less", tmp_path, pool="pool")
    wrong = config.model_copy(update={"pool": [str(tmp_path / "none.jsonl")], "model": str(tmp_path / "no-model")})
    with pytest.raises(ConfigError) as raised:
        described(wrong)
    told = str(raised.value)
    assert raised.value.exit_code == 2 and "none.jsonl" in told and "no-model" in told and "2 to mend" in told


def test_a_budget_above_the_pool_and_a_full_disk_are_found_before_the_run(files, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="budget"):
        described(settings(files, "less", tmp_path, budget="100000"))
    monkeypatch.setattr(preflight, "free_bytes", lambda run: 1000)
    with pytest.raises(ConfigError, match="disk: the run writes"):
        described(settings(files, "less", tmp_path))


def test_rows_of_which_no_answer_is_left_stop_a_plan_and_cut_ones_are_told(files, tmp_path):
    with pytest.raises(ConfigError, match="no token of their answer left"):
        described(settings(files, "less", tmp_path, less={"warmup": {"max_length": 4}}))
    sample = sample_pool(settings(files, "less", tmp_path))
    config = settings(files, "less", tmp_path)
    facts = describe(config, make_selector(config), sample, [], 1, CARDS["h100"])
    middle = int(sorted(facts.lengths)[len(facts.lengths) // 2])
    problems: list[str] = []
    (note,) = preflight.lengths_notes(facts, middle, problems)
    assert "% of the rows are longer" in note and not problems
    assert preflight.lengths_notes(facts, int(max(facts.lengths)), problems) == []


def test_a_model_too_large_for_its_card_is_refused_with_what_to_do(files, tmp_path):
    from raysift.settings.memory import Need

    config = settings(files, "less", tmp_path)
    facts = describe(config, make_selector(config), sample_pool(config), [], 1, CARDS["l4"])
    large = Need(weights=60 * 2**30)
    with pytest.raises(ConfigError, match=r"gradients: a worker takes 6\d.* GiB on its GPU"):
        preflight.after(facts, [], [("gradients", large, 1.0)], CARDS["l4"].memory, 512)
    assert preflight.after(facts, [], [("gradients", large, 1.0)], CARDS["h200"].memory, 512) == []


def test_questions_of_the_target_that_stand_in_the_pool_are_counted(files, tmp_path):
    config = settings(files, "rose", tmp_path)
    sample = sample_pool(config)
    members = preflight.members_of(make_selector(config), config)
    asked = sample.rows["messages"].to_pylist()[0][0]["content"]
    from raysift.records import Message, Pair

    known = Pair((Message("user", asked),), "yes", "no")
    before, after = (
        [note for note in preflight.target_notes(sample, [*members, *more]) if "stand in the sample" in note]
        for more in ([], [known])
    )
    count = int(before[0].split()[0]) if before else 0
    assert int(after[0].split()[0]) == count + 1


def test_a_plan_is_read_back_as_it_was_and_other_files_are_refused(files, tmp_path):
    plan = described(settings(files, "uniform", tmp_path))
    place = tmp_path / "plan.json"
    place.write_text(plan.model_dump_json())
    assert read_plan(str(place)) == plan
    again = load_config(None, json.loads(place.read_text())["settings"])
    assert again.pool == settings(files, "uniform", tmp_path).pool
    place.write_text("{}")
    with pytest.raises(ConfigError, match="is no plan"):
        read_plan(str(place))
    with pytest.raises(ConfigError, match="there is no"):
        read_plan(str(tmp_path / "none.json"))


def test_the_stages_planned_are_those_that_the_recipe_goes_through(files, tmp_path):
    """The recipe announces its stages to the run before it starts the first one."""
    from raysift.jobs.runs.run import Run

    class Announced(Exception):
        pass

    class Listening(Run):
        def plan(self, *stages):
            raise Announced(*stages)

    for method in METHODS:
        config = settings(files, method, tmp_path)
        with pytest.raises(Announced) as told:
            run_method(Listening(config.run), config)
        facts = describe(
            config,
            make_selector(config),
            sample_pool(config),
            preflight.members_of(make_selector(config), config),
            1,
            CARDS["h100"],
        )
        assert [work.stage for work in works(make_selector(config), facts)] == list(told.value.args), method


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("method", ["less", "mods"])
def test_a_measured_plan_has_a_speed_and_a_peak_for_every_stage_with_workers(ray_local, files, tmp_path, method):
    plan = make_plan(settings(files, method, tmp_path), Asked(price=1.0), lambda: None, lambda words: None)
    assert plan.measured and plan.measuring_s > 0
    busy = {stage.stage: stage for stage in plan.stages if stage.host}
    wanted = {
        "less": {"ingest", "warmup", "targets", "gradients"},
        "mods": {"quality", "embed", "tune", "generate", "necessity"},
    }
    assert wanted[method] <= busy.keys()
    assert all(50 * 2**20 < stage.host < 8 * 2**30 for stage in busy.values())
    assert busy["ingest"].host < max(stage.host for stage in busy.values())
    assert not (tmp_path / "run").exists()


@pytest.mark.ray
def test_a_run_keeps_its_plan_and_shows_it_beside_what_it_took(ray_local, files, tmp_path, capsys):
    import raysift
    from raysift.jobs.commands.show import show_run
    from raysift.jobs.report.cost import cost_section
    from raysift.jobs.report.gather import Gathered
    from raysift.jobs.runs.console import Console
    from raysift.jobs.runs.run import open_run

    place = tmp_path / "plan.json"
    place.write_text(described(settings(files, "uniform", tmp_path)).model_dump_json())
    run = str(tmp_path / "run")
    raysift.uniform(files["pool"], run=run, report=False, plan=place, stop_over="100x")
    show_run(run, Console("plain"))
    shown = capsys.readouterr().out
    assert "Plan and fact" in shown and "Peak memory" in shown
    section = cost_section(Gathered(open_run(run)))
    (table,) = [block for block in section.blocks if block.title == "Plan and fact"]
    assert [row[0] for row in table.rows] == ["ingest", "score", "choose", "all"]
    assert table.rows[0][5] > 2**20  # the peak of the worker that read the pool
    with pytest.raises(DataError):
        raysift.uniform(str(tmp_path / "none.jsonl"), run=str(tmp_path / "refused"), plan=place)
    assert not (tmp_path / "refused").exists()
    with pytest.raises(ConfigError, match="a plan of uniform"):
        raysift.longest(files["pool"], run=str(tmp_path / "other"), plan=place)


@pytest.mark.ray
def test_a_run_far_over_its_plan_stops_and_the_same_call_without_the_plan_continues(
    ray_local, files, tmp_path, monkeypatch
):
    import raysift
    from raysift.planning import drift

    monkeypatch.setattr(drift, "LEAST_S", 0.0)
    plan = described(settings(files, "uniform", tmp_path))
    seconds = plan.stages[0].seconds.model_copy(update={"likely": 1e-6})
    hasty = plan.model_copy(update={"stages": [one.model_copy(update={"seconds": seconds}) for one in plan.stages]})
    place, run = tmp_path / "plan.json", str(tmp_path / "run")
    place.write_text(hasty.model_dump_json())
    with pytest.raises(StageError, match=r"ingest: .* allows 1\.5"):
        raysift.uniform(files["pool"], run=run, report=False, plan=str(place), stop_over=1.5)
    done = raysift.uniform(files["pool"], run=run, report=False)
    assert len(done) == 43, "5 % of the 877 rows that differ"
