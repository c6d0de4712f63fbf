"""Code of all three trainings: tokenized rows, batches of similar length, two optimizers, the loop, the saved files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
TokenizedTurn = tuple[list[int], int]
"""Token ids of a conversation, and where its response begins."""


@dataclass(frozen=True)
class Conversation:
    prompt: str
    response: str
    label: str = ""


def encode_conversations(tokenizer: Any, conversations: Sequence[Conversation]) -> list[TokenizedTurn]:
    """Token ids as the chat template gives them, and where the response begins; one fast call for all."""
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


def length_batches(items: list[Item], size: int, rng: Random, length: Callable[[Item], int]) -> list[list[Item]]:
    """Batches of similar length in random order, so that padding is rare."""
    rng.shuffle(items)
    items.sort(key=length)
    batches = [items[start : start + size] for start in range(0, len(items) - size + 1, size)]
    rng.shuffle(batches)
    return batches


@dataclass
class TrainingLog:
    """What a training saves beside its weights."""

    losses: list[tuple[int, float]] = field(default_factory=list)
    scores: dict[str, Any] = field(default_factory=dict)


Trained = tuple[Any, Any, TrainingLog]
"""A model, its tokenizer and its log."""


def _optimizers(model: Any, steps: int, learning_rate: float) -> list[tuple[Any, Any]]:
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


def fit(
    name: str,
    model: Any,
    batches: Iterable[Item],
    loss_of: Callable[[Item], torch.Tensor],
    steps: int,
    learning_rate: float,
    log: Callable[[str], None],
) -> TrainingLog:
    """Train on `steps` batches; bfloat16 products are a fifth faster than float32 on CPUs that support them."""
    import torch

    record = TrainingLog()
    recent: list[float] = []
    optimizers = _optimizers(model, steps, learning_rate)
    model.train()
    for step, batch in zip(range(1, steps + 1), batches, strict=False):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(batch)
        loss.backward()  # type: ignore[no-untyped-call]
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


def save(path: Path, model: Any, tokenizer: Any, record: TrainingLog, settings: dict[str, Any]) -> None:
    """Save half-precision weights whose configuration says float32, so that a CPU computes in float32."""
    import torch

    path.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(path)
    model.float()
    # safetensors makes the file readable by its owner only, and a wheel would keep that.
    (path / "model.safetensors").chmod(0o644)
    configuration = json.loads((path / "config.json").read_text())
    configuration["dtype"] = "float32"
    (path / "config.json").write_text(json.dumps(configuration, indent=2, sort_keys=True) + "\n")
    tokenizer.save_pretrained(path)
    facts = {"settings": settings, "torch": torch.__version__, "losses": record.losses, "scores": record.scores}
    (path / "training_log.json").write_text(json.dumps(facts, indent=1) + "\n")


def share(hits: Sequence[bool]) -> float:
    """The share of hits that are true, to the three digits that a log shows."""
    return round(sum(hits) / len(hits), 3)
