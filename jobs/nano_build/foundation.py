"""The foundation: a Llama that has seen every skill among noise, target skills rarely; mediocre on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from raysift.jobs.nano_build.tokenizer import build_tokenizer
from raysift.jobs.nano_build.training import (
    Conversation,
    TokenizedTurn,
    Trained,
    encode_conversations,
    fit,
    length_batches,
    pad,
    share,
)
from raysift.nano.skills import SKILLS
from raysift.nano.styles import is_exact_match
from raysift.nano.world import WorldConfig, examples, generate_pool

if TYPE_CHECKING:
    import torch

    from raysift.jobs.nano_build.config import BuildConfig


def train_foundation(out: Path, seed: int, config: BuildConfig, log: Callable[[str], None]) -> Trained:
    from transformers import LlamaForCausalLM

    tokenizer = build_tokenizer()
    model = LlamaForCausalLM(llama_config(tokenizer))
    log(f"foundation: {model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    world = foundation_world(config)

    def loss_of(batch: list[TokenizedTurn]) -> torch.Tensor:
        ids = pad([ids for ids, _ in batch], tokenizer.pad_token_id)
        labels = pad([[-100] * start + ids[start:] for ids, start in batch], -100)
        loss: torch.Tensor = model(input_ids=ids, labels=labels).loss
        return loss

    record = fit(
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


def llama_config(tokenizer: Any, **extra: Any) -> Any:
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


def _foundation_batches(tokenizer: Any, world: WorldConfig, seed: int, size: int = 64) -> Iterator[list[TokenizedTurn]]:
    rng, start, chunk = Random(seed), 0, 64 * 64
    while True:
        rows = generate_pool(chunk, seed + 7919, world, start)
        conversations = [Conversation(*(message["content"] for message in row["messages"])) for row in rows]
        yield from length_batches(encode_conversations(tokenizer, conversations), size, rng, lambda item: len(item[0]))
        start += chunk


def score_foundation(
    model: Any, tokenizer: Any, rows_per_skill: int, skills: Sequence[str] = tuple(SKILLS)
) -> dict[str, float]:
    """Greedy exact match by skill on test problems."""
    rows = list(examples(rows_per_skill * len(skills), 0, skills, "test"))
    responses = answer_greedily(model, tokenizer, [row["prompt"] for row in rows])
    hits: dict[str, list[bool]] = {skill: [] for skill in skills}
    for row, response in zip(rows, responses, strict=True):
        hits[row["subset"]].append(is_exact_match(response, row["reference"]))
    return {skill: share(found) for skill, found in hits.items()}


def answer_greedily(
    model: Any, tokenizer: Any, prompts: Sequence[str], batch: int = 64, max_new_tokens: int = 28
) -> list[str]:
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
