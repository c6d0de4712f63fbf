"""A causal language model that answers: batched greedy or sampled generation with a key-value cache.

The loop is our own, some thirty lines, instead of transformers' `generate`: each row samples from its own seed, so an
answer does not depend on its batch mates; rows that are finished leave the batch; and nothing in a model's
`generation_config` (a repetition penalty, say) changes what greedy means. Tested to give what `generate` gives.

Sampling is the Gumbel-max trick: the arg-max of logits / temperature + noise, the noise drawn on the CPU from a hash of
seed and row id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from raysift.actors.contract import Failed, Row, RowActor
from raysift.actors.loaded import LoadedModel, budget_on, end_tokens, load, longest_input, takes
from raysift.actors.prompts import ANSWER, FINISHED, NEW_TOKENS, Prompts, row_seed, vocabulary_size
from raysift.records import ID, MESSAGES
from raysift.storage import Location

if TYPE_CHECKING:
    from torch import Generator as RandomStream
    from torch import Tensor

# Prompt and answer tokens of a batch together. Beyond these, larger batches gained nothing.
BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}


class Answer(NamedTuple):
    """Tokens of an answer without the one that ended it."""

    tokens: list[int]
    finished: bool


class Generator(RowActor):
    """Lets a model answer the prompt in `messages`.

    `n_new_tokens` counts the end token; `finished` is false where `max_new_tokens` cut the answer off.
    """

    inputs = (MESSAGES,)
    outputs = pa.schema([(ANSWER, pa.string()), (NEW_TOKENS, pa.int64()), (FINISHED, pa.bool_())])

    def __init__(
        self,
        model: str | LoadedModel,
        *,
        adapter: str | Location | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        template: str = "auto",
        max_length: int | None = None,
        batch_tokens: int | None = None,
        dtype: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.loaded = load(model, adapter, dtype, device, threads, trust_remote_code)
        self.model, self.tokenizer = self.loaded
        self.max_new_tokens, self.temperature, self.seed = max_new_tokens, temperature, seed
        self.ends = end_tokens(self.loaded, template)
        longest_prompt = longest_input(self.model, max_length) - max_new_tokens
        self.prompts = Prompts(
            self.tokenizer, template, self.ends, longest_prompt, max_new_tokens, vocabulary_size(self.model)
        )
        self.batch_tokens = batch_tokens or budget_on(self.model, BATCH_TOKENS)
        self.takes_positions = takes(self.model, "position_ids")
        self.thinning = {"logits_to_keep": 1} if takes(self.model, "logits_to_keep") else {}

    def answer(self, rows: list[Row]) -> list[Row | Failed]:
        from raysift.gradients.rows import plan_batches

        encoded = [self._encode(row) for row in rows]
        answers: list[Row | Failed | None] = [item if isinstance(item, Failed) else None for item in encoded]
        prompts = {i: item for i, item in enumerate(encoded) if not isinstance(item, Failed)}
        places = list(prompts)
        lengths = [len(prompts[i]) + self.max_new_tokens for i in places]
        for batch in plan_batches(lengths, self.batch_tokens):
            members = [places[k] for k in batch]
            completed = self.complete([prompts[i] for i in members], [rows[i][ID] for i in members])
            for i, answer in zip(members, completed, strict=True):
                answers[i] = answer if isinstance(answer, Failed) else self.prompts.decode(*answer)
        return [answer for answer in answers if answer is not None]

    def complete(self, prompts: Sequence[Sequence[int]], ids: Sequence[int]) -> list[Answer | Failed]:
        """Continue one batch of tokenised prompts; `ids` seed the sampling."""
        import torch

        device = self.model.device
        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        tokens = torch.tensor([[*[pad] * (width - len(p)), *p] for p in prompts], device=device)
        mask = torch.tensor([[*[0] * (width - len(p)), *[1] * len(p)] for p in prompts], device=device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        streams = [self._stream(number) for number in ids] if self.temperature > 0 else []
        answers: list[Answer | Failed] = [Answer([], False) for _ in prompts]
        live = list(range(len(prompts)))
        cache = None
        with torch.inference_mode():
            for _ in range(self.max_new_tokens):
                extra = self.thinning | ({"position_ids": positions} if self.takes_positions else {})
                output = self.model(
                    input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True, **extra
                )
                cache = output.past_key_values
                best, chosen = self._scores(output.logits[:, -1], [streams[i] for i in live if streams]).max(dim=-1)
                keep = self._take(answers, live, chosen.tolist(), torch.isfinite(best).tolist())
                if not keep:
                    break
                if len(keep) < len(live):
                    kept = torch.tensor(keep, device=device)
                    cache.batch_select_indices(kept)
                    chosen, mask, positions = chosen[kept], mask[kept], positions[kept]
                    live = [live[k] for k in keep]
                tokens = chosen.unsqueeze(1)
                mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
                positions = positions[:, -1:] + 1
        return answers

    def _take(
        self, answers: list[Answer | Failed], live: Sequence[int], chosen: Sequence[int], sound: Sequence[bool]
    ) -> list[int]:
        """Write one step's tokens down; gives the places in `live` that go on."""
        keep = []
        for k, (i, token, is_sound) in enumerate(zip(live, chosen, sound, strict=True)):
            answer = answers[i]
            assert isinstance(answer, Answer)
            if not is_sound:
                answers[i] = Failed(f"the model gave no finite logits after {len(answer.tokens)} tokens")
            elif token in self.ends:
                answers[i] = Answer(answer.tokens, True)
            else:
                answer.tokens.append(token)
                keep.append(k)
        return keep

    def _scores(self, logits: Tensor, streams: Sequence[RandomStream]) -> Tensor:
        import torch

        scores = logits.float()
        if not streams:
            return scores
        noise = [-torch.empty(scores.shape[1]).exponential_(generator=stream).log() for stream in streams]
        return scores / self.temperature + torch.stack(noise).to(scores.device)

    def _stream(self, row: int) -> RandomStream:
        import torch

        return torch.Generator().manual_seed(row_seed(self.seed, row))

    def _encode(self, row: Row) -> list[int] | Failed:
        return self.prompts.encode(row[MESSAGES])
