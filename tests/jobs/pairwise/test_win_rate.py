"""The win rate whole, on a real local Ray with the nano models: sides, judges, failures, resume."""

import json
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sound_reports import blocks, sound

import raysift
from raysift.errors import ConfigError, DataError, ModelError, StageError, StaleRunError
from raysift.evaluation.examples import read_examples
from raysift.jobs.on_ray import fitting
from raysift.jobs.pairwise.sides import answers_file, read_answers
from raysift.jobs.report.record import report_of
from raysift.jobs.runs.run import open_run
from raysift.pairwise.rows import ORDERS
from raysift.storage import open_location

# Of these the nano reward model can tell right from wrong. Over all skills it prefers the right answer to the model's own
# wrong one in 55 of 100 cases only: wrong sums look like right ones to it.
SKILLS = ["reverse", "sort_numbers", "last_letters"]
COUNT = 45
RESOURCES = {"workers": 1, "batch_rows": 32, "cpus_per_worker": 0.5}
GENERATION = {"max_new_tokens": 24, "backend": "transformers"}


@pytest.fixture(scope="module")
def test_file(tmp_path_factory):
    from raysift.nano.world import examples

    place = tmp_path_factory.mktemp("examples") / "nano.jsonl"
    records = examples(COUNT, 1, SKILLS, "test")
    place.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(place)


def write_answers(place, answers):
    pq.write_table(pa.table({"id": list(answers), "answer": pa.array(answers.values(), pa.string())}), place)
    return str(place)


def references(test_file):
    return {example.id: example.reference for example in read_examples(test_file)}


def compare(test_file, folder, **settings):
    section = {"generation": GENERATION} | settings.pop("win_rate", {})
    resources = RESOURCES | settings.pop("resources", {})
    return raysift.win_rate(test_file, run=folder, resources=resources, win_rate=section, **settings).manifest


def rows_of(folder):
    return pq.read_table(folder / "win_rate.parquet").to_pylist()


def total(manifest):
    line = manifest.values["total"]
    return {name: line[name] for name in ("win", "tie", "lose", "failed", "same")}


@pytest.fixture(scope="module")
def against_truth(ray_local, test_file, tmp_path_factory):
    """The nano model, as `raysift evaluate` asked it, against the right answers, judged by the nano reward model."""
    folder = tmp_path_factory.mktemp("truth")
    evaluated, settings = str(folder / "evaluated"), {"max_new_tokens": 24, "answer_loss": False}
    raysift.evaluate(test_file, run=evaluated, model="nano", evaluate=settings, resources=RESOURCES)
    truth = write_answers(folder / "truth.parquet", references(test_file))
    sides = {"answers": evaluated, "against_answers": truth, "judge": "nano:reward"}
    return folder, compare(test_file, folder / "run", **sides), sides


@pytest.mark.ray
def test_the_base_model_loses_against_the_right_answers(against_truth, test_file):
    folder, manifest, _ = against_truth
    found = total(manifest)
    assert found["lose"] > found["win"] and manifest.values["total"]["score"] < 1 and found["failed"] == 0
    assert found["win"] + found["tie"] + found["lose"] == COUNT == manifest.counts["kept"]
    assert manifest.values["total"]["flip_share"] is None
    assert {line["name"] for line in manifest.values["subsets"]} == {
        f"nano/{example.subset}" for example in read_examples(test_file)
    }
    for name in ("n", "win", "tie", "lose", "failed"):
        assert sum(line[name] for line in manifest.values["subsets"]) == manifest.values["total"][name]
    truth = references(test_file)
    for row in rows_of(folder / "run"):
        assert row["against_answer"] == truth[row["id"]]
        assert row["same"] == (row["own_answer"] == row["against_answer"])
        if not row["same"]:
            (reading,) = row["readings"]
            assert (row["verdict"] == "win") == (reading["own"] > reading["against"])


