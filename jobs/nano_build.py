"""Train the three nano models from nothing but the nano world: `raysift nano build --out DIR --seed 0`.

1. Tokenizer: bytes, plus the whole words of the question templates. No merges, so what a problem is made of stays
   single letters and digits, and any text survives a round trip.
2. Foundation: a Llama that has seen every skill among noise, the target skills rarely. It is meant to be mediocre.
3. Reward: starts as the foundation, then learns right against spoilt answers (Bradley-Terry), with a language-model
   loss on the right ones, so that it goes on learning the skills, and a small pointwise term, so that scores compare
   across questions (a threshold over a pool needs that; pairs alone do not give it).
4. Encoder: a small BERT, mean pooled, trained so that rows of one skill lie together (InfoNCE over a batch's skills).

Losses and scores are written as `training_log.json` beside each model. About twelve minutes on two idle cores; a
busy machine multiplies that. `engine/nano/weights/TRAINING.md` tells how the sizes were chosen.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from raysift.nano.noise import NOISE_KINDS, RAMBLING_ENDS, RAMBLING_STARTS, SPOILERS
from raysift.nano.skills import SENTENCE_START, SKILLS, STYLES, is_exact_match, pick, style_answer
from raysift.nano.words import NOUNS
from raysift.nano.world import WorldConfig, draw_problem, examples, generate_pool, is_clean

if TYPE_CHECKING:
    import torch

SPECIAL_TOKENS = ("<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '<|assistant|>' -}}{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}
{%- else -%}
{{- '<|' + message['role'] + '|>' + message['content'] -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


@dataclass(frozen=True)
class BuildConfig:
    """Sizes and lengths of the three trainings, as shipped."""

    foundation_steps: int = 2500
    """Optimizer steps of 64 rows; more of them and the targets are learnt too, leaving no room to improve."""
    foundation_target_shares: tuple[tuple[str, float], ...] = (
        ("sort_words", 0.012),
        ("reverse", 0.0015),
        ("last_letters", 0.002),
    )
    """Target skill and weight (0.05 for any other skill) in what the foundation reads. Letter skills borrow from their
    neighbours: at 0.012 `reverse` reached 0.94."""
    reward_steps: int = 1300
    """Steps of 40 pairs; two cores busy with nothing else need about five minutes."""
    encoder_steps: int = 250
    """Steps of 88 rows, four of each skill."""
    learning_rate: float = 3e-3
    """Peak of AdamW's rate for the embeddings; the matrices are trained by Muon, see `_optimizers`."""
    foundation_noise_rate: float = 0.15
    """Noise that the foundation reads, half the pool's; see TRAINING.md."""
    score_rows: int = 1408
    """Held-out rows that each model is scored on; 1408 is 64 of each skill."""


@dataclass
class _Log:
    """What a training leaves beside its weights."""

    losses: list[tuple[int, float]] = field(default_factory=list)
    scores: dict[str, Any] = field(default_factory=dict)


def build(
    out: Path,
    seed: int = 0,
    only: list[str] | None = None,
    log: Callable[[str], None] = print,
    config: BuildConfig = BuildConfig(),
) -> dict[str, dict[str, Any]]:
    """Train `only` the named models (default: all), write them below `out`, and return their scores by name."""
    import torch

    trainers = {"foundation": train_foundation, "reward": train_reward, "encoder": train_encoder}
    names = list(trainers) if only is None else only
    for name in names:
        if name not in trainers:
            raise ValueError(f"nano build: unknown model {name!r}; known: {', '.join(sorted(trainers))}")
    scores = {}
    for name in names:
        torch.manual_seed(seed)
        started = time.perf_counter()
        model, tokenizer, record = trainers[name](Path(out), seed, config, log)
        seconds = time.perf_counter() - started
        _save(Path(out) / name, model, tokenizer, record, {"seed": seed, "seconds": round(seconds, 1)} | vars(config))
        scores[name] = record.scores
        log(f"{name}: {seconds:.0f} s, {json.dumps(record.scores)}")
    return scores


# --- tokenizer -------------------------------------------------------------------------------------------------------


