"""Records of runs: what they say is true of the tables of the run, whatever the rows hold."""

import json
import os

import numpy as np
import pytest
from sound_reports import alerts, blocks, rows, sound, stages

from raysift.errors import StageError
from raysift.jobs.report.record import report_of, report_of_runs
from raysift.jobs.runs.run import StageResult, open_run
from raysift.pool.id_text import id_text
from raysift.records import ID

from .conftest import made_run, pool_of, talk

EVIL = "</script><script>alert(1)</script>\x1b[31m\u202e\x00 " + "w" * 5000


def record_of(run, with_text=True):
    return sound(report_of(open_run(str(run.folder)), with_text))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return record_of(made_run(tmp_path_factory.mktemp("plain") / "run", pool_of(200)))


def test_the_verdict_names_share_sources_and_the_command(plain):
    verdict = plain["sections"][0]
    assert verdict["lead"].startswith("5 % of 200 rows (10), ") and "of 3 sources" in verdict["lead"]
    command = f"raysift quality --pool {os.path.abspath('p.jsonl')} --model nano --budget 10 --seed 0"
    assert blocks(plain, "verdict", "text")[0]["text"] == command
    facts = {item["name"]: item["value"] for item in blocks(plain, "verdict", "facts")[0]["items"]}
    assert facts["rows of the pool"] == 202 and facts["kept"] == 200 and facts["selected"] == 10
    assert facts["share"] == 0.05


def test_the_funnel_adds_up_from_the_records_to_the_selection(plain):
    assert {name: (s["rows_in"], s["kept"], s["rejected"], s["failed"]) for name, s in stages(plain).items()} == {
        "ingest": (202, 200, {"duplicate": 1}, 1),
        "choose": (200, 10, {"beyond the budget": 190}, 0),
    }


def test_scores_are_counted_with_the_cut_at_the_last_row_taken(plain):
    histogram = blocks(plain, "scores", "histogram")[0]
    pool, selected = (series["counts"] for series in histogram["series"])
    assert sum(pool) == 200 and sum(selected) == 10
    assert histogram["marks"] == [{"value": 190.0, "label": "the last row taken"}]
    what_if = blocks(plain, "scores", "what_if")[0]
    taken = dict(zip(what_if["shares"], what_if["counts"], strict=True))[0.05]
    sources = [item["source"] for item in rows(plain, "chosen")]
    assert dict(zip(what_if["groups"], taken, strict=True)) == {name: sources.count(name) for name in what_if["groups"]}


def test_the_shown_rows_are_those_around_the_cut(plain):
    assert [item["rank"] for item in rows(plain, "top")] == list(range(1, 11))
    assert [item["score"] for item in rows(plain, "top")] == [float(200 - n) for n in range(1, 11)]
    assert sorted(item["score"] for item in rows(plain, "just out")) == [float(n) for n in range(150, 190)]
    assert sorted(item["score"] for item in rows(plain, "bottom")) == [float(n) for n in range(40)]
    just_out = max(rows(plain, "just out"), key=lambda item: item["score"])
    assert just_out["verdict"] == "Not selected: it scores 189, and the lowest score of a selected row is 190."
    assert rows(plain, "top")[0]["verdict"] == "Selected as number 1 of 10."
    assert rows(plain, "random") and all(item["own_id"].startswith("own-") for item in rows(plain, "random"))


def test_rejected_rows_are_shown_with_their_reason_and_text(plain):
    (row,) = rows(plain, "rejected: duplicate")
    assert row["raw"] == '{"a": 1}' and row["position"] == 901 and "the same as p.jsonl, 1" in row["verdict"]
    (broken,) = rows(plain, "rejected: not_json")
    assert broken["id"] == "p.jsonl:900" and broken["raw"] == "{oh"


def test_groups_of_sources_and_meta_are_shares_with_lift(plain):
    found = {block["title"]: block for block in blocks(plain, "groups", "bars")}
    by_skill = found["By skill"]
    pool, selected = (dict(zip(by_skill["groups"], s["values"], strict=True)) for s in by_skill["series"])
    assert pool == {"add": 0.5, "sort": 0.5} and sum(selected.values()) == 1
    assert by_skill["lift"] == [pytest.approx(selected[name] / 0.5) for name in by_skill["groups"]]
    assert found["By source"]["groups"] == ["book", "web", "forum"]
    assert "By id" not in found  # a value a row is no group


def test_nothing_stands_out_of_a_quiet_run(plain):
    assert alerts(plain) == {}
    assert next(s["lead"] for s in plain["sections"] if s["key"] == "alerts") == "Nothing stands out."