@pytest.mark.ray
def test_the_table_is_shown_and_names_what_failed(against_truth, capsys):
    from raysift.jobs.pairwise.win_rate import show_win_rate
    from raysift.jobs.runs.console import Console

    _, manifest, _ = against_truth
    show_win_rate(manifest, Console("plain"))
    shown = capsys.readouterr().out
    assert "1 + (win - lose) / judged" in shown and "nano/last_letters" in shown and "flipped" not in shown
    assert "/".join(str(manifest.values["total"][name]) for name in ("win", "tie", "lose")) in shown
    compared = manifest.values["total"] | {"flipped": 9, "flip_share": 0.2, "failed": 1}
    values = manifest.values | {"failed": [{"id": "q-7", "error": "why"}], "total": compared, "subsets": []}
    values["sets"] = [line | {"flipped": 9} for line in values["sets"]]
    show_win_rate(manifest.model_copy(update={"values": values}), Console("plain"))
    shown = capsys.readouterr()
    assert "flipped" in shown.out and "1 questions failed; the first (q-7): why" in shown.err and "20%" in shown.err


@pytest.mark.ray
def test_a_finished_comparison_is_not_done_again_and_another_margin_is_refused(against_truth, test_file):
    folder, manifest, sides = against_truth
    assert compare(test_file, folder / "run", **sides) == manifest
    resources = {"generate": 1, "engine": {"prefix_caching": False, "arguments": {"max_num_seqs": 8}}}
    assert compare(test_file, folder / "run", **sides, resources=resources) == manifest
    assert "max_num_seqs" not in (folder / "run" / "run.yaml").read_text()  # it did nothing
    with pytest.raises(StaleRunError, match=r"margin: 0\.0 -> 0\.5"):
        compare(test_file, folder / "run", **sides, win_rate={"margin": 0.5})


@pytest.mark.ray
def test_swapped_sides_give_the_mirrored_table_and_lost_answers_fail(against_truth, test_file, tmp_path):
    """The answers of the first run, read from files; of one the truth has no line, of another no text."""
    folder, manifest, _ = against_truth
    own = {row["id"]: row["own_answer"] for row in rows_of(folder / "run")}
    truth = references(test_file)
    absent, empty = [row["id"] for row in rows_of(folder / "run") if row["verdict"] == "lose"][:2]
    del truth[absent]
    truth[empty] = None
    swapped = compare(
        test_file,
        tmp_path / "run",
        answers=write_answers(tmp_path / "truth.parquet", truth),
        against_answers=write_answers(tmp_path / "own.parquet", own),
    )
    there, back = total(manifest), total(swapped)
    assert back == there | {"win": there["lose"] - 2, "lose": there["win"], "failed": 2}
    listed = {item["id"]: item["error"] for item in swapped.values["failed"]}
    assert listed.keys() == {absent, empty}
    assert listed[absent].startswith("no answer (own): there is none in") and "none was given" in listed[empty]
    assert swapped.counts == {"rows_in": COUNT, "kept": COUNT - 2, "failed": 2}
    before = {row["id"]: row["readings"] for row in rows_of(folder / "run")}
    for row in rows_of(tmp_path / "run"):
        for one, other in zip(row["readings"], before[row["id"]], strict=False):
            assert (one["own"], one["against"]) == pytest.approx((other["against"], other["own"]), rel=1e-5)


@pytest.fixture
def planned(monkeypatch):
    """What the machine was asked for, one need for each stage whose actors load a model."""
    found, usual = [], fitting.fit_cluster
    monkeypatch.setattr(fitting, "fit_cluster", lambda own, need, *rest: found.append(need) or usual(own, need, *rest))
    return found


@pytest.mark.ray
def test_a_model_against_itself_ties_everywhere(ray_local, test_file, tmp_path, planned):
    manifest = compare(test_file, tmp_path / "run", against_model="nano", win_rate={"limit": 12})
    assert total(manifest) == {"win": 0, "tie": 12, "lose": 0, "failed": 0, "same": 12}
    assert manifest.values["total"]["score"] == 1.0
    replay = (tmp_path / "run" / "run.yaml").read_text()
    assert "against:" in replay and "limit: 12" in replay
    assert len(planned) == 2, "both sides answer by the plan of memory and cores; equal answers need no judge"