def build_tokenizer():
    """A byte-level tokenizer whose only longer tokens are whole words of the templates.

    `ignore_merges` looks a whole word up first and falls back to bytes, so a payload word is never cut into odd
    pieces, which keeps letter skills learnable.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate(SPECIAL_TOKENS)}
    for token in [*sorted(pre_tokenizers.ByteLevel.alphabet()), *_template_words()]:
        vocabulary.setdefault(token, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|begin|>",
        eos_token="<|end|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )


def _template_words() -> list[str]:
    """Words of questions and of rambling, as the pre-tokenizer cuts them, except those that problems use."""
    from tokenizers import pre_tokenizers

    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [phrasing.format("7", "7", "7") for skill in SKILLS.values() for phrasing in skill.phrasings]
    texts += [*RAMBLING_STARTS, *RAMBLING_ENDS, SENTENCE_START]
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(text)}
    bare = {word: word.removeprefix("Ġ") for word in words}
    return sorted(word for word in words if len(bare[word]) > 1 and bare[word].isalpha() and bare[word] not in NOUNS)


# --- rows as tokens --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conversation:
    prompt: str
    response: str
    label: str = ""


def encode_conversations(tokenizer, conversations: Sequence[Conversation]) -> list[tuple[list[int], int]]:
    """Token ids as the chat template gives them, and where the response begins; one fast call for the lot."""
    bos, user, assistant, eos = tokenizer.convert_tokens_to_ids(["<|begin|>", "<|user|>", "<|assistant|>", "<|end|>"])
    texts = [text for conversation in conversations for text in (conversation.prompt, conversation.response)]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    encoded = []
    for prompt, response in zip(ids[::2], ids[1::2], strict=True):
        head = [bos, user, *prompt, assistant]
        encoded.append(([*head, *response, eos], len(head)))
    return encoded


def pad(sequences: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    import torch

    longest = max(map(len, sequences))
    return torch.tensor([[*sequence, *[value] * (longest - len(sequence))] for sequence in sequences])


def length_batches(items: list, size: int, rng: Random, length: Callable[[Any], int]) -> list[list]:
    """Batches of similar length in random order, so that padding is rare."""
    rng.shuffle(items)
    items.sort(key=length)
    batches = [items[start : start + size] for start in range(0, len(items) - size + 1, size)]
    rng.shuffle(batches)
    return batches


# --- training --------------------------------------------------------------------------------------------------------


def _optimizers(model, steps: int, learning_rate: float) -> list[tuple[Any, Any]]:
    """Muon for the matrices inside the layers, AdamW for the rest; warm-up, then linear decay to zero."""
    import torch

    parameters = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    inner = [w for name, w in parameters if w.ndim == 2 and "layer" in name]
    outer = [w for name, w in parameters if not (w.ndim == 2 and "layer" in name)]
    made = [
        torch.optim.Muon(inner, lr=0.02, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(outer, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    warm = max(1, steps // 20)

    def rate(step: int) -> float:
        return min((step + 1) / warm, max(0.02, (steps - step) / (steps - warm)))

    return [(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)) for optimizer in made]


def _fit(
    name: str,
    model,
    batches: Iterable,
    loss_of: Callable[[Any], torch.Tensor],
    steps: int,
    learning_rate: float,
    log: Callable[[str], None],
) -> _Log:
    """Run `steps` batches; bfloat16 products are a fifth faster than float32 on a CPU that has them."""
    import torch

    record, recent = _Log(), []
    optimizers = _optimizers(model, steps, learning_rate)
    model.train()
    for step, batch in zip(range(1, steps + 1), batches, strict=False):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in optimizers:
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        recent.append(loss.item())
        if step % 100 == 0 or step == steps:
            record.losses.append((step, round(sum(recent) / len(recent), 4)))
            log(f"{name}: step {step}/{steps} loss {record.losses[-1][1]:.3f}")
            recent = []
    model.eval()
    return record


def _save(path: Path, model, tokenizer, record: _Log, settings: dict[str, Any]) -> None:
    """Half-precision weights that announce float32, so that loading on a CPU computes in float32."""
    import torch

    path.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(path)
    model.float()
    # safetensors writes for the owner alone, and a wheel would keep that.
    (path / "model.safetensors").chmod(0o644)
    configuration = json.loads((path / "config.json").read_text())
    configuration["dtype"] = "float32"
    (path / "config.json").write_text(json.dumps(configuration, indent=2, sort_keys=True) + "\n")
    tokenizer.save_pretrained(path)
    facts = {"settings": settings, "torch": torch.__version__, "losses": record.losses, "scores": record.scores}
    (path / "training_log.json").write_text(json.dumps(facts, indent=1) + "\n")


# --- foundation ------------------------------------------------------------------------------------------------------


def train_foundation(out: Path, seed: int, config: BuildConfig, log: Callable[[str], None]):
    from transformers import LlamaForCausalLM

    tokenizer = build_tokenizer()
    model = LlamaForCausalLM(_llama_config(tokenizer))
    log(f"foundation: {model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    world = foundation_world(config)

    def loss_of(batch: list[tuple[list[int], int]]):
        ids = pad([ids for ids, _ in batch], tokenizer.pad_token_id)
        labels = pad([[-100] * start + ids[start:] for ids, start in batch], -100)
        return model(input_ids=ids, labels=labels).loss

    record = _fit(
        "foundation",
        model,
        _foundation_batches(tokenizer, world, seed),
        loss_of,
        config.foundation_steps,
        config.learning_rate,
        log,
    )
    record.scores = score_foundation(model, tokenizer, max(1, config.score_rows // len(SKILLS)))
    return model, tokenizer, record


def foundation_world(config: BuildConfig) -> WorldConfig:
    """The pool's world with rare targets and no duplicates."""
    rare = dict(config.foundation_target_shares)
    return WorldConfig(
        skill_shares=tuple((name, rare.get(name, 0.05)) for name in SKILLS),
        noise_rate=config.foundation_noise_rate,
        exact_duplicate_rate=0.0,
        near_duplicate_rate=0.0,
    )


