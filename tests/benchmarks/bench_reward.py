"""Rows per second of Reward against the loop that MoDS publishes: one tokenizer call and one forward a row.

    nice python tests/benchmarks/bench_reward.py ../shared/data/pool/pool_public_smoke5k.parquet --rows 400 --repeats 5

The sides take turns, medians of the rounds; the first round is not counted. The loop has as many threads as there are `--workers`,
ours as many actors of one thread each, which is how a pool runs them; `--workers 1 --clock cpu` is for a busy machine. Real rows
of mixed length, no gradients, both sides cut at the same length; the scores of rows that were not cut must agree. Models: the
nano reward model, and random classifiers of 14 million parameters (a BERT, a DeBERTa-v2 of the published reward model's build)
with a tokenizer trained on the rows. `--reward FOLDER` adds a model of yours.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from raysift.actors.reward import Reward
from raysift.records import ID, MESSAGE, MESSAGES
from raysift.scoring.questions import question_text, split_exchange


def read_rows(path: str, count: int, seed: int) -> pa.Table:
    """Rows that end with an answer, drawn at random."""
    talks = [talk for talk in pq.read_table(path, columns=[MESSAGES])[MESSAGES].to_pylist() if is_answered(talk)]
    random.Random(seed).shuffle(talks)
    schema = pa.schema([(ID, pa.int64()), (MESSAGES, pa.list_(MESSAGE))])
    return pa.Table.from_pylist([{ID: i, MESSAGES: talk} for i, talk in enumerate(talks[:count])], schema=schema)


def is_answered(talk: list[dict[str, str]]) -> bool:
    """A single question and its answer, which both sides read alike."""
    return [turn["role"] for turn in talk] == ["user", "assistant"]


def random_classifier(folder: Path, kind: str, rows: pa.Table, hidden: int, layers: int) -> str:
    """Written below `folder`, with a byte-level BPE tokenizer of 8192 tokens trained on the rows."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = ["[PAD]", "[CLS]", "[SEP]"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    texts = (turn["content"] for talk in rows[MESSAGES].to_pylist() for turn in talk)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=8192, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    bpe.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="[PAD]", model_max_length=512)
    common = {
        "vocab_size": 8192,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "intermediate_size": 4 * hidden,
        "num_labels": 1,
        "pad_token_id": 0,
    }
    large_v3 = {  # as in the published reward model's configuration
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
        "pooler_hidden_size": hidden,
    }
    config = transformers.BertConfig(**common) if kind == "bert" else transformers.DebertaV2Config(**common, **large_v3)
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    path = str(folder / kind)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def one_by_one(reward: Reward, rows: pa.Table) -> list[float]:
    """MoDS's loop; the model's own template where it has one."""
    model, tokenizer, scores = reward.model, reward.tokenizer, []
    cut = {"truncation": True, "max_length": reward.longest, "return_tensors": "pt"}
    for row in rows.to_pylist():
        exchange = split_exchange(row[MESSAGES])
        if reward.template == "chat":
            text = tokenizer.apply_chat_template(exchange.messages, tokenize=False)
            inputs = tokenizer(text, add_special_tokens=False, **cut)
        else:
            inputs = tokenizer(question_text(exchange.before), exchange.answer, **cut)
        if reward.template == "chat" or "deberta" in type(model).__name__.lower():
            inputs.pop("token_type_ids", None)
        with torch.no_grad():
            scores.append(float(model(**inputs).logits[0].detach()))
    return scores


class Pool:
    """As many actors as there are workers, each a process with one thread; with one worker, an actor in this process."""

    def __init__(self, path: str, options: dict[str, Any], workers: int, batch_rows: int) -> None:
        self.batch_rows = batch_rows
        self.here = Reward(path, **options) if workers == 1 else None
        spawn = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(workers, spawn, _start_actor, (path, options)) if workers > 1 else None

    def __call__(self, rows: pa.Table) -> list[float]:
        parts = [rows.slice(start, self.batch_rows) for start in range(0, len(rows), self.batch_rows)]
        answers = map(self.here, parts) if self.here else self.pool.map(_ask_actor, parts)
        return [score for answer in answers for score in answer["reward"].to_pylist()]

    def close(self) -> None:
        if self.pool:
            self.pool.shutdown()


def _start_actor(path: str, options: dict[str, Any]) -> None:
    global _actor
    _actor = Reward(path, **options)


def _ask_actor(rows: pa.Table) -> pa.Table:
    return _actor(rows)


def measure(name: str, reward: Reward, pool: Pool, rows: pa.Table, args: argparse.Namespace) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {"ours": [], "one by one": []}
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    torch.set_num_threads(args.workers)
    for turn in range(args.repeats + 1):
        for side, values in seconds.items():
            start = clock()
            found = pool(rows) if side == "ours" else one_by_one(reward, rows)
            elapsed = clock() - start
            if turn:
                values.append(elapsed)
            elif side == "ours":
                ours = found
            else:
                cut = reward(rows)["truncated"].to_pylist()  # the loop cuts at the end of all
                gap = max(abs(a - b) for a, b, is_cut in zip(ours, found, cut, strict=True) if not is_cut)
    tokens = reward(rows)["n_tokens"].to_pylist()
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    ratios = sorted(slow / fast for fast, slow in zip(seconds["ours"], seconds["one by one"], strict=True))
    parameters = sum(weight.numel() for weight in reward.model.parameters())
    print(
        f"{name:>8}  {parameters / 1e6:5.1f}M  {len(rows)} rows, {statistics.median(tokens):.0f} tokens (longest {max(tokens)})  "
        f"ours {len(rows) / medians['ours']:8.1f} rows/s  one by one {len(rows) / medians['one by one']:7.1f}  "
        f"ratio {medians['one by one'] / medians['ours']:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})  largest gap {gap:.1e}"
    )
    return {"name": name, "parameters": parameters, "tokens": sum(tokens), "seconds": seconds, "gap": gap}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="parquet with a column of messages")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--batch-rows", type=int, default=100, help="rows that an actor is given at once")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--dtype", default="fp32", help="of ours; the loop stays in float32")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--batch-tokens", type=int, default=None)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--models", nargs="*", default=["nano", "bert", "deberta"])
    parser.add_argument("--reward", nargs="*", default=[], help="folders of reward models")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    rows = read_rows(args.data, args.rows, args.seed)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in [*args.models, *args.reward]:
            random_made = name in ("bert", "deberta")
            path = random_classifier(Path(folder), name, rows, args.hidden, args.layers) if random_made else name
            path = "nano:reward" if name == "nano" else path
            options = {"max_length": args.max_length, "batch_tokens": args.batch_tokens, "threads": 1}
            pool = Pool(path, options | {"dtype": args.dtype}, args.workers, args.batch_rows)
            results.append(measure(Path(name).name, Reward(path, **options, dtype="fp32"), pool, rows, args))
            pool.close()
    print(json.dumps({"settings": vars(args), "results": results}))


if __name__ == "__main__":
    main()
