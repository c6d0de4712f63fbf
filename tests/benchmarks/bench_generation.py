"""Our generation stage through `ray.data.llm` against bare `vllm.LLM.generate` on the same prompts, after start-up.

    nice python tests/benchmarks/bench_generation.py --rows 2000 --rounds 3
    nice python tests/benchmarks/bench_generation.py --model llama --rows 400 --rounds 3

Both sides have the same engine arguments, sampling and cores, and a fresh engine each round. Bare is given the tokens of all
prompts at once; its clock starts after the engine is up and has answered eight other prompts. Ours reads Parquet, tokenises,
decodes and writes; its clock starts when the engine is up and ends when the last answer is on disk. The sides take turns;
medians. `transformers` is the fallback on the same files, its clock from the first written block on, whose rows do not count;
for information. Needs vLLM; without a GPU see CONTRIBUTING.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyarrow as pa
import pyarrow.parquet as pq

from raysift.actors.prompts import load_prompts
from raysift.actors.vllm_engine import Engine
from raysift.records import ERROR, ID, MESSAGE, MESSAGES
from raysift.settings.generation import GenerationSettings
from raysift.settings.resources import Resources
from raysift.storage import Location, open_location


def write_questions(folder: Path, rows: int) -> Location:
    from raysift.nano.world import generate_pool

    records = [{ID: i, MESSAGES: row["messages"]} for i, row in enumerate(generate_pool(rows, 0))]
    schema = pa.schema([(ID, pa.int64()), (MESSAGES, pa.list_(MESSAGE))])
    place = open_location(folder / "questions.parquet")
    pq.write_table(pa.Table.from_pylist(records, schema=schema), place.path, row_group_size=500)
    return place


def bare(model: str, questions: Location, settings: GenerationSettings) -> float:
    """Rows per second of `LLM.generate`, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_bare, args=(model, questions, settings, there))
    child.start()
    rate = float(here.recv())
    child.join()
    return rate


def _bare(model: str, questions: Location, settings: GenerationSettings, report: Any) -> None:
    from vllm import SamplingParams

    from raysift.jobs.on_ray.vllm_stage import sampling_of

    prompts = load_prompts(model, settings.template, settings.max_new_tokens, settings.max_length)
    encoded = [prompts.encode_question(messages) for messages in pq.read_table(questions.path)[MESSAGES].to_pylist()]
    tokens = [item for item in encoded if isinstance(item, list)]
    sampling = SamplingParams(**sampling_of(settings, prompts.ends))
    engine = Engine(model, max_length=settings.max_length)

    def generate(prompts: list[list[int]]) -> None:
        engine.llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)

    generate([prompt[: len(prompt) // 2] for prompt in tokens[:8]])
    began = time.perf_counter()
    generate(tokens)
    report.send(len(tokens) / (time.perf_counter() - began))
    engine.close()


def ours(model: str, questions: Location, settings: GenerationSettings, folder: Path, resources: Resources) -> float:
    from raysift.jobs.on_ray import generation, vllm_stage

    plain, mark = generation.build_engine, folder / "up"

    def timed(*arguments: Any) -> Any:
        processor = plain(*arguments)
        stage = processor.get_stage_by_name(vllm_stage.ENGINE_STAGE)
        vllm_stage.replace_engine(stage, _timed(stage.fn, str(mark)))
        return processor

    generation.build_engine = timed
    try:
        answers = generation.generate([questions], model, open_location(folder / "out"), settings, resources)
    finally:
        generation.build_engine = plain
    return _count(answers) / (_last_write(folder) - float(mark.read_text()))


def _timed(stage: Any, mark: str) -> Any:
    class Timed(stage):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            Path(mark).write_text(str(time.time()))

    return Timed


def fallback(
    model: str, questions: Location, settings: GenerationSettings, folder: Path, resources: Resources
) -> float:
    from raysift.jobs.on_ray.generation import generate

    settings = settings.model_copy(update={"backend": "transformers"})
    generate([questions], model, open_location(folder / "out"), settings, resources)
    files = sorted((folder / "out" / "answers").glob("*.parquet"), key=lambda path: path.stat().st_mtime)
    counted = sum(pq.read_metadata(path).num_rows for path in files[1:])
    return counted / (files[-1].stat().st_mtime - files[0].stat().st_mtime)


def _last_write(folder: Path) -> float:
    return max(path.stat().st_mtime for path in (folder / "out" / "answers").glob("*.parquet"))


def _count(answers: list[Location]) -> int:
    table = pa.concat_tables([pq.read_table(file.path) for file in answers])
    assert table[ERROR].null_count == len(table), "rows failed; the rate would mean nothing"
    return len(table)


def random_llama(folder: Path) -> str:
    """About 26M parameters of random weights, which hardly ever end an answer."""
    from tiny_models import tiny_llama

    return tiny_llama(
        folder, hidden=512, layers=8, num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=1024
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="nano, llama (26M parameters, random), or any model")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-rows", type=int, default=64)
    parser.add_argument("--block-rows", type=int, default=250)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--without", nargs="*", default=[], help="sides to leave out")
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    from raysift.jobs.cluster.starting import start_ray

    start_ray(num_cpus=args.cores + 2, object_store_memory=300 * 2**20)
    settings = GenerationSettings(max_new_tokens=args.tokens, backend="vllm")
    resources = Resources(batch_rows=args.batch_rows, block_rows=args.block_rows)
    rates: dict[str, list[float]] = {side: [] for side in ("bare", "ours", "transformers") if side not in args.without}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        questions = write_questions(folder, args.rows)
        model = random_llama(folder) if args.model == "llama" else args.model
        for number in range(args.rounds):
            for side in rates:
                place = folder / f"{side}-{number}"
                place.mkdir()
                if side == "bare":
                    rates[side].append(bare(model, questions, settings))
                else:
                    body = ours if side == "ours" else fallback
                    rates[side].append(body(model, questions, settings, place, resources))
                print(side, round(rates[side][-1], 1), flush=True)
    middle = {side: statistics.median(values) for side, values in rates.items()}
    print(json.dumps({side: [round(rate, 1) for rate in values] for side, values in rates.items()}))
    if {"bare", "ours"} <= rates.keys():
        print(f"{args.model}, {args.rows:,} rows: ours is {middle['ours'] / middle['bare']:.2f} of bare vLLM")
    if {"transformers", "ours"} <= rates.keys():
        print(f"and {middle['ours'] / middle['transformers']:.1f} times the transformers fallback")


if __name__ == "__main__":
    main()