def _llama_config(tokenizer, **extra):
    """Heads of 32: vLLM's CPU attention refuses 16."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=448,
        hidden_size=160,
        num_hidden_layers=4,
        intermediate_size=448,
        num_attention_heads=5,
        num_key_value_heads=5,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **extra,
    )


def _foundation_batches(tokenizer, world: WorldConfig, seed: int, size: int = 64) -> Iterator[list]:
    rng, start, chunk = Random(seed), 0, 64 * 64
    while True:
        rows = generate_pool(chunk, seed + 7919, world, start)
        conversations = [Conversation(*(message["content"] for message in row["messages"])) for row in rows]
        yield from length_batches(encode_conversations(tokenizer, conversations), size, rng, lambda item: len(item[0]))
        start += chunk


def score_foundation(model, tokenizer, rows_per_skill: int, skills: Sequence[str] = tuple(SKILLS)) -> dict[str, float]:
    """Greedy exact match by skill on test problems."""
    rows = list(examples(rows_per_skill * len(skills), 0, skills, "test"))
    responses = answer_greedily(model, tokenizer, [row["prompt"] for row in rows])
    hits: dict[str, list[bool]] = {skill: [] for skill in skills}
    for row, response in zip(rows, responses, strict=True):
        hits[row["subset"]].append(is_exact_match(response, row["reference"]))
    return {skill: round(sum(found) / len(found), 3) for skill, found in hits.items()}


def answer_greedily(model, tokenizer, prompts: Sequence[str], batch: int = 64, max_new_tokens: int = 28) -> list[str]:
    import torch

    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch):
        places = order[start : start + batch]
        inputs = tokenizer.apply_chat_template(
            [[{"role": "user", "content": prompts[place]}] for place in places],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
            tokenizer_kwargs={"padding_side": "left"},
        )
        with torch.inference_mode():
            made = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        texts = tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for place, text in zip(places, texts, strict=True):
            answers[place] = text
    return answers


# --- reward ----------------------------------------------------------------------------------------------------------


def train_reward(out: Path, seed: int, config: BuildConfig, log: Callable[[str], None]):
    """Needs the foundation below `out`, or else the shipped one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForSequenceClassification

    start = out / "foundation" if (out / "foundation" / "config.json").is_file() else _shipped("foundation")
    tokenizer = AutoTokenizer.from_pretrained(start)
    foundation = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    model = LlamaForSequenceClassification(_llama_config(tokenizer, num_labels=1))
    model.model.load_state_dict(foundation.model.state_dict())
    head = model.model.embed_tokens.weight

    def loss_of(batch: list[tuple[tuple[list[int], int], tuple[list[int], int]]]):
        rows = [pair[0] for pair in batch] + [pair[1] for pair in batch]
        ids = pad([ids for ids, _ in rows], tokenizer.pad_token_id)
        states = model.model(input_ids=ids).last_hidden_state
        last = torch.tensor([len(ids) - 1 for ids, _ in rows])
        chosen, rejected = model.score(states[torch.arange(len(rows)), last]).squeeze(-1).float().chunk(2)
        right = len(batch)
        labels = pad([[-100] * start + ids[start:] for ids, start in rows[:right]], -100)
        logits = states[:right, : labels.shape[1] - 1] @ head.T
        words = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels[:, 1:].flatten())
        pairwise = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
        pointwise = -(torch.nn.functional.logsigmoid(chosen) + torch.nn.functional.logsigmoid(-rejected)).mean() / 2
        return pairwise + 0.5 * pointwise + 0.3 * words

    record = _fit(
        "reward", model, _pair_batches(tokenizer, seed), loss_of, config.reward_steps, config.learning_rate, log
    )
    record.scores = score_reward(model, tokenizer, config.score_rows)
    return model, tokenizer, record