def test_settings_that_differ_from_the_default_come_first(plain):
    differing, every = blocks(plain, "reproduction", "table")[:2]
    named = {row[0] for row in differing["rows"]}
    assert {"method", "pool", "budget"} <= named <= {"method", "pool", "budget", "model", "seed"}
    assert ("quality.scorer.kind" in {row[0] for row in every["rows"]}) and len(every["rows"]) > len(differing["rows"])
    content = blocks(plain, "reproduction", "table")[-1]["rows"]
    assert ["ingest", "pool: p.jsonl", "c0ffeec0ffeec0ff"] in content


def test_the_same_run_gives_the_same_record(tmp_path):
    run = made_run(tmp_path / "run", pool_of(100))
    once, again = (json.dumps(record_of(run)) for _ in range(2))
    assert once == again


def test_without_texts_no_text_of_a_row_is_left(tmp_path):
    pool = pool_of(60)
    told = json.dumps(record_of(made_run(tmp_path / "run", pool), with_text=False))
    assert "silver" not in told and '{\\"a\\": 1}' not in told and "{oh" not in told
    assert id_text(int(pool.ids[0])) in told


def test_hostile_rows_stay_text_and_are_cut(tmp_path):
    pool = pool_of(60)
    pool.talks[1] = talk(EVIL, EVIL)
    pool.talks[2] = [{"role": r, "content": f"{EVIL}{n}"} for n in range(40) for r in ("user", "assistant")]
    pool.sources[1] = EVIL[:40]
    pool.metas[1] = json.dumps({"skill": EVIL[:30], "id": {"deep": [1]}})
    pool.scores[1], pool.scores[2] = 1e308, float("inf")
    plain = record_of(made_run(tmp_path / "run", pool))
    shown = {item["id"]: item for item in rows(plain)}
    row = shown[id_text(int(pool.ids[1]))]
    assert row["messages"][0]["content"].startswith(EVIL[:1000]) and "more characters" in row["messages"][0]["content"]
    assert row["source"] == EVIL[:40] and row["own_id"] == '{"deep": [1]}'
    long = shown[id_text(int(pool.ids[2]))]
    assert (
        long["score"] is None and len(long["messages"]) == 13 and long["messages"][6]["content"] == "68 more messages"
    )
    assert sum(len(message["content"]) for message in long["messages"]) < 7000


def test_an_unfinished_run_says_how_to_go_on(tmp_path):
    plain = record_of(made_run(tmp_path / "early", pool_of(60), until="ingest"))
    assert plain["sections"][0]["lead"] == "Not finished. Done: ingest. The same command continues the run."
    assert rows(plain, "random") and not blocks(plain, "scores")
    assert rows(plain, "random")[0]["verdict"] == "Kept; the run has no scores yet."
    plain = record_of(made_run(tmp_path / "late", pool_of(60), until="score"))
    assert "Done: ingest, score." in plain["sections"][0]["lead"]
    assert len(blocks(plain, "scores", "histogram")[0]["series"]) == 1
    assert "has not chosen yet" in rows(plain, "random")[0]["verdict"]


def test_a_run_that_failed_says_in_which_stage_and_why(tmp_path):
    run = made_run(tmp_path / "run", pool_of(60), until="score")

    def body(folder):
        raise StageError("choose: the disk is full. Make room.")

    with pytest.raises(StageError):
        run.stage("choose", {}, {}, body)
    plain = record_of(run)
    assert plain["sections"][0]["lead"] == (
        "Stopped in choose: the disk is full. Make room. The same command continues the run."
    )
    assert alerts(plain)["stage_failed"]["text"] == "The run stopped in choose: the disk is full. Make room."
    run.record("killed", "score", for_memory=2, workers=1)
    assert alerts(record_of(run))["memory_score"]["count"] == 2


def test_rows_without_a_score_are_counted_shown_and_warned_of(tmp_path):
    scores = [None if number < 30 else float(number) for number in range(60)]
    plain = record_of(made_run(tmp_path / "run", pool_of(60, scores)))
    assert stages(plain)["score"]["failed"] == 30 and stages(plain)["choose"]["rows_in"] == 30
    assert alerts(plain)["failed_score"]["count"] == 30
    failed = rows(plain, "failed: score")
    assert len(failed) == 8
    assert failed[0]["verdict"] == "Not selected, for want of a score: score: the scorer is ill."