@pytest.mark.ray
def test_a_comparing_judge_is_asked_in_both_orders_and_killed_runs_go_on(
    ray_local, test_file, tmp_path, monkeypatch, planned
):
    """The driver dies when the judge has answered; the second attempt keeps its answers."""
    from raysift.jobs.pairwise import comparing

    truth = write_answers(tmp_path / "truth.parquet", references(test_file))
    wrong = write_answers(
        tmp_path / "wrong.parquet", {name: f"not {text}" for name, text in references(test_file).items()}
    )
    section = {
        "by": "comparison",
        "comparison": {"min_mass": 0.0, "prompt": "{request}{first}{second}Better: A, B or C?"},
        "limit": 10,
    }
    ask, sides = comparing.map_rows, {"answers": truth, "against_answers": wrong, "judge": "nano"}

    def dies(files, actor, arguments, out, *rest, **more):
        ask(files, actor, arguments, out, *rest, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(comparing, "map_rows", dies)
        with pytest.raises(KeyboardInterrupt):
            compare(test_file, tmp_path / "run", **sides, win_rate=section)
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "judge").rglob("answers/*.parquet")}
    assert written and len(planned) == 1
    manifest = compare(test_file, tmp_path / "run", **sides, win_rate=section)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "judge").rglob("answers/*.parquet")} == written
    found = manifest.values["total"]
    assert found["n"] == 10 and found["flipped"] is not None and found["flip_share"] == found["flipped"] / 10
    for row in rows_of(tmp_path / "run"):
        assert [r["order"] for r in row["readings"]] == ["own_first", "against_first"]
        assert row["flipped"] is False or row["verdict"] == "tie"
        for reading in row["readings"]:
            assert reading["own"] + reading["against"] + reading["tie"] == pytest.approx(1)


@pytest.mark.ray
def test_a_comparison_without_any_verdict_is_an_error(ray_local, test_file, tmp_path):
    truth = write_answers(tmp_path / "truth.parquet", references(test_file))
    nothing = write_answers(tmp_path / "nothing.parquet", dict.fromkeys(references(test_file)))
    with pytest.raises(
        StageError, match=f"none of {COUNT} questions has a verdict; the first: no answer \\(against\\)"
    ):
        compare(test_file, tmp_path / "run", answers=truth, against_answers=nothing)


@pytest.mark.ray
@pytest.mark.extra
@pytest.mark.parametrize("kind", ["reward", "judge"])
def test_a_judge_on_vllm_gives_the_verdicts_of_transformers(ray_local, test_file, tmp_path, monkeypatch, kind):
    """A judge of 1.3M parameters hardly tells answers apart: what differs by less than backends do is a tie."""
    pytest.importorskip("vllm", reason="needs vLLM; see CONTRIBUTING.md for one without a GPU")
    from raysift.jobs.scoring import quality

    scored, score, build = [], quality.map_rows, quality.build_engine
    monkeypatch.setattr(quality, "map_rows", lambda *args, **named: scored.append(args[1]) or score(*args, **named))
    monkeypatch.setattr(quality, "build_engine", lambda *args: scored.append(build) or build(*args))
    truth = list(references(test_file).items())
    wrong = [(name, f"{text[1:]} three") for name, text in truth]
    sides = {
        "answers": write_answers(tmp_path / "own.parquet", dict(truth[::2] + wrong[1::2])),
        "against_answers": write_answers(tmp_path / "against.parquet", dict(wrong[::2] + truth[1::2])),
        "resources": {"no_progress_timeout_s": 600},
    }
    asked = {"judge": {"min_mass": 0.0}} if kind == "judge" else {}
    found = {}
    for backend in ("transformers", "vllm"):
        judge = {"kind": kind, "backend": backend, **asked}
        section = {"judge": judge, "margin": 1e-2, "limit": 20}
        compare(test_file, tmp_path / backend, **sides, win_rate=section)
        found[backend] = rows_of(tmp_path / backend)
    assert scored == {"reward": [quality.Reward, quality.VllmReward], "judge": [quality.Judge, build]}[kind]
    for one, other in zip(found["transformers"], found["vllm"], strict=True):
        assert (one["id"], one["verdict"]) == (other["id"], other["verdict"])
        (a,), (b,) = one["readings"], other["readings"]
        assert (a["own"], a["against"]) == pytest.approx((b["own"], b["against"]), abs=1e-2)
    assert {row["verdict"] for row in found["vllm"]} >= {"win", "lose"}