def _shipped(name: str) -> Path:
    from raysift.nano import nano_path

    return nano_path(name)


def right_and_spoilt(
    rows: int, seed: int, part: str, wrong_share: float = 0.6
) -> Iterator[tuple[Conversation, Conversation]]:
    """A right answer and a spoilt one to the same question, all skills and kinds of noise; labels are the kinds."""
    rng, skills = Random(f"pairs {seed}"), list(SKILLS.values())
    others = [kind for kind in NOISE_KINDS if kind != "wrong"]
    for _ in range(rows):
        skill, style = pick(rng, skills), pick(rng, STYLES)
        payload, answer = draw_problem(rng, skill, part)
        prompt = skill.ask(payload, rng.randrange(len(skill.phrasings)))
        kind = "wrong" if rng.random() < wrong_share else pick(rng, others)
        if kind == "off_topic":
            spoilt = style_answer(draw_problem(rng, pick(rng, skills), part)[1], style)
        else:
            spoilt = SPOILERS[kind](rng, skill, payload, answer, style)
        if spoilt != style_answer(answer, style):
            yield Conversation(prompt, style_answer(answer, style), skill.name), Conversation(prompt, spoilt, kind)


def _pair_batches(tokenizer, seed: int, size: int = 40) -> Iterator[list]:
    rng, round_number = Random(seed), 0
    while True:
        pairs = list(right_and_spoilt(size * 50, seed * 1000 + round_number, "pool"))
        right = encode_conversations(tokenizer, [pair[0] for pair in pairs])
        spoilt = encode_conversations(tokenizer, [pair[1] for pair in pairs])
        yield from length_batches(list(zip(right, spoilt, strict=True)), size, rng, lambda pair: len(pair[0][0]))
        round_number += 1


def score_reward(model, tokenizer, rows: int) -> dict[str, Any]:
    """Share of held-out pairs (test problems) whose right answer scores higher, by kind and, for `wrong`, by skill."""
    pairs = list(right_and_spoilt(rows, 1, "test", wrong_share=0.5))
    right = score_conversations(model, tokenizer, [pair[0] for pair in pairs])
    spoilt = score_conversations(model, tokenizer, [pair[1] for pair in pairs])
    by_kind: dict[str, list[bool]] = {}
    by_skill: dict[str, list[bool]] = {}
    for (chosen, rejected), high, low in zip(pairs, right, spoilt, strict=True):
        by_kind.setdefault(rejected.label, []).append(high > low)
        if rejected.label == "wrong":
            by_skill.setdefault(chosen.label, []).append(high > low)
    overall = [hit for hits in by_kind.values() for hit in hits]
    return {
        "pair_accuracy": _mean(overall),
        "pool_clean_auc": _clean_auc(model, tokenizer, rows),
        "by_kind": {kind: _mean(by_kind[kind]) for kind in sorted(by_kind)},
        "wrong_by_skill": {skill: _mean(by_skill[skill]) for skill in sorted(by_skill)},
    }


def _clean_auc(model, tokenizer, rows: int) -> float:
    """Chance that a clean row of a pool outscores a spoilt one, whatever their questions."""
    pool = list(generate_pool(rows, 515151))
    scores = score_conversations(
        model, tokenizer, [Conversation(*(message["content"] for message in row["messages"])) for row in pool]
    )
    clean = [score for score, row in zip(scores, pool, strict=True) if is_clean(row)]
    spoilt = [score for score, row in zip(scores, pool, strict=True) if not is_clean(row)]
    return _mean([high > low for high in clean for low in spoilt])


def _mean(hits: Sequence[bool]) -> float:
    return round(sum(hits) / len(hits), 3)


def score_conversations(model, tokenizer, conversations: Sequence[Conversation], batch: int = 64) -> list[float]:
    import torch

    scores: list[float] = []
    encoded = [ids for ids, _ in encode_conversations(tokenizer, conversations)]
    for start in range(0, len(encoded), batch):
        ids = pad(encoded[start : start + batch], tokenizer.pad_token_id)
        with torch.inference_mode():
            scores += model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()).logits[:, 0].tolist()
    return scores