def test_a_selection_that_does_not_follow_the_scores_has_no_cut(tmp_path):
    run = made_run(tmp_path / "run", pool_of(60), until="score")
    whole = made_run(tmp_path / "whole", pool_of(60, [float(n) for n in range(60)]))

    def body(folder):
        for name in ("selection.parquet", "rows/part-00000.parquet"):
            (folder / name).copy_from(whole.manifest("choose").locations("selection")[0].parent / name)
        files = {"selection": ["selection.parquet"], "rows": ["rows/part-00000.parquet"]}
        found = whole.manifest("choose")
        return StageResult(files=files, counts=found.counts, values=found.values)

    run.stage("choose", {}, {}, body)
    plain = record_of(run)
    assert blocks(plain, "scores", "histogram")[0]["marks"] == [] and not blocks(plain, "scores", "what_if")
    out = rows(plain, "just out")[0]["verdict"]
    assert "does not follow the scores alone" in out


def test_ties_at_the_cut_are_told_with_the_rows(tmp_path):
    plain = record_of(made_run(tmp_path / "run", pool_of(60, [1.0] * 25 + [0.0] * 35)))
    assert alerts(plain)["tied"]["count"] == 25 and len(rows(plain, "tied at the cut")) == 10
    assert "the smaller id comes first" in rows(plain, "tied at the cut")[0]["verdict"]


def test_twins_and_equal_questions_are_found_among_the_selected(tmp_path):
    pool = pool_of(60, [float(60 - n) for n in range(60)])
    pool.talks[1] = talk("What is a lighthouse good for?", "It guides ships, at night.")
    pool.talks[2] = talk("what is a LIGHTHOUSE good for", "It guides ships at night")
    pool.talks[3] = talk("What is a lighthouse good for?", "For nothing.")
    plain = record_of(made_run(tmp_path / "run", pool))
    assert alerts(plain)["twins"]["count"] == 1 and alerts(plain)["same_question"]["count"] == 1
    assert {item["rank"] for item in rows(plain, "same text")} == {2, 3}


def test_long_answers_that_win_are_told(tmp_path):
    pool = pool_of(100, [float(n) for n in range(100)])
    pool.talks = [talk(f"Question {n} of the pool?", f"word{n} " * (n + 1)) for n in range(100)]
    plain = record_of(made_run(tmp_path / "run", pool))
    assert alerts(plain)["length_rank"]["count"] == pytest.approx(1, abs=0.01)
    assert alerts(plain)["length_lift"]["count"] == pytest.approx(10)
    assert "hardly told from taking the longest answers (overlap 100 %" in plain["sections"][0]["lead"]


def test_questions_of_target_and_test_set_in_the_pool_are_told(tmp_path):
    pool = pool_of(60)
    best = int(np.argmax(np.array(pool.scores)))
    examples = [
        {"id": f"e{n}", "task": "t", "prompt": prompt, "metric": "exact_match", "reference": "x"}
        for n, prompt in enumerate((pool.talks[best][:1], talk("Is this anywhere in the pool?", "")[:1]))
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(one) + "\n" for one in examples))
    run = made_run(tmp_path / "run", pool, test=[str(tmp_path / "test.jsonl")])
    plain = record_of(run)
    assert alerts(plain)["test_in_pool"]["count"] == alerts(plain)["test_in_selection"]["count"] == 1
    assert [item["id"] for item in rows(plain, "asked in the test set")] == [id_text(int(pool.ids[best]))]
    (tmp_path / "test.jsonl").unlink()
    assert "test_in_pool" not in alerts(record_of(run))


def test_all_other_rows_may_have_been_chosen(tmp_path):
    plain = record_of(made_run(tmp_path / "run", pool_of(20), budget="20"))
    assert plain["sections"][0]["lead"].startswith("100 % of 20 rows (20), ")
    assert not rows(plain, "just out") and not rows(plain, "bottom")


def test_several_runs_are_told_by_their_differences(tmp_path):
    first = made_run(tmp_path / "first", pool_of(60))
    second = made_run(tmp_path / "second", pool_of(60, [float(n % 17) for n in range(60)]), budget="12")
    plain = sound(report_of_runs([open_run(str(run.folder)) for run in (first, second)]))
    assert plain["kind"] == "runs" and plain["sections"][0]["key"] == "differences"
    settings = {row[0]: row[1:] for row in blocks(plain, "differences", "table")[0]["rows"]}
    assert settings["budget"] == ["10", "12"] and "pool" not in settings
    chosen = [ids(run) for run in (first, second)]
    shared = len(chosen[0] & chosen[1])
    overlap = blocks(plain, "differences", "heatmap")[0]["values"]
    assert overlap[0][1] == overlap[1][0] == pytest.approx(shared / (22 - shared))
    only = {item["id"] for item in rows(plain, "only first")}
    assert only == {id_text(one) for one in chosen[0] - chosen[1]}
    assert len(rows(plain, "all chose it")) == shared


def ids(run):
    import pyarrow.parquet as pq

    return {*pq.read_table(run.files(run.manifest("choose"), "selection")[0].path)[ID].to_pylist()}
