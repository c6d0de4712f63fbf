"""Generation on transformers, on a real local Ray: the rows, what a killed driver leaves, and how a backend is picked."""

import json
import signal
import subprocess
import sys
import textwrap
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysift.errors import ConfigError, ModelError, StageError
from raysift.pool.checks import IngestConfig
from raysift.records import ERROR, ID, MESSAGE, MESSAGES, META
from raysift.settings.cluster import Cluster, Machine
from raysift.settings.generation import GenerationSettings
from raysift.settings.resources import Resources
from raysift.storage import open_location

pytestmark = pytest.mark.ray

FIRST_ID = 2**62 + 1  # ids are hashes of 64 bits: what passes through a float comes out as another row


def ids(rows):
    return list(range(FIRST_ID, FIRST_ID + rows))


SCHEMA = [
    (ID, pa.int64()),
    ("answer", pa.string()),
    ("n_new_tokens", pa.int64()),
    ("finished", pa.bool_()),
    (ERROR, pa.string()),
]


def resources(**settings):
    return Resources(
        **({"block_rows": 20, "batch_rows": 8, "no_progress_timeout_s": 120, "cpus_per_worker": 0.5} | settings)
    )


def settings(**changes):
    return GenerationSettings(**({"max_new_tokens": 16, "backend": "transformers"} | changes))


def write_questions(folder, rows, extra=()):
    """Nano conversations in two files, and rows of one's own after them."""
    from raysift.nano.world import generate_pool

    conversations = [*(row["messages"] for row in generate_pool(rows, 0)), *extra]
    records = [{ID: FIRST_ID + i, MESSAGES: messages} for i, messages in enumerate(conversations)]
    schema = pa.schema([(ID, pa.int64()), (MESSAGES, pa.list_(MESSAGE))])
    places = []
    for number in range(2):
        path = folder / f"questions-{number}.parquet"
        pq.write_table(pa.Table.from_pylist(records[number::2], schema=schema), path)
        places.append(open_location(path))
    return places


def read_answers(files):
    return pa.concat_tables([pq.read_table(file.path) for file in files]).sort_by(ID)


POISONED = [
    [{"role": "user", "content": "three one two " * 500}, {"role": "assistant", "content": "too long"}],
    [{"role": "assistant", "content": "nobody asked"}],
]


def test_rows_schema_and_failures_do_not_depend_on_the_workers(ray_local, tmp_path):
    from raysift.jobs.on_ray.generation import generate, recorded_backend

    files = write_questions(tmp_path, 60, POISONED)
    one, two = (open_location(tmp_path / name) for name in ("one", "two"))
    answers = read_answers(generate(files, "nano", one, settings(), resources(workers=1, block_rows=100)))
    again = read_answers(generate(files[::-1], "nano", two, settings(), resources(workers=2, batch_rows=3)))
    assert answers.equals(again)
    assert [(field.name, field.type) for field in answers.schema] == SCHEMA
    assert answers[ID].to_pylist() == ids(62)
    errors = answers[ERROR].to_pylist()
    assert errors[:60] == [None] * 60
    assert "with max_new_tokens=16 there is room for 1008" in errors[60]
    assert "nothing was asked" in errors[61]
    assert recorded_backend(one)["backend"] == "transformers"


def test_answers_with_an_adapter_are_those_of_the_actor_itself(ray_local, tmp_path):
    from raysift.actors.loaded import load
    from raysift.actors.responder import Responder
    from raysift.jobs.on_ray.generation import generate

    files = write_questions(tmp_path, 20)
    place = open_location(write_adapter(tmp_path / "adapter"))
    out = open_location(tmp_path / "tuned")
    tuned = read_answers(generate(files, "nano", out, settings(), resources(), adapter=place))
    rows = pa.concat_tables([pq.read_table(file.path) for file in files]).sort_by(ID)
    assert tuned.equals(Responder(load("nano", place, threads=1), max_new_tokens=16)(rows))
    assert tuned["answer"].to_pylist() != Responder("nano", max_new_tokens=16)(rows)["answer"].to_pylist()


