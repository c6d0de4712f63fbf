"""Explanations of every method's rows, and what would have changed them: on runs laid out by hand, repeated with the change."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from laid_runs import begin, id_of, lay_coverage, lay_gradient, lay_mods, lay_pool, lay_yardstick, talk

import raysift
from raysift.errors import ConfigError
from raysift.jobs.commands.explained import explain_command, show
from raysift.jobs.explaining.explain import explain as look_up
from raysift.jobs.explaining.record import described, paragraphs
from raysift.jobs.runs.console import Console
from raysift.methods.coverage import COVERED
from raysift.methods.mods import AUGMENTED, KNOWN, POOR, SEED, UNSCORED
from raysift.pool.checks import IngestConfig
from raysift.pool.files import find_files
from raysift.pool.id_text import id_text
from raysift.pool.survey import survey_pool

COUNT = 40


def explain(run, row, **given):
    return look_up(run, row, pairs=False, **given)


def table_of(run, name="scores"):
    return {row["id"]: row for row in pq.read_table(f"{run.folder.path}/{name}.parquet").to_pylist()}


def chosen_of(run):
    return pq.read_table(f"{run.folder.path}/selection.parquet")["id"].to_pylist()


def changed(found, **made):
    """The settings of the change as a lay_... function takes them; there is exactly one change."""
    (change,) = found.changes
    for setting in change.settings:
        name, value = setting.split("=")
        *sections, last = name.split(".")[1:] if "." in name else [name]
        inner = made
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return made


def titles(found):
    return [part.title for part in paragraphs(found)]


# --- budgets: the same pool with the budget that is told


@pytest.mark.parametrize("method", ["uniform", "longest"])
@pytest.mark.parametrize("budget", ["5", "12.5%", "60tok"])
def test_the_budget_that_is_told_takes_a_row_and_leaves_a_chosen_one_out(tmp_path, method, budget):
    run = lay_yardstick(tmp_path / "run", method, budget)
    chosen = chosen_of(run)
    for number, row in enumerate(list(table_of(run))[1::13]):
        found = explain(run, row)
        if row in chosen and chosen[0] == row:
            assert not found.changes
            continue
        told = changed(found)["budget"]
        assert f"--budget {told} would have" in found.changes[0].text
        assert ("%" in told) == ("%" in budget)
        again = lay_yardstick(tmp_path / f"again-{number}", method, told)
        assert (row in chosen_of(again)) == (row not in chosen)


@pytest.mark.parametrize("rule", ["max", "mean", "round_robin"])
def test_the_budget_told_holds_however_subtasks_are_reduced(tmp_path, rule):
    scores = np.random.default_rng(3).standard_normal((COUNT, 3)).round(2) / 4
    match = {"less": {"match": {"subtasks": rule}}}
    run = lay_gradient(tmp_path / "run", scores, "6", **match)
    chosen = chosen_of(run)
    for number, row in enumerate([chosen[0], chosen[-1], *list(table_of(run))[2::14]]):
        found = explain(run, row)
        if row == chosen[0]:
            assert found.no_change == "No budget would have left it out: it is the first row."
            continue
        told = int(changed(found)["budget"])
        for budget in {told, told - 1} - {0}:
            again = chosen_of(lay_gradient(tmp_path / f"{number}-{budget}", scores, str(budget), **match))
            assert (row in again) == ((row not in chosen) and budget == told)


def test_a_center_is_left_out_by_a_budget_and_a_covered_row_is_told_its_center(tmp_path):
    run = lay_coverage(tmp_path / "run")
    chosen, rows = chosen_of(run), table_of(run)
    last = explain(run, chosen[-1])
    assert last.changes[0].settings == ("budget=9",)
    assert chosen_of(lay_coverage(tmp_path / "less", budget="9")) == chosen[:-1]
    assert "Its distance to the nearest row chosen before it was" in last.reasons[0]
    covered = explain(run, next(row for row in rows if row not in chosen))
    assert covered.nearest.id in chosen
    assert chosen[covered.nearest.rank - 1] == covered.nearest.id
    assert covered.nearest.messages[0]["content"].startswith("say ")
    assert f"at a distance of {covered.nearest.distance:.3g}" in covered.reasons[0]
    assert covered.changes == [] and "No single setting" in covered.no_change
    radius = run.manifest("centers").values["radius"]
    assert covered.nearest.distance <= radius + 1e-6
    assert chosen[1] == explain(run, chosen[0]).nearest.id or explain(run, chosen[0]).nearest.id != chosen[0]


# --- MoDS: bars


@pytest.mark.parametrize("bars", [{"alpha": {"quantile": 0.4}, "beta": {"quantile": 0.6}}, {"alpha": 0.1, "beta": 0.3}])
def test_a_moved_bar_of_mods_lets_a_row_pass_or_keeps_a_chosen_one_out(tmp_path, bars):
    run = lay_mods(tmp_path / "run", **bars)
    of = {row["fate"]: row["id"] for row in table_of(run).values()}
    assert {POOR, KNOWN, COVERED, SEED, AUGMENTED, UNSCORED} <= of.keys()
    for fate, reached in ((POOR, "good"), (KNOWN, "needed")):
        found = explain(run, of[fate])
        assert "did not pass" in found.reasons[0] or "knows this already" in found.reasons[2]
        moved = bars | {name: value if isinstance(value, dict) else {"value": value} for name, value in bars.items()}
        moved |= {name: {key: float(v) for key, v in value.items()} for name, value in changed(found).items()}
        again = lay_mods(tmp_path / fate[:4], **moved)
        kept = run_rows(again, reached)
        assert of[fate] in kept and of[fate] not in run_rows(run, reached)
    for fate in (SEED, AUGMENTED):
        found = explain(run, of[fate])
        assert found.verdict.startswith("selected as number")
        assert len(found.changes) == (1 if fate == SEED else 2)
        for change in found.changes:
            name, value = change.settings[0].removeprefix("mods.").split("=")
            bar, form = name.split(".")
            again = lay_mods(tmp_path / f"{fate}-{bar}", **(bars | {bar: {form: float(value)}}))
            assert of[fate] not in chosen_of(again)


def run_rows(run, stage):
    return {
        row for file in run.files(run.manifest(stage), "rows") for row in pq.read_table(file.path)["id"].to_pylist()
    }


def test_every_step_of_mods_is_told_in_words(tmp_path):
    run = lay_mods(tmp_path / "run")
    rows = table_of(run)
    of = {row["fate"]: row["id"] for row in rows.values()}
    alpha, beta = (run.manifest(stage).values["cut"]["value"] for stage in ("good", "needed"))
    added = explain(run, of[AUGMENTED])
    quality, stands, needed, distance = added.reasons
    assert f"above the bar of {alpha:.3g}: it passed" in quality
    assert stands.startswith("Its quality is higher than that of")
    assert f"below the bar of {beta:.3g}" in needed and "so the row is needed" in needed
    assert "Its distance to the nearest row chosen before it was" in distance and "at the end" in distance
    assert "It is covered" in explain(run, of[COVERED]).reasons[-1]
    lost = explain(run, of[UNSCORED])
    assert lost.reasons == ["It failed in quality: no words."]
    assert lost.changes == [] and "could not be scored" in lost.no_change


# --- other methods, rejected rows, forms


def test_uniform_says_that_its_number_was_drawn_and_longest_that_it_counts_length(tmp_path):
    drawn = explain(lay_yardstick(tmp_path / "u", "uniform", "5"), id_of(7))
    assert drawn.reasons[0].startswith("The number drawn for it, from the seed and its id alone, is 0.")
    long = explain(lay_yardstick(tmp_path / "l", "longest", "5", longest={"unit": "chars"}), id_of(39))
    stands = "higher than that of 100 % of the other 39 rows, the first of all"
    assert long.reasons == [f"The length of its answers in characters is 48, {stands}."]


def test_a_cosine_is_told_against_the_pools_at_the_last_checkpoint(tmp_path):
    scores = np.linspace(-0.2, 0.19, COUNT)[:, None] * np.array([1.0, 0.5])
    found = explain(lay_gradient(tmp_path / "run", scores, "5"), id_of(37))
    told = "Its cosine with the target for 'task 0' at the last checkpoint (epoch-2) is 0.17, higher than that of 95 %"
    assert told in found.reasons[-1]
    assert found.reasons[1] == "By subtask: task 0 0.17, task 1 0.085."
    against = explain(lay_gradient(tmp_path / "b", scores - 1, "5"), id_of(3))
    assert "Below 0, training on it works against the target." in against.reasons


def test_copies_of_a_conversation_are_told_with_the_one_that_was_kept(tmp_path):
    line = {"id": id_of(3), "source": "a", "file": "pool.jsonl", "position": 41, "reason": "duplicate"}
    line |= {"message": "the same conversation as pool.jsonl, line 4", "raw": "{}"}
    run = lay_yardstick(tmp_path / "run", "longest", "5", rejected=[line])
    found = explain(run, id_of(3))
    assert [(copy.file, copy.position, copy.kept) for copy in found.copies] == [
        ("pool.jsonl", 4, True),
        ("pool.jsonl", 41, False),
    ]
    assert "Copies in the pool" in titles(found)
    assert explain(run, id_of(4)).copies == []


def reject(number, reason, messages):
    return {
        "id": number, "source": "a", "file": "pool.jsonl", "position": 100 + number, "reason": reason,
        "message": None, "raw": json.dumps({"messages": messages}),
    }  # fmt: skip


def test_a_rejected_record_is_told_the_setting_that_keeps_it_and_it_does(tmp_path):
    def said(*contents):
        return [
            {"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), contents, strict=False)
        ]

    cases = {
        1: ("too_short", said("q", "yes"), "ingest.min_response_chars=3"),
        2: ("too_long", said("q" * 60, "answer"), "ingest.max_chars=66"),
        3: ("empty_response", said("q", ""), None),
        4: ("ends_with_user", said("question", "the answer", "and"), "ingest.trailing_user=trim"),
        5: ("ends_with_user", [*talk(2), {"role": "user", "content": "more"}], None),
        6: ("no_assistant", said("q"), None),
    }
    own = {"min_response_chars": 5, "max_chars": 50}
    run, _ = begin(tmp_path / "run", method="uniform", ingest=own)
    lay_pool(run, 6, [reject(number, reason, messages) for number, (reason, messages, _) in cases.items()])
    for number, (reason, _, setting) in cases.items():
        found = explain(run, number)
        assert found.verdict.startswith(f"not in the pool ({reason}): ")
        assert found.raw
        assert [change.settings for change in found.changes] == ([(setting,)] if setting else [])
        assert bool(found.no_change) == (setting is None)
        if setting:
            name, value = setting.removeprefix("ingest.").split("=")
            alone = tmp_path / "pool.jsonl"
            alone.write_text(found.raw)
            kept = [
                survey_pool(find_files([str(alone)]), IngestConfig(**own | more)).kept for more in ({}, {name: value})
            ]
            assert kept == [0, 1]
    assert "another reason" in explain(run, 3).no_change
    assert "a duplicate of a kept row" in explain(run, 5).no_change
    assert "the record itself" in explain(run, 6).no_change


def test_a_run_a_selection_and_a_folder_are_explained_alike(tmp_path):
    run = lay_yardstick(tmp_path / "run", "longest", "5")

    class Held:
        folder = run.folder.path

    selection = raysift.load_run(tmp_path / "run").selection
    found = [
        described(explain(given, id_of(2)))
        for given in (run, selection, Held(), tmp_path / "run", str(tmp_path / "run"))
    ]
    assert all(one == found[0] for one in found)
    with pytest.raises(ConfigError, match="found a int, expected a run folder"):
        explain(5, 1)


def test_the_short_form_the_page_and_the_json_hold_the_same(tmp_path, capsys):
    run = lay_yardstick(tmp_path / "run", "longest", "5")
    found = explain(run, id_of(2))
    assert repr(found) == f"Explanation({id_text(id_of(2))}: {found.verdict})"
    page = found._repr_html_()
    assert "say 2 &lt;b&gt;" in page and "<b>" not in page.replace("<b>", "", page.count("<p><b>"))
    assert titles(found) == ["Text", "What became of it", "What decided", "What would have changed it"]
    explain_command(str(tmp_path / "run"), id_text(id_of(2)), True, True, True, Console("plain"))
    told = json.loads(capsys.readouterr().out)
    assert told["id"] == id_text(id_of(2))
    assert told["changes"] == [{"text": found.changes[0].text, "settings": list(found.changes[0].settings)}]
    assert told["reasons"] == found.reasons
    show(found, Console("plain"))
    screen = capsys.readouterr().out
    places = [screen.index(title) for title in titles(found)]
    assert places == sorted(places)


def test_without_text_no_text_of_any_row_is_left(tmp_path, capsys):
    run = lay_coverage(tmp_path / "run")
    row = next(row for row in table_of(run) if row not in chosen_of(run))
    assert "secret" in json.dumps(described(explain(run, row)))
    assert "secret" not in json.dumps(described(explain(run, row, text=False)))
    explain_command(str(tmp_path / "run"), id_text(row), True, False, False, Console("plain"))
    assert "secret" not in capsys.readouterr().out
