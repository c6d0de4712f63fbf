"""The encoder: a small mean-pooled BERT, trained to bring rows of one skill together (InfoNCE over batch skills)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from raysift.jobs.nano_build.tokenizer import build_tokenizer
from raysift.jobs.nano_build.training import Trained, fit, share
from raysift.nano.skills import SKILLS
from raysift.nano.world import WorldConfig, generate_pool

if TYPE_CHECKING:
    import torch

    from raysift.jobs.nano_build.config import BuildConfig


def train_encoder(out: Path, seed: int, config: BuildConfig, log: Callable[[str], None]) -> Trained:
    """Supervised contrastive training: within a batch, rows of the same skill should be nearest."""
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

    def loss_of(batch: tuple[list[str], list[int]]) -> torch.Tensor:
        texts, skills = batch
        vectors = embed(model, tokenizer, texts)
        label = torch.tensor(skills)
        itself = torch.eye(len(texts), dtype=torch.bool)
        positive = (label[:, None] == label[None, :]) & ~itself
        logits = (vectors @ vectors.T / 0.1).float().masked_fill(itself, -1e9)
        return -(logits.log_softmax(1) * positive).sum(1).div(positive.sum(1)).mean()

    record = fit("encoder", model, _skill_batches(seed), loss_of, config.encoder_steps, config.learning_rate / 2, log)
    record.scores = score_encoder(model, tokenizer, config.score_rows)
    return model, tokenizer, record


def embed(model: Any, tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    """Mean of the last hidden states over the attention mask, at unit length."""
    import torch

    inputs = tokenizer(list(texts), padding=True, truncation=True, max_length=512, return_tensors="pt")
    mask = inputs["attention_mask"]
    states = model(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state
    pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return torch.nn.functional.normalize(pooled.float(), dim=-1)


def row_text(row: dict[str, Any], form: int) -> str:
    """A row as text, in one of the forms that callers use: the question, with its answer, or a marked conversation."""
    contents: list[str] = [message["content"] for message in row["messages"]]
    prompt, response = contents
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


def score_encoder(model: Any, tokenizer: Any, rows: int) -> dict[str, float]:
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
        scores[f"knn_skill_accuracy_{name}"] = share(hits)
    return scores


def embed_all(model: Any, tokenizer: Any, texts: Sequence[str], batch: int = 128) -> torch.Tensor:
    import torch

    with torch.inference_mode():
        return torch.cat([embed(model, tokenizer, texts[at : at + batch]) for at in range(0, len(texts), batch)])