def write_adapter(folder, rank=4, scale=0.05):
    """A LoRA adapter on all linear layers of the nano model whose second factor is drawn instead of 0."""
    import torch
    from peft import LoraConfig, get_peft_model

    from raysift.actors.language_model import load_language_model

    model = get_peft_model(
        load_language_model("nano"), LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    )
    draws = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=draws) * scale)
    model.save_pretrained(folder)
    return str(folder)


DRIVER = """
    import sys
    from raysift.settings.generation import GenerationSettings
    from raysift.jobs.on_ray.generation import generate
    from raysift.jobs.cluster.starting import start_ray
    from raysift.settings.resources import Resources
    from raysift.storage import open_location

    start_ray()
    folder = open_location(sys.argv[1])
    generate(folder.files(".parquet"), "nano", folder / "out",
             GenerationSettings(max_new_tokens=16, backend="transformers"),
             Resources(block_rows=20, batch_rows=4, workers=1, cpus_per_worker=0.5))
"""


@pytest.mark.slow
def test_a_killed_driver_leaves_its_answers(joined, tmp_path):
    from raysift.jobs.on_ray.generation import generate

    rows = 400
    files = write_questions(tmp_path, rows)
    driver = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(DRIVER), str(tmp_path)],
        env=joined,
        cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    answers = tmp_path / "out" / "answers"
    give_up = time.monotonic() + 120
    while time.monotonic() < give_up and driver.poll() is None and len(list(answers.glob("*.parquet"))) < 3:
        time.sleep(0.05)
    assert driver.poll() is None, driver.stderr.read().decode()[-2000:]
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    driver.stderr.close()
    out = open_location(tmp_path / "out")
    kept = committed(tmp_path / "out")
    assert 0 < len(kept) < rows

    resumed = read_answers(generate(files, "nano", out, settings(), resources()))
    assert resumed[ID].to_pylist() == ids(rows)
    assert committed(tmp_path / "out").items() >= kept.items(), "rows that were finished were written again"
    whole = read_answers(generate(files, "nano", open_location(tmp_path / "whole"), settings(), resources()))
    assert resumed.equals(whole)


def committed(out):
    """Rows whose checkpoint was committed, and when their file was written."""
    done = {
        number
        for path in (out / "done").rglob("*.parquet")
        if "pending" not in str(path.relative_to(out))
        for number in pq.read_table(path)[ID].to_pylist()
    }
    files = {
        number: path.stat().st_mtime_ns
        for path in (out / "answers").glob("*.parquet")
        for number in pq.read_table(path)[ID].to_pylist()
    }
    return {number: files[number] for number in done}


def test_answers_of_two_backends_are_not_mixed(ray_local, tmp_path):
    from raysift.jobs.on_ray.generation import BACKEND_FILE, generate

    out = open_location(tmp_path / "out")
    (out / BACKEND_FILE).write('{"backend": "vllm", "version": "0.32.0"}')
    with pytest.raises(StageError, match="begun with backend=vllm, this run would go on with backend=transformers"):
        generate(write_questions(tmp_path, 4), "nano", out, settings(), resources())


def test_a_model_that_is_not_there_is_said_before_any_work(ray_local, tmp_path):
    from raysift.jobs.on_ray.generation import generate

    with pytest.raises(ModelError, match="there is no folder"):
        generate([], "/nowhere/model", open_location(tmp_path / "out"), settings(), resources())
    assert not (tmp_path / "out").exists()


