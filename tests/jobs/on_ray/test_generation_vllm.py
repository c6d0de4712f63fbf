"""Answers and ratings through `ray.data.llm` on a real vLLM engine, on CPUs: rows, failures, and engines that are killed.

An engine is two processes that import vLLM, some fifteen seconds of CPU, so each test looks at several things in one run.
"""

import time
from functools import partial
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("vllm", reason="needs vLLM; see CONTRIBUTING.md for one without a GPU")

import psutil
import pyarrow.fs as pafs

from raysift.errors import StageError
from raysift.evaluation.examples import parse_example
from raysift.jobs.on_ray.generation import vllm_version
from raysift.nano.world import examples
from raysift.records import ERROR, ID
from raysift.settings.generation import GenerationSettings
from raysift.storage import Location, open_location

from .test_generation import POISONED, SCHEMA, committed, ids, read_answers, write_adapter, write_questions
from .test_generation import resources as plain_resources

pytestmark = [pytest.mark.ray, pytest.mark.extra]

MARK = "VLLM_RAYSIFT_TEST"


@pytest.fixture(autouse=True)
def marked(monkeypatch, tmp_path):
    """Engines of a test carry its folder in their environment, by which they are found and no others."""
    monkeypatch.setenv(MARK, str(tmp_path))
    yield str(tmp_path)
    deadline = time.monotonic() + 20
    while engines(str(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert engines(str(tmp_path)) == [], "engines outlived their run"


def engines(mark):
    """Processes of vLLM's engine core that this test started."""
    found = []
    for process in psutil.process_iter():
        try:
            if "EngineCore" in " ".join(process.cmdline()) and process.environ().get(MARK) == mark:
                found.append(process)
        except psutil.Error:
            continue
    return found


def settings(**changes):
    return GenerationSettings(**({"max_new_tokens": 16, "backend": "vllm"} | changes))


def resources(**changes):
    """On a busy machine an engine may take minutes to come up, in which nothing moves."""
    return plain_resources(**({"no_progress_timeout_s": 600} | changes))


def test_settings_reach_the_stage_of_the_engines(ray_local):
    from raysift.jobs.cluster.machines import of_role
    from raysift.jobs.on_ray import vllm_stage

    own = {"concurrent_blocks": 3, "prefix_caching": False, "arguments": {"max_num_seqs": 8}}
    own = {"engine": own, "restarts": 5, "generate": 2}
    found = {}
    for name, changes in (("usual", {}), ("own", own)):
        here = of_role(resources(**changes), "generate", "nano")
        request = vllm_stage.Request({"max_tokens": 4})
        processor = vllm_stage.build_engine("nano", None, request, here, 64, False)
        stage = processor.get_stage_by_name(vllm_stage.ENGINE_STAGE)
        actors, kwargs = stage.map_batches_kwargs, stage.fn_constructor_kwargs
        arguments = kwargs["engine_kwargs"]
        found[name] = (
            *(actors["max_restarts"], actors["max_concurrency"], actors["compute"].max_size),
            *(kwargs["max_concurrent_batches"], arguments["enable_prefix_caching"], arguments.get("max_num_seqs")),
        )
    assert found == {"usual": (10, 16, 1, 16, True, None), "own": (5, 3, 2, 3, False, 8)}


def test_rows_of_vllm_are_those_of_transformers_and_poisoned_ones_fail_alone(ray_local, tmp_path, monkeypatch):
    from raysift.jobs.on_ray import generation, vllm_stage

    # The engine is given less room than the rows were measured by, so it raises at the last of them.
    room = partial(vllm_stage.engine_arguments, max_length=128)
    monkeypatch.setattr(vllm_stage, "engine_arguments", lambda model, max_length, **others: room(model, **others))
    files = write_questions(tmp_path, 100, [*POISONED, [{"role": "user", "content": "one two three " * 40}]])
    found = {}
    for backend in ("vllm", "transformers"):
        out = open_location(tmp_path / backend)
        found[backend] = read_answers(generation.generate(files, "nano", out, settings(backend=backend), resources()))
        assert generation.recorded_backend(out)["backend"] == backend
    assert [(field.name, field.type) for field in found["vllm"].schema] == SCHEMA
    assert found["vllm"][ID].to_pylist() == ids(103)
    rows, expected = found["vllm"].to_pylist(), found["transformers"].to_pylist()
    assert [row[ERROR] is None for row in rows] == [True] * 100 + [False] * 3
    assert rows[100:102] == expected[100:102]
    assert "maximum context length is 128 tokens" in rows[102][ERROR]
    same = sum(one == other for one, other in zip(rows[:100], expected[:100], strict=True))
    assert same >= 99, f"{same} of 100 greedy answers are the same"
    assert len({row["n_new_tokens"] for row in rows[:100]}) > 3


def test_an_evaluation_answers_alike_through_both_and_says_which(ray_local, tmp_path):
    """`auto` takes the engine that is there; prompts are those of transformers, and so are nearly all greedy answers."""
    from raysift.evaluation.metrics import EvalConfig
    from raysift.jobs.training.evaluate import evaluate

    tests = [parse_example(line, "test") for line in examples(60, 1, ["add", "reverse"])]
    found = {}
    for backend in ("auto", "transformers"):
        config = EvalConfig(max_new_tokens=16, backend=backend)
        found[backend] = evaluate(tests, "nano", open_location(tmp_path / backend), config, resources())
    assert [found[name].answered_by["backend"] for name in found] == ["vllm", "transformers"]
    assert found["auto"].values["answered_by"]["version"] == vllm_version()
    one, two = (report.answers.drop_columns(["answer_loss"]).to_pylist() for report in found.values())
    assert len(one) == len(tests) and sum(a == b for a, b in zip(one, two, strict=True)) >= 0.98 * len(tests)
    assert abs(found["auto"].overall.mean - found["transformers"].overall.mean) <= 0.02
    assert [line.mean for line in found["auto"].losses] == [line.mean for line in found["transformers"].losses]


def engine_killer():
    """A function that kills the engines of the process it is called in, which cannot import this file."""

    def kill():
        import contextlib

        import psutil

        for process in psutil.Process().children():
            # One that another batch has killed a moment before is a zombie, and gone.
            with contextlib.suppress(psutil.NoSuchProcess):
                if "EngineCore" in " ".join(process.cmdline()):
                    process.kill()

    return kill


def killed_once(build, out, mark, at):
    """`build_engine` with an engine that is killed once, as soon as rows of two blocks are committed.

    Batches wait for that from the number `at` on, each five seconds longer than the one before: which of them complete a
    block is not known, since the first batches of all blocks may come before any second one.
    """
    from raysift.jobs.on_ray import vllm_stage

    kill = engine_killer()

    def interrupted(*arguments):
        processor = build(*arguments)
        stage = processor.get_stage_by_name(vllm_stage.ENGINE_STAGE)

        class Interrupted(stage.fn):
            batches = 0

            async def udf(self, batch):
                import asyncio

                self.batches += 1
                tries = 10 * max(0, self.batches + 1 - at)
                while tries and not mark.exists():
                    await asyncio.sleep(0.5)
                    done = [path for path in out.rglob("*.parquet") if "done" in path.parts]
                    if sum("pending" not in str(path) for path in done) >= 2:
                        mark.touch()
                        kill()
                    tries -= 1
                async for row in super().udf(batch):
                    yield row

        vllm_stage.replace_engine(stage, Interrupted)
        return processor

    return interrupted


def finished_before(out, mark):
    """Rows that were committed before the kill and stand in the files of that time."""
    assert mark.exists(), "the engine was not killed"
    when = mark.stat().st_mtime_ns
    return [number for number, written in committed(out).items() if written < when]


def test_an_engine_killed_in_the_middle_repeats_no_finished_row(ray_local, tmp_path, monkeypatch):
    """With a LoRA adapter from a place that is not a local disk, whose copy a new engine needs again."""
    from raysift.jobs.on_ray import generation

    write_adapter(tmp_path / "adapters" / "one", rank=4)
    remote = Location(pafs.SubTreeFileSystem(str(tmp_path / "adapters"), pafs.LocalFileSystem()), "one")
    assert not remote.is_local
    files = write_questions(tmp_path, 300)
    out, once = tmp_path / "by-vllm", tmp_path / "killed"
    interrupted = killed_once(generation.build_engine, out, once, at=20)  # of 38 batches
    monkeypatch.setattr(generation, "build_engine", interrupted)
    generate = generation.generate
    answers = generate(files, "nano", open_location(out), settings(), resources(), adapter=remote)
    assert 20 <= len(finished_before(out, once)) < 300, "rows that were finished were written again"
    rows = read_answers(answers).to_pylist()
    assert [row[ID] for row in rows] == ids(300)
    local = open_location(tmp_path / "adapters" / "one")
    place = open_location(tmp_path / "expected")
    expected = read_answers(
        generate(files, "nano", place, settings(backend="transformers"), resources(), adapter=local)
    ).to_pylist()
    same = sum(one == other for one, other in zip(rows, expected, strict=True))
    assert same >= 297, f"{same} of 300 greedy answers with an adapter are the same"


@pytest.mark.parametrize(("asked_by", "restarts"), [("generation", 1), ("quality", 0)])
def test_an_engine_that_dies_again_and_again_ends_the_run(ray_local, tmp_path, monkeypatch, asked_by, restarts):
    from raysift.config import CommonConfig
    from raysift.jobs.on_ray import generation, vllm_stage
    from raysift.jobs.runs.run import Run
    from raysift.jobs.scoring import quality
    from raysift.scoring.settings import QualitySettings

    build, starts, kill = generation.build_engine, tmp_path / "starts", engine_killer()

    def doomed(*arguments):
        processor = build(*arguments)
        stage = processor.get_stage_by_name(vllm_stage.ENGINE_STAGE)

        class Doomed(stage.fn):
            async def udf(self, batch):
                with starts.open("a") as file:
                    file.write("x\n")
                kill()
                async for row in super().udf(batch):
                    yield row

        vllm_stage.replace_engine(stage, Doomed)
        return processor

    monkeypatch.setattr({"generation": generation, "quality": quality}[asked_by], "build_engine", doomed)
    files = write_questions(tmp_path, 20)
    one_batch = resources(block_rows=100, batch_rows=100, restarts=restarts)
    with pytest.raises(StageError, match=r"could not go on through vLLM .* as often as resources\.restarts says"):
        if asked_by == "generation":
            generation.generate(files, "nano", open_location(tmp_path / "out"), settings(), one_batch)
        else:
            run, judge = Run(str(tmp_path / "run")), QualitySettings(kind="judge", backend="vllm")
            quality.score_answers("quality", run, CommonConfig(resources=one_batch), judge, files, 20, run.folder)
    assert starts.read_text().count("x") == restarts + 1


def test_an_engine_that_does_not_start_ends_the_run(ray_local, tmp_path, monkeypatch):
    from raysift.jobs.on_ray import generation, vllm_stage

    arguments = vllm_stage.engine_arguments
    monkeypatch.setattr(
        vllm_stage, "engine_arguments", lambda *args, **named: arguments(*args, **named) | {"kv_cache_memory_bytes": 1}
    )
    files = write_questions(tmp_path, 4)
    with pytest.raises(StageError, match=r"could not go on through vLLM .*Engine core initialization failed"):
        generation.generate(files, "nano", open_location(tmp_path / "out"), settings(), resources())


def test_draws_follow_the_row_and_not_its_batch(ray_local, tmp_path):
    from raysift.jobs.on_ray.generation import generate

    files = write_questions(tmp_path, 60)
    drawn = settings(temperature=1.0, top_p=0.9, seed=3)
    one = read_answers(generate(files, "nano", open_location(tmp_path / "one"), drawn, resources()))
    two = read_answers(
        generate(files[::-1], "nano", open_location(tmp_path / "two"), drawn, resources(batch_rows=3, block_rows=7))
    )
    same = sum(a == b for a, b in zip(one.to_pylist(), two.to_pylist(), strict=True))
    assert same >= 58, f"{same} of 60 drawn answers are the same"
    assert one[ERROR].null_count == 60


def test_ratings_are_those_of_transformers_also_when_the_engine_is_killed_and_rows_are_poisoned(
    ray_local, tmp_path, monkeypatch
):
    """A judge of 1.3M parameters rates nothing of its own accord: the bar is put where half of its replies are below."""
    from raysift.actors.judge import Judge
    from raysift.config import CommonConfig
    from raysift.jobs.on_ray import vllm_stage
    from raysift.jobs.runs.run import Run
    from raysift.jobs.scoring import quality
    from raysift.scoring.settings import JudgeSettings, QualitySettings

    # The engine is given less room than the rows were measured by, so it raises at the one that is cut to 1023 tokens.
    room = partial(vllm_stage.engine_arguments, max_length=600)
    monkeypatch.setattr(vllm_stage, "engine_arguments", lambda model, max_length, **others: room(model, **others))
    files = write_questions(tmp_path, 60, POISONED)
    table = pa.concat_tables([pq.read_table(file.path) for file in files]).sort_by(ID)
    wanted = Judge("nano", settings=JudgeSettings(min_mass=0), threads=1)(table).to_pylist()
    low, high = max(pairwise(sorted(row["rating_mass"] for row in wanted[:60])[20:40]), key=lambda two: two[1] - two[0])
    bar = (low + high) / 2

    run, once = Run(str(tmp_path / "run")), tmp_path / "killed"
    interrupted = killed_once(quality.build_engine, tmp_path / "run", once, at=10)  # of 13 batches
    monkeypatch.setattr(quality, "build_engine", interrupted)
    config = CommonConfig(resources=resources(block_rows=10, batch_rows=5))
    scorer = QualitySettings(kind="judge", backend="vllm", judge=JudgeSettings(min_mass=bar))
    result = quality.score_answers("quality", run, config, scorer, files, 62, run.folder)
    assert 10 <= len(finished_before(tmp_path / "run", once)) < 62, "rows that were finished were written again"

    answers = read_answers([run.folder / name for name in result.files["answers"]])
    assert answers.schema == Judge.answer_schema()
    rows = answers.to_pylist()
    assert [row[ID] for row in rows] == ids(62)
    for row, other in zip(rows[:60], wanted[:60], strict=True):
        if other["rating_mass"] < bar:
            assert row[ERROR].startswith("unparsable: the ratings 1 to 5 together have probability 0.")
            assert row["judge_score"] is row["rating_mass"] is row["n_tokens"] is row["truncated"] is None
        else:
            assert row[ERROR] is None
            assert row["judge_score"] == pytest.approx(other["judge_score"], abs=1e-2)
            assert row["rating_mass"] == pytest.approx(other["rating_mass"], rel=1e-2)
            assert (row["n_tokens"], row["truncated"]) == (other["n_tokens"], other["truncated"])
    assert wanted[60]["truncated"] and "maximum context length is 600 tokens" in rows[60][ERROR]
    assert rows[61] == wanted[61] and "nothing was asked" in rows[61][ERROR]
    unparsable = sum(row["rating_mass"] < bar for row in wanted[:60])
    assert 20 <= unparsable <= 40
    assert result.counts == {
        "rows_in": 62, "kept": 60 - unparsable, "failed": unparsable + 2, "truncated": 0, "unparsable": unparsable
    }  # fmt: skip
