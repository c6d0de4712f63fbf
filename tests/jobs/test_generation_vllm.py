"""Generation through `ray.data.llm` on a real vLLM engine, on CPUs: its rows, its failures, and engines that are killed.

An engine takes ten to twenty seconds to come up, so each test looks at several things in one run.
"""

import os
import time
from functools import partial

import pytest

pytest.importorskip("vllm", reason="needs vLLM; see CONTRIBUTING.md for one without a GPU")

import psutil
import pyarrow.fs as pafs

from raysift.errors import StageError
from raysift.generation_settings import GenerationSettings
from raysift.records import ERROR, ID
from raysift.storage import Location, open_location

from .test_generation import POISONED, SCHEMA, committed, ids, read_answers, resources, write_adapter, write_questions

pytestmark = [pytest.mark.ray, pytest.mark.vllm]

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


def test_rows_of_vllm_are_those_of_transformers_and_poisoned_ones_fail_alone(ray_local, tmp_path, monkeypatch):
    from raysift.jobs import generation, vllm_stage

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


def test_an_engine_killed_in_the_middle_repeats_no_finished_row(ray_local, tmp_path, monkeypatch):
    """With a LoRA adapter from a place that is not a local disk, whose copy a new engine needs again."""
    from raysift.jobs import generation, vllm_stage

    write_adapter(tmp_path / "adapters" / "one", rank=4)
    remote = Location(pafs.SubTreeFileSystem(str(tmp_path / "adapters"), pafs.LocalFileSystem()), "one")
    assert not remote.is_local
    files = write_questions(tmp_path, 300)
    out, once, kill = tmp_path / "by-vllm", tmp_path / "killed", engine_killer()
    build = generation.build_engine

    def interrupted(*arguments):
        processor = build(*arguments)
        stage = processor.get_stage_by_name(vllm_stage.ENGINE_STAGE)

        class Interrupted(stage.fn):
            """Kills its engine once: at the 20th of 38 batches, as soon as rows of earlier ones are committed."""

            batches = 0

            async def udf(self, batch):
                import asyncio

                self.batches += 1
                tries = 0 if once.exists() or self.batches < 20 else 600
                while tries and not once.exists():
                    await asyncio.sleep(0.1)
                    if sum("pending" not in str(path) for path in (out / "done").rglob("*.parquet")) >= 2:
                        once.touch()
                        kill()
                    tries -= 1
                async for row in super().udf(batch):
                    yield row

        vllm_stage.replace_engine(stage, Interrupted)
        return processor

    monkeypatch.setattr(generation, "build_engine", interrupted)
    generate = generation.generate
    answers = generate(files, "nano", open_location(out), settings(), resources(), adapter=remote)
    assert once.exists(), "the engine was not killed"
    when = once.stat().st_mtime_ns
    before = [number for number, written in committed(out).items() if written < when]
    assert 20 <= len(before) < 300, "rows that were finished were written again"
    rows = read_answers(answers).to_pylist()
    assert [row[ID] for row in rows] == ids(300)
    local = open_location(tmp_path / "adapters" / "one")
    place = open_location(tmp_path / "expected")
    expected = read_answers(
        generate(files, "nano", place, settings(backend="transformers"), resources(), adapter=local)
    ).to_pylist()
    same = sum(one == other for one, other in zip(rows, expected, strict=True))
    assert same >= 297, f"{same} of 300 greedy answers with an adapter are the same"


def test_an_engine_that_dies_again_and_again_ends_the_run(ray_local, tmp_path, monkeypatch):
    from raysift.jobs import generation, vllm_stage

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

    monkeypatch.setattr(vllm_stage, "MAX_RESTARTS", 1)
    monkeypatch.setattr(generation, "build_engine", doomed)
    files = write_questions(tmp_path, 20)
    one_batch = resources(block_rows=100, batch_rows=100)
    with pytest.raises(StageError, match=r"could not go on through vLLM .* started again 1 times"):
        generation.generate(files, "nano", open_location(tmp_path / "out"), settings(), one_batch)
    assert starts.read_text().count("x") == 2


def test_an_engine_that_does_not_start_ends_the_run(ray_local, tmp_path, monkeypatch):
    from raysift.jobs import generation, vllm_stage

    arguments = vllm_stage.engine_arguments
    monkeypatch.setattr(
        vllm_stage, "engine_arguments", lambda *args, **named: arguments(*args, **named) | {"kv_cache_memory_bytes": 1}
    )
    files = write_questions(tmp_path, 4)
    with pytest.raises(StageError, match=r"could not go on through vLLM .*Engine core initialization failed"):
        generation.generate(files, "nano", open_location(tmp_path / "out"), settings(), resources())


def test_draws_follow_the_row_and_not_its_batch(ray_local, tmp_path):
    from raysift.jobs.generation import generate

    files = write_questions(tmp_path, 60)
    drawn = settings(temperature=1.0, top_p=0.9, seed=3)
    one = read_answers(generate(files, "nano", open_location(tmp_path / "one"), drawn, resources()))
    two = read_answers(
        generate(files[::-1], "nano", open_location(tmp_path / "two"), drawn, resources(batch_rows=3, block_rows=7))
    )
    same = sum(a == b for a, b in zip(one.to_pylist(), two.to_pylist(), strict=True))
    assert same >= 58, f"{same} of 60 drawn answers are the same"
    assert one[ERROR].null_count == 60


os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