def test_rows_with_an_input_are_asked_by_the_prompt_with_an_input(ray_local, tmp_path):
    """From records of Alpaca to the tokens before the model, with the template that tells inputs apart and with another."""
    from raysift.actors.language_model import load_tokenizer
    from raysift.actors.responder import PROMPT, Asker, Responder
    from raysift.jobs.on_ray.generation import generate
    from raysift.jobs.pool.ingest import ingest_pool
    from raysift.jobs.runs.tables import columns_of

    records = [{"instruction": f"Sort {i}.", "input": "b a" if i % 2 else "", "output": "a b"} for i in range(12)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    report = ingest_pool(
        [str(tmp_path / "pool.jsonl")], open_location(tmp_path / "ingest"), IngestConfig(), resources()
    )
    files = [open_location(tmp_path / "ingest" / name) for name in report.files]
    assert columns_of(files, Asker, {"template": "alpaca"}) == [ID, MESSAGES, META]
    assert columns_of(files, Asker, {"template": "chatml"}) == [ID, MESSAGES] == columns_of(files, Asker, {})
    assert columns_of(write_questions(tmp_path, 4), Asker, {"template": "alpaca"}) == [ID, MESSAGES]

    rows = pq.read_table(files[0].path)
    tokenizer, rules = load_tokenizer("nano"), {"template": "alpaca", "max_new_tokens": 4}
    asked = Asker("nano", **rules)(rows.select([ID, MESSAGES, META])).to_pylist()
    prompts = [tokenizer.decode(row[PROMPT]) for row in asked]
    assert sum("### Input:\nb a\n\n### Response:" in text for text in prompts) == 6
    assert sum("paired with an input that provides further context" in text for text in prompts) == 6
    found = read_answers(
        generate(
            files, "nano", open_location(tmp_path / "out"), settings(**rules), resources(workers=1, block_rows=100)
        )
    )
    expected = Responder("nano", threads=1, **rules)(rows.select([ID, MESSAGES, META]))
    assert found.equals(expected.sort_by(ID))
    assert not expected.equals(Responder("nano", threads=1, **rules)(rows.select([ID, MESSAGES])))


@pytest.mark.parametrize(
    ("version", "gpus", "expected"),
    [
        (None, 0.0, "transformers"),
        (None, 1.0, "transformers"),
        ("0.32.0+cpu", 0.0, "vllm"),
        ("0.32.0+cpu", 1.0, "transformers"),
        ("0.29.0", 1.0, "vllm"),
        ("0.29.0", 0.0, "transformers"),
    ],
)
def test_auto_takes_vllm_where_it_is_built_for_the_workers_device(monkeypatch, version, gpus, expected):
    from raysift.jobs.on_ray import generation

    monkeypatch.setattr(generation, "vllm_version", lambda: version)
    assert generation.pick_backend(GenerationSettings(), Resources(gpus_per_worker=gpus)) == expected
    assert generation.pick_backend(settings(), Resources(gpus_per_worker=gpus)) == "transformers"
    named = GenerationSettings(backend="vllm")
    if version:
        assert generation.pick_backend(named, Resources(gpus_per_worker=gpus)) == "vllm"
    else:
        with pytest.raises(ConfigError, match=r"Install raysift\[vllm\]"):
            generation.pick_backend(named, Resources(gpus_per_worker=gpus))


def test_auto_leaves_a_beam_search_to_transformers_and_says_so(monkeypatch, tmp_path):
    from raysift.jobs.on_ray import generation

    out = open_location(tmp_path / "out")
    (out.make_folder() / generation.BACKEND_FILE).write('{"backend": "transformers", "version": "5"}')
    said = {}
    for version in ("0.32.0+cpu", None):
        monkeypatch.setattr(generation, "vllm_version", lambda version=version: version)
        for beams in (1, 4):
            asked = GenerationSettings(beams=beams)
            assert (generation.pick_backend(asked, Resources()) == "vllm") == (beams == 1 and version is not None)
            said[beams, version] = generation.describe_backend(asked, Resources(), out)
    named = generation.describe_backend(settings(beams=4), Resources(), out)
    assert said.pop((4, "0.32.0+cpu")) == "answered by transformers 5; vLLM knows no beam search (beams=4)"
    assert {named, *said.values()} == {"answered by transformers 5"}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"beams": 4, "backend": "vllm"}, "beams=4 with backend=vllm: .*set backend=transformers or auto, or beams=1"),
        ({"beams": 4, "temperature": 0.7}, "temperature=0.7 draws one; set temperature=0, or beams=1"),
        ({"beams": 0}, "greater than or equal to 1"),
    ],
)
@pytest.mark.parametrize("section", ["mods", "win_rate"])
def test_what_a_beam_search_does_not_go_with_is_refused_with_the_settings(section, asked, message):
    from raysift.config import make_config

    with pytest.raises(ConfigError, match=message):
        make_config({section: {"generation": asked}})


def test_beams_count_among_what_identifies_answers_where_they_are_set():
    """Runs that are older than the setting are found again."""
    assert "beams" not in GenerationSettings().deciding()
    assert GenerationSettings(beams=4).deciding() == GenerationSettings().deciding() | {"beams": 4}
    assert GenerationSettings().deciding().keys() == GenerationSettings.model_fields.keys() - {"beams"}