@pytest.mark.ray
@pytest.mark.extra
def test_a_comparing_judge_on_vllm_gives_the_verdicts_of_transformers_also_when_its_engine_is_killed(
    ray_local, test_file, tmp_path, monkeypatch
):
    """One pair is cut, and one is longer than the engine was given room for; the bar parts replies from what is none."""
    pytest.importorskip("vllm", reason="needs vLLM; see CONTRIBUTING.md for one without a GPU")
    from functools import partial

    from raysift.jobs.on_ray import vllm_stage
    from raysift.jobs.scoring import quality

    from ..on_ray.test_generation_vllm import finished_before, killed_once  # noqa: TID252

    room = partial(vllm_stage.engine_arguments, max_length=900)
    monkeypatch.setattr(vllm_stage, "engine_arguments", lambda model, max_length, **others: room(model, **others))
    interrupted = killed_once(quality.build_engine, tmp_path / "vllm" / "judge", tmp_path / "killed", at=4)
    monkeypatch.setattr(quality, "build_engine", interrupted)
    truth = list(references(test_file).items())
    wrong = [(name, f"{text[1:]} three") for name, text in truth]
    wrong[0] = (wrong[0][0], "three one two " * 500)
    resources = {"no_progress_timeout_s": 600, "batch_rows": 8, "block_rows": 8}
    sides = {
        "answers": write_answers(tmp_path / "own.parquet", dict(truth[::2] + wrong[1::2])),
        "against_answers": write_answers(tmp_path / "against.parquet", dict(wrong[::2] + truth[1::2])),
        "resources": resources,
    }
    prompt = "{request}{first}{second}Better: A, B or C?"
    found, bar = {}, 0.0
    for backend in ("all", "transformers", "vllm"):
        section = {
            "by": "comparison",
            "judge": {"model": "nano", "backend": "transformers" if backend == "all" else backend},
            "comparison": {"min_mass": bar, "prompt": prompt},
            "margin": 1e-2,
        }
        compare(test_file, tmp_path / backend, **sides, win_rate=section)
        found[backend] = rows_of(tmp_path / backend)
        if backend == "all":
            answers = pa.concat_tables(map(pq.read_table, (tmp_path / "all" / "judge").rglob("answers/*.parquet")))
            masses = sorted(map(min, zip(*(answers[f"mass_{order}"].to_pylist() for order in ORDERS), strict=True)))
            low, high = max(pairwise(masses[10:35]), key=lambda two: two[1] - two[0])
            bar = (low + high) / 2
    for one, other in zip(found["transformers"], found["vllm"], strict=True):
        if other["error"] and "maximum context length is 900" in other["error"]:
            continue
        assert (one["id"], one["verdict"], one["flipped"]) == (other["id"], other["verdict"], other["flipped"])
        assert (one["error"] or "")[:60] == (other["error"] or "")[:60]
        for a, b in zip(one["readings"], other["readings"], strict=True):
            assert a["order"] == b["order"]
            assert [a[k] for k in ("own", "against", "tie")] == pytest.approx(
                [b[k] for k in ("own", "against", "tie")], abs=1e-2
            )
    assert sum("maximum context length is 900" in (row["error"] or "") for row in found["vllm"]) == 1
    (done,) = (tmp_path / "vllm" / "judge").glob("*/done")
    assert 8 <= len(finished_before(done.parent, tmp_path / "killed")) < 2 * COUNT, "finished rows were written again"
    unparsable = sum("unparsable" in (row["error"] or "") for row in found["vllm"])
    counts = json.loads((tmp_path / "vllm" / "judge" / "manifest.json").read_text())["counts"]
    assert (counts["rows_in"], counts["unparsable"], counts["failed"]) == (COUNT, unparsable, unparsable + 1)
    assert 9 <= unparsable <= 36 and len({row["verdict"] for row in found["vllm"]}) > 1