# --- encoder ---------------------------------------------------------------------------------------------------------


def train_encoder(out: Path, seed: int, config: BuildConfig, log: Callable[[str], None]):
    """Supervised contrast: among a batch's rows, those of the same skill are to be nearest."""
    import torch
    from transformers import BertConfig, BertModel

    tokenizer = build_tokenizer()
    model = BertModel(
        BertConfig(
            vocab_size=448,
            hidden_size=96,
            num_hidden_layers=3,
            num_attention_heads=3,
            intermediate_size=256,
            max_position_embeddings=512,
            type_vocab_size=1,
            pad_token_id=tokenizer.pad_token_id,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )

    def loss_of(batch: tuple[list[str], list[int]]):
        texts, skills = batch
        vectors = embed(model, tokenizer, texts)
        label = torch.tensor(skills)
        itself = torch.eye(len(texts), dtype=torch.bool)
        positive = (label[:, None] == label[None, :]) & ~itself
        logits = (vectors @ vectors.T / 0.1).float().masked_fill(itself, -1e9)
        return -(logits.log_softmax(1) * positive).sum(1).div(positive.sum(1)).mean()

    record = _fit("encoder", model, _skill_batches(seed), loss_of, config.encoder_steps, config.learning_rate / 2, log)
    record.scores = score_encoder(model, tokenizer, config.score_rows)
    return model, tokenizer, record


def embed(model, tokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Mean of the last states over the attention mask, at unit length."""
    import torch

    inputs = tokenizer(list(texts), padding=True, truncation=True, max_length=512, return_tensors="pt")
    mask = inputs["attention_mask"]
    states = model(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state
    pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return torch.nn.functional.normalize(pooled.float(), dim=-1)


def row_text(row: dict, form: int) -> str:
    """The ways a caller may turn a row into text: the question alone, with its answer, or as a marked conversation."""
    prompt, response = (message["content"] for message in row["messages"])
    if form == 0:
        return prompt
    marked = f"<|user|>{prompt}<|assistant|>{response}<|end|>"
    return (f"{prompt}\n\n{response}", marked, f"{prompt}\n{response}")[form - 1]


def _skill_batches(seed: int, rows_per_skill: int = 4) -> Iterator[tuple[list[str], list[int]]]:
    names = list(SKILLS)
    world = WorldConfig(skill_shares=tuple((name, 1.0) for name in names))
    waiting: dict[str, list[str]] = {name: [] for name in names}
    rng = Random(seed)
    for row in generate_pool(10**9, seed + 104729, world):
        waiting[row["skill"]].append(row_text(row, rng.randrange(4)))
        if min(map(len, waiting.values())) >= rows_per_skill:
            texts = [text for name in names for text in waiting[name][:rows_per_skill]]
            yield texts, [number for number in range(len(names)) for _ in range(rows_per_skill)]
            waiting = {name: waiting[name][rows_per_skill:] for name in names}


def score_encoder(model, tokenizer, rows: int) -> dict[str, float]:
    """Share of held-out rows whose nearest five neighbours by cosine vote for the right skill, by form of text."""
    pool = list(generate_pool(2 * rows, 424243))
    scores = {}
    for form, name in enumerate(("prompt", "prompt_and_response", "conversation")):
        vectors = embed_all(model, tokenizer, [row_text(row, form) for row in pool])
        nearest = (vectors[rows:] @ vectors[:rows].T).topk(5).indices.tolist()
        hits = []
        for row, neighbours in zip(pool[rows:], nearest, strict=True):
            votes = [pool[place]["skill"] for place in neighbours]
            hits.append(max(votes, key=votes.count) == row["skill"])
        scores[f"knn_skill_accuracy_{name}"] = _mean(hits)
    return scores


def embed_all(model, tokenizer, texts: Sequence[str], batch: int = 128) -> torch.Tensor:
    import torch

    with torch.inference_mode():
        return torch.cat([embed(model, tokenizer, texts[at : at + batch]) for at in range(0, len(texts), batch)])


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description="Train the nano models.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*")
    for name in ("foundation_steps", "reward_steps", "encoder_steps"):
        value = getattr(BuildConfig(), name)
        parser.add_argument(f"--{name}", type=type(value), default=value)
    arguments = vars(parser.parse_args())
    out, seed, only = arguments.pop("out"), arguments.pop("seed"), arguments.pop("only")
    build(out, seed, only, lambda line: print(line, flush=True), BuildConfig(**arguments))


if __name__ == "__main__":
    main()