@pytest.mark.slow
def test_a_beam_search_resumes_fails_and_counts_as_greedy_answers_do(ray_local, tmp_path):
    from raysift.actors.responder import Responder
    from raysift.jobs.on_ray.generation import generate

    files = write_questions(tmp_path, 30, POISONED)
    out, asked = open_location(tmp_path / "out"), settings(beams=3, backend="auto")
    answers = read_answers(generate(files[:1], "nano", out, asked, resources(workers=1)))
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "answers").glob("*.parquet")}
    resumed = read_answers(generate(files, "nano", out, asked, resources(workers=2, batch_rows=3)))
    assert {path: path.stat().st_mtime_ns for path in written} == written and 0 < len(answers) < len(resumed) == 32
    assert resumed[ID].to_pylist() == ids(32) and resumed.schema.names == [name for name, _ in SCHEMA]
    assert [error is None for error in resumed[ERROR].to_pylist()] == [True] * 30 + [False] * 2
    rows = pa.concat_tables([pq.read_table(file.path) for file in files]).sort_by(ID)
    assert resumed.equals(Responder("nano", max_new_tokens=16, beams=3, threads=1)(rows))
    assert resumed["answer"].to_pylist() != Responder("nano", max_new_tokens=16)(rows)["answer"].to_pylist()


def test_auto_looks_at_the_device_of_the_engines(monkeypatch):
    from raysift.jobs.on_ray import generation

    monkeypatch.setattr(generation, "vllm_version", lambda: "0.29.0")
    here = Cluster((Machine(8, 2),), 8, 2)
    for asked, backend in (({"generate": {"gpus": 1}}, True), ({"gpus_per_worker": 1, "generate": {"gpus": 0}}, False)):
        own = Resources(**asked).of("generate", here)
        assert (generation.pick_backend(GenerationSettings(), own) == "vllm") == backend


def test_engines_are_as_many_as_their_own_setting_says(ray_local):
    from raysift.jobs.cluster.machines import of_role
    from raysift.jobs.on_ray.vllm_stage import engine_count

    assert engine_count(resources()) == 1, "one a machine"
    assert engine_count(of_role(resources(workers=1, generate=2), "generate", "nano")) == 2
    assert engine_count(of_role(resources(workers=2, generate=1), "generate", "nano")) == 1
    assert engine_count(resources(workers=2)) == 2


def test_of_an_engines_reply_the_wanted_part_goes_on():
    from raysift.actors.responder import GENERATED, LOGPROBS
    from raysift.jobs.on_ray.vllm_stage import MOST_TOKENS, _wanted_part, logprobs_of

    first = {token: {"logprob": -token / 8, "rank": 1, "decoded_token": None} for token in (3, 5, 9)}
    found = {GENERATED: [9], LOGPROBS: [first]}
    assert _wanted_part(found, GENERATED, {}) == [9]
    assert _wanted_part(found, LOGPROBS, logprobs_of([5, 3])) == [-0.625, -0.375]
    assert _wanted_part({GENERATED: [], LOGPROBS: None}, LOGPROBS, logprobs_of([5, 3])) == []
    logprobs_of(range(MOST_TOKENS))
    with pytest.raises(ModelError, match="of 129 tokens are wanted; vLLM gives those of 128"):
        logprobs_of(range(MOST_TOKENS + 1))


def test_on_a_cluster_a_machine_of_the_engines_is_asked_and_not_the_driver(ray_local, monkeypatch):
    import os

    import ray

    from raysift.jobs.on_ray import vllm_stage

    def who() -> int:
        return os.getpid()

    ask = vllm_stage.ask_where_engines_run
    assert ask(who, Resources()) == os.getpid()
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": True}, {"Alive": False}])
    assert ask(who, Resources()) != os.getpid()
    monkeypatch.setattr(vllm_stage, "LEAST_WAIT_S", 0)
    with pytest.raises(StageError, match=r"no machine with 1 GPUs said within 1 s .* resources\.wait_s"):
        ask(who, Resources(gpus_per_worker=4, wait_s=1))