@pytest.mark.ray
@pytest.mark.parametrize("by", ["scores", "comparison"])
def test_a_judge_on_vllm_is_refused_where_there_is_none(ray_local, test_file, tmp_path, monkeypatch, by):
    from raysift.jobs.on_ray import generation

    monkeypatch.setattr(generation, "vllm_version", lambda: None)
    with pytest.raises(ConfigError, match="judge: backend=vllm is set and vLLM is not installed"):
        compare(test_file, tmp_path / "run", against_model="nano", win_rate={"judge": {"backend": "vllm"}, "by": by})
    assert not (tmp_path / "run" / "own").exists()


def test_a_run_without_an_evaluation_is_no_side(tmp_path):
    from raysift.jobs.runs.run import Run

    Run(str(tmp_path / "run")).record("started", "ingest")
    with pytest.raises(DataError, match="has no finished evaluation"):
        answers_file(str(tmp_path / "run"))


def test_files_that_do_not_fit_are_refused(test_file, tmp_path):
    examples = read_examples(test_file)
    place = tmp_path / "answers.parquet"
    with pytest.raises(DataError, match="there is no file"):
        answers_file(str(place))
    write_answers(place, {"other": "x"})
    with pytest.raises(DataError, match=f"answers none of the {COUNT} examples"):
        read_answers(open_location(place), examples)
    pq.write_table(pa.table({"id": ["a", "a"], "answer": ["x", "y"]}), place)
    with pytest.raises(DataError, match="two answers to example 'a'"):
        read_answers(open_location(place), examples)
    pq.write_table(pa.table({"id": [1], "answer": ["x"]}), place)
    with pytest.raises(DataError, match="expected 'id' and 'answer', both texts"):
        read_answers(open_location(place), examples)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, ConfigError, "'win_rate.against' is missing"),
        ({"against_model": "nano", "against_answers": "x.parquet"}, ConfigError, "win_rate.against.*not both"),
        ({"answers": "x.parquet", "adapter": "y", "against_model": "nano"}, ConfigError, "'adapter' and"),
        ({"answers": "x.parquet", "model": "other", "against_model": "nano"}, ConfigError, "'model' and"),
        ({"answers": "x.parquet", "model": "other", "against_adapter": "y"}, DataError, "no file .*x.parquet"),
        ({"against_model": "/nowhere/model"}, ModelError, "there is no folder"),
        ({"against_model": "nano", "judge": "/nowhere/judge"}, ModelError, "there is no folder '/nowhere/judge'"),
        ({"against_answers": "/nowhere/x.parquet"}, DataError, "there is no file"),
    ],
)
def test_what_is_missing_is_said_before_any_work(ray_local, test_file, tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        compare(test_file, tmp_path / "run", **settings)
    assert not (tmp_path / "run" / "own").exists()


@pytest.mark.ray
def test_its_report_tells_who_wins(against_truth):
    folder, manifest, _ = against_truth
    plain = sound(report_of(open_run(str(folder / "run"))))
    table = blocks(plain, "evaluation", "table")[0]
    names = [column["name"] for column in table["columns"]]
    assert dict(zip(names, table["rows"][-1], strict=True))["lose"] == manifest.values["total"]["lose"]
    evaluated = sound(report_of(open_run(str(folder / "evaluated"))))
    assert blocks(evaluated, "evaluation", "table")[0]["rows"] and "score" in evaluated["sections"][0]["lead"].lower()
