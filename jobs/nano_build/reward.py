"""The reward model: starts as the foundation, then learns right against spoilt answers (Bradley-Terry).

A language-model loss on the right answers keeps it learning the skills. A small pointwise term makes scores comparable
across questions, which a threshold over a pool needs and pairs alone do not give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from raysift.jobs.nano_build.foundation import llama_config
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
from raysift.nano import nano_path
from raysift.nano.noise import NOISE_KINDS, SPOILERS
from raysift.nano.problems import pick
from raysift.nano.skills import SKILLS
from raysift.nano.styles import STYLES, style_answer
from raysift.nano.world import draw_problem, generate_pool, is_clean

if TYPE_CHECKING:
    import torch

    from raysift.jobs.nano_build.config import BuildConfig


def train_reward(out: Path, seed: int, config: BuildConfig, log: Callable[[str], None]) -> Trained:
    """Starts from the foundation below `out`, or else from the shipped one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForSequenceClassification

    start = out / "foundation" if (out / "foundation" / "config.json").is_file() else nano_path("foundation")
    tokenizer = AutoTokenizer.from_pretrained(start)
    foundation = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    model = LlamaForSequenceClassification(llama_config(tokenizer, num_labels=1))
    model.model.load_state_dict(foundation.model.state_dict())
    head = model.model.embed_tokens.weight

    def loss_of(batch: list[tuple[TokenizedTurn, TokenizedTurn]]) -> torch.Tensor:
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

    record = fit(
        "reward", model, _pair_batches(tokenizer, seed), loss_of, config.reward_steps, config.learning_rate, log
    )
    record.scores = score_reward(model, tokenizer, config.score_rows)
    return model, tokenizer, record


def right_and_spoilt(
    rows: int, seed: int, part: str, wrong_share: float = 0.6
) -> Iterator[tuple[Conversation, Conversation]]:
    """Right and spoilt answers to the same questions, over all skills and kinds of noise; labels are skill and kind."""
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


def _pair_batches(tokenizer: Any, seed: int, size: int = 40) -> Iterator[list[tuple[TokenizedTurn, TokenizedTurn]]]:
    rng, round_number = Random(seed), 0
    while True:
        pairs = list(right_and_spoilt(size * 50, seed * 1000 + round_number, "pool"))
        right = encode_conversations(tokenizer, [pair[0] for pair in pairs])
        spoilt = encode_conversations(tokenizer, [pair[1] for pair in pairs])
        yield from length_batches(list(zip(right, spoilt, strict=True)), size, rng, lambda pair: len(pair[0][0]))
        round_number += 1


def score_reward(model: Any, tokenizer: Any, rows: int) -> dict[str, Any]:
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
        "pair_accuracy": share(overall),
        "pool_clean_auc": _clean_auc(model, tokenizer, rows),
        "by_kind": {kind: share(by_kind[kind]) for kind in sorted(by_kind)},
        "wrong_by_skill": {skill: share(by_skill[skill]) for skill in sorted(by_skill)},
    }


def _clean_auc(model: Any, tokenizer: Any, rows: int) -> float:
    """Probability that a clean row of a pool outscores a spoilt one, across all questions."""
    pool = list(generate_pool(rows, 515151))
    scores = score_conversations(
        model, tokenizer, [Conversation(*(message["content"] for message in row["messages"])) for row in pool]
    )
    clean = [score for score, row in zip(scores, pool, strict=True) if is_clean(row)]
    spoilt = [score for score, row in zip(scores, pool, strict=True) if not is_clean(row)]
    return share([high > low for high in clean for low in spoilt])


def score_conversations(
    model: Any, tokenizer: Any, conversations: Sequence[Conversation], batch: int = 64
) -> list[float]:
    import torch

    scores: list[float] = []
    encoded = [ids for ids, _ in encode_conversations(tokenizer, conversations)]
    for start in range(0, len(encoded), batch):
        ids = pad(encoded[start : start + batch], tokenizer.pad_token_id)
        with torch.inference_mode():
            scores += model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()).logits[:, 0].tolist()
    return scores
