"""An evaluation whole: what goes in comes out scored, failed or counted, and Ray changes no answer."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sound_reports import blocks, sound

from raysift.actors.loaded import LoadedModel, load
from raysift.errors import DataError, ModelError, StageError
from raysift.evaluation.examples import example_key, parse_example, read_examples
from raysift.evaluation.metrics import EvalConfig
from raysift.evaluation.report import answers_by_id, choose_examples, make_report, question_rows
from raysift.jobs.report.record import report_of
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import Run, open_run
from raysift.jobs.stages import asked_as_trained
from raysift.jobs.training.evaluate import evaluate, evaluate_here
from raysift.records import ERROR, ID, MESSAGES, Example, Message
from raysift.settings.resources import Resources
from raysift.settings.training import recipe
from raysift.storage import open_location

from ...tiny_models import tiny_llama  # noqa: TID252

CONFIG = EvalConfig(max_new_tokens=6, backend="transformers")  # whose answers are those of one process


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return tiny_llama(tmp_path_factory.mktemp("model"), initializer_range=0.2)


@pytest.fixture(scope="module")
def loaded(tiny) -> LoadedModel:
    return load(tiny, threads=1)


def ask(number, metric="exact_match", task="words", **fields):
    record = {
        "id": f"{task}-{number}",
        "task": task,
        "prompt": f"Word {number}?",
        "reference": str(number),
        "metric": metric,
    }
    if metric.startswith("mc_"):
        record |= {"choices": ["yes", f"no {number}", "perhaps"], "answer_index": 0}
    return parse_example(record | fields, "test")


def mixed():
    return [
        *(ask(i) for i in range(9)),
        *(ask(i, "numeric_match", "sums", subset="odd" if i % 2 else "even") for i in range(8)),
        *(ask(i, "mc_accuracy", "choice") for i in range(9)),
        *(ask(i, "mc_truthful", "truth") for i in range(5)),
        *(ask(i, "rouge_l", "summary") for i in range(5)),
        *(ask(i, "judge", "chat") for i in range(4)),
        ask(99, prompt="x" * 600),
    ]


def test_every_example_is_scored_failed_or_counted(loaded):
    report = evaluate_here(mixed(), loaded, CONFIG)
    assert report.counts == {"rows_in": 41, "kept": 36, "rejected": {"not scored: chat: judge": 4}, "failed": 1}
    assert report.answers[ID].to_pylist() == [example.id for example in mixed()]
    assert {line.task: (line.n, line.failed) for line in report.tasks} == {
        "choice": (9, 0),
        "sums": (8, 0),
        "summary": (5, 0),
        "truth": (5, 0),
        "words": (9, 1),
    }
    last = report.answers.to_pylist()[-1]
    assert (last["status"], last["score"]) == ("failed", None)
    assert "room for" in last[ERROR]
    assert {line.task for line in report.losses} == {"choice", "sums", "summary", "truth", "words"}
    assert {line.task: (line.n, line.failed) for line in report.losses}["words"] == (9, 1)
    assert {line.task for line in report.subsets} >= {"sums/even", "sums/odd"}
    assert all(0 <= line.low <= line.mean <= line.high <= 1 for line in [*report.tasks, report.overall])
    json.dumps(report.values)


def fake_answers(examples, config, say):
    """Answers of a model that says `say(example)`, for the generating metrics."""
    rows = question_rows(examples, config)
    answers = [
        {ID: example_key(e.id), "answer": say(e), "n_new_tokens": 1, "finished": True, ERROR: None} for e in examples
    ]
    return {"generate": answers_by_id("generate", rows["generate"], pa.Table.from_pylist(answers))}


def test_scores_and_intervals_of_a_worked_example():
    examples = [ask(i) for i in range(10)]
    config = EvalConfig(answer_loss=False)
    report = make_report(
        examples, fake_answers(examples, config, lambda e: e.reference if e.id < "words-8" else "?"), config
    )
    (line,) = report.tasks
    # 8 of 10 right: Wilson's interval is 0.4902 to 0.9433
    assert (line.n, line.mean, line.low, line.high) == (
        10,
        0.8,
        pytest.approx(0.4902, abs=1e-4),
        pytest.approx(0.9433, abs=1e-4),
    )
    assert report.overall.mean == 0.8
    assert sum(report.scores().values()) == 8


def test_report_does_not_know_the_order_of_the_examples(loaded):
    there, back = evaluate_here(mixed(), loaded, CONFIG), evaluate_here(mixed()[::-1], loaded, CONFIG)
    assert there.tasks == back.tasks
    assert there.scores() == back.scores()


def test_shuffled_choices_are_scored_in_the_files_order():
    """The right choice gets the best log-probability wherever it was shown."""
    examples = [ask(i, "mc_truthful", choices=["right", *(f"wrong {k}" for k in range(4))]) for i in range(30)]
    for style in ("text", "letter"):
        config = EvalConfig(choice_style=style, answer_loss=False, choice_normalisation="sum")
        found = {}
        for example, row in zip(examples, question_rows(examples, config)["choose"].to_pylist(), strict=True):
            shown = (
                row["choices"]
                if style == "text"
                else [f"{x}. right" in row[MESSAGES][0]["content"] for x in row["choices"]]
            )
            logprobs = [0.0 if choice in ("right", True) else -5.0 for choice in shown]
            ones = [1] * len(shown)
            found[example_key(example.id)] = {
                "choice_logprobs": logprobs,
                "choice_tokens": ones,
                "choice_bytes": ones,
                ERROR: None,
            }
        assert make_report(examples, {"choose": found}, config).tasks[0].mean == 1


def test_letters_list_the_choices_in_the_question():
    (row,) = question_rows([ask(1, "mc_accuracy")], EvalConfig(choice_style="letter", answer_loss=False))[
        "choose"
    ].to_pylist()
    assert row["choices"] == ["A", "B", "C"]
    assert row[MESSAGES][0]["content"].startswith("Word 1?\n\nA. yes\nB. no 1\nC. perhaps\n\nAnswer")


def test_choices_follow_the_models_log_probability(loaded):
    """The pick is the arg-max of a plain sum over each choice alone."""
    from raysift.actors.likelihood import Likelihood

    config = EvalConfig(choice_normalisation="sum", answer_loss=False)
    examples = [ask(i, "mc_accuracy") for i in range(20)]
    answers = evaluate_here(examples, loaded, config).answers["answer"].to_pylist()
    rows = Likelihood(loaded, batch_tokens=1)(question_rows(examples, config)["choose"]).to_pylist()
    for example, row, answer in zip(examples, rows, answers, strict=True):
        assert answer == example.choices[max(range(3), key=row["choice_logprobs"].__getitem__)]


def test_split_and_limit_choose_examples():
    examples = [ask(i, split="dev" if i % 3 else "test") for i in range(30)]
    assert len(choose_examples(examples, EvalConfig(split="test"))) == 10
    assert len(choose_examples(examples, EvalConfig(split="test", limit=4))) == 4
    with pytest.raises(DataError, match="no examples of split 'val'"):
        choose_examples(examples, EvalConfig(split="val"))


def test_impossible_examples_are_refused_before_a_model_is_loaded():
    with pytest.raises(DataError, match="two examples have the id 'words-1'"):
        evaluate_here([ask(1), ask(1)], "no-such-model", CONFIG)
    with pytest.raises(DataError, match="metric 'exact_match' compares with it"):
        evaluate_here([Example("a", "t", (Message("user", "?"),), "exact_match")], "no-such-model", CONFIG)
    many = ask(1, "mc_accuracy", choices=[f"c{i}" for i in range(30)])
    with pytest.raises(DataError, match="more than there are letters"):
        evaluate_here([many], "no-such-model", EvalConfig(choice_style="letter"))


def test_a_missing_answer_is_an_error_and_not_a_zero():
    rows = question_rows([ask(1), ask(2)], CONFIG)["generate"]
    with pytest.raises(StageError, match="1 answers to 1 ids, 2 were asked"):
        answers_by_id("generate", rows, pa.Table.from_pylist([{ID: example_key("words-1"), "answer": "1"}]))


@pytest.mark.ray
def test_ray_gives_the_answers_of_one_process(ray_local, loaded, tiny, tmp_path):
    config = CONFIG.model_copy(update={"answer_loss": False})  # measured by the next test
    here = evaluate_here(mixed(), loaded, config)
    out = open_location(tmp_path / "run")
    there = evaluate(mixed(), tiny, out, config, Resources(workers=2, batch_rows=6, block_rows=12, cpus_per_worker=0.5))
    assert (there.tasks, there.counts) == (here.tasks, here.counts)
    assert there.answers.equals(here.answers)
    assert pq.read_table(tmp_path / "run" / "answers.parquet").equals(there.answers)
    assert json.loads((tmp_path / "run" / "report.json").read_text())["counts"] == there.counts
    assert there.answered_by["backend"] == there.values["answered_by"]["backend"] == "transformers"
    assert not here.answered_by


def test_a_backend_identifies_answers_only_where_it_is_named():
    assert "backend" not in EvalConfig().deciding() and EvalConfig(backend="vllm").deciding()["backend"] == "vllm"
    assert EvalConfig().deciding() | {"backend": "auto"} == EvalConfig().model_dump(mode="json")


def test_a_missing_model_is_named_before_any_worker_starts(tmp_path):
    with pytest.raises(ModelError, match=r"there is no folder '\./nowhere'"):
        evaluate(mixed(), "./nowhere", open_location(tmp_path), CONFIG, Resources())


def test_shared_files_are_evaluated(shared_data, loaded):
    """A few of each task; a random model is wrong nearly everywhere, and the table has all of them."""
    examples = read_examples(str(shared_data / "eval"), split="test", limit=3)
    report = evaluate_here(examples, loaded, EvalConfig(max_new_tokens=4))
    assert report.counts["rows_in"] == 36
    assert report.counts["kept"] + report.counts["failed"] + sum(report.counts["rejected"].values()) == 36
    assert set(report.not_scored) == {
        "ifeval: instruction_checks",
        "mbpp: pass@1",
        "mt_bench: judge",
        "vicuna_80: judge",
    }
    assert {line.task for line in report.tasks} == {
        "bbh", "chatdoctor", "commonsenseqa", "gsm8k", "mmlu", "svamp", "truthfulqa", "xsum",
    }  # fmt: skip


def test_nano_model_is_far_better_than_chance_on_the_nano_test_set():
    from raysift.nano.world import examples

    skills = ["parity", "maximum", "uppercase"]
    records = [*examples(45, 0, skills, "test"), *examples(45, 1, skills, "test", "mc_accuracy")]
    report = evaluate_here([parse_example(r, "nano") for r in records], "nano", EvalConfig(max_new_tokens=24))
    by_metric = {line.metric: line.mean for line in report.tasks}
    assert by_metric["exact_match"] > 0.5
    assert by_metric["mc_accuracy"] > 0.6
    assert report.losses[0].mean < 1


def test_a_tuned_model_is_asked_under_the_template_of_its_training(ray_local, tiny, tmp_path):
    """After its training, and again by itself: its record tells the template, and the manifest which one it was."""
    import raysift

    rows = [{"instruction": f"Word {number}?", "output": str(number)} for number in range(8)]
    pool, test = tmp_path / "pool.jsonl", tmp_path / "test.jsonl"
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [
        {"id": f"w-{n}", "task": "w", "prompt": f"Word {n}?", "reference": str(n), "metric": "exact_match"}
        for n in range(4)
    ]
    test.write_text("".join(json.dumps(record) + "\n" for record in asked))
    train = {"template": "tulu", "epochs": 1, "batch_size": 8, "dtype": "fp32", "seed": 2**32 - 1}
    common = {"model": tiny, "evaluate": {"max_new_tokens": 4}, "resources": {"train": 0, "workers": 1}}
    trained = raysift.finetune(str(pool), run=str(tmp_path / "tuned"), test=[str(test)], train=train, **common)
    after = open_run(str(tmp_path / "tuned")).manifest("evaluate")
    plain = sound(report_of(open_run(str(tmp_path / "tuned"))))
    assert plain["sections"][0]["lead"].startswith("Trained on ") and blocks(plain, "training", "lines")
    assert blocks(plain, "evaluation", "table")[0]["rows"][0][:3] == ["w", "exact_match", 4]
    assert trained.evaluation is not None and trained.evaluation.manifest == after
    alone = raysift.evaluate(str(test), run=str(tmp_path / "alone"), adapter=trained, **common).manifest
    assert after.settings["evaluate"]["template"] == alone.settings["evaluate"]["template"] == "tulu"
    assert after.values["overall"] == alone.values["overall"]
    untrained = raysift.evaluate(str(test), run=str(tmp_path / "base"), seed=5, **common).manifest
    assert (untrained.settings["evaluate"]["template"], untrained.settings["evaluate"]["seed"]) == ("auto", 5)


def test_the_template_of_the_training_is_told_where_the_user_named_none(tmp_path):
    class Notes(Console):
        def note(self, text):
            told.append(text)

    told: list[str] = []
    run = Run(str(tmp_path / "run"), Notes("quiet"))
    asked = [
        asked_as_trained(run, "evaluate", "evaluate", EvalConfig(template=named), "nano", None, recipe("less")).template
        for named in ("train", "chatml")
    ]
    assert asked == ["tulu", "chatml"]
    assert told == ["evaluate: asked under the chat template of the training, 'tulu' (evaluate.template)"]
