"""A causal language model that answers: batched greedy, sampled or beam-searched generation with a key-value cache.

The loop is our own, some thirty lines, instead of transformers' `generate`. Each row samples from its own seed, so an
answer does not depend on the other rows of its batch. Finished rows leave the batch. Nothing in a model's
`generation_config` (a repetition penalty, say) changes what greedy means. Tests check that answers equal those of
`generate`, also with beams (raysift.actors.beams).

Sampling uses the Gumbel-max trick: the arg-max of logits / temperature + noise, with noise drawn on the CPU from a hash
of seed and row id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raysift.actors.beams import AnswerTokens, BeamSearch, candidates
from raysift.actors.contract import Failed, Row, RowActor
from raysift.actors.loaded import LoadedModel, budget_on, end_tokens, load, longest_input, takes
from raysift.actors.prompts import ANSWER, FINISHED, NEW_TOKENS, Prompts, row_seed, vocabulary_size
from raysift.errors import ConfigError
from raysift.pool.given_input import conversation_of
from raysift.records import ID, MESSAGES
from raysift.storage import Location

if TYPE_CHECKING:
    from torch import Generator as RandomStream
    from torch import Tensor

# Tokens of prompts and answers per batch. Larger batches brought no gain.
BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}


class Generator(RowActor):
    """Lets a model answer the prompt in `messages`.

    `n_new_tokens` counts the end token; `finished` is false where `max_new_tokens` cut the answer off.
    """

    inputs = (MESSAGES,)
    renders_rows = True
    outputs = pa.schema([(ANSWER, pa.string()), (NEW_TOKENS, pa.int64()), (FINISHED, pa.bool_())])

    def __init__(
        self,
        model: str | LoadedModel,
        *,
        adapter: str | Location | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        beams: int = 1,
        template: str = "auto",
        max_length: int | None = None,
        batch_tokens: int | None = None,
        **loading: Any,
    ) -> None:
        self.loaded = load(model, adapter, **loading)
        self.model, self.tokenizer = self.loaded
        self.max_new_tokens, self.temperature, self.seed, self.beams = max_new_tokens, temperature, seed, beams
        self.ends = end_tokens(self.loaded, template)
        longest_prompt = longest_input(self.model, max_length) - max_new_tokens
        vocabulary = vocabulary_size(self.model)
        if beams > 1 and vocabulary is not None and beams > vocabulary - len(self.ends):
            raise ConfigError(
                f"generate: beams={beams}, and the model has {vocabulary} tokens, {len(self.ends)} of which end an answer. Lower "
                "generation.beams."
            )
        self.prompts = Prompts(self.tokenizer, template, self.ends, longest_prompt, max_new_tokens, vocabulary)
        self.batch_tokens = batch_tokens or budget_on(self.model, BATCH_TOKENS)
        self.takes_positions = takes(self.model, "position_ids")
        self.thinning = {"logits_to_keep": 1} if takes(self.model, "logits_to_keep") else {}

    def answer(self, rows: list[Row]) -> list[Row | Failed]:
        encoded = [self._encode(row) for row in rows]
        answers: list[Row | Failed | None] = [item if isinstance(item, Failed) else None for item in encoded]
        prompts = {i: item for i, item in enumerate(encoded) if not isinstance(item, Failed)}
        places = list(prompts)
        lengths = [(len(prompts[i]) + self.max_new_tokens) * self.beams for i in places]

        def complete_pass(batch: list[int]) -> None:
            members = [places[k] for k in batch]
            completed = self.complete([prompts[i] for i in members], [rows[i][ID] for i in members])
            for i, answer in zip(members, completed, strict=True):
                said = 0 if isinstance(answer, Failed) else len(answer.tokens)
                self.tokens_read += len(prompts[i]) + said
                answers[i] = answer if isinstance(answer, Failed) else self.prompts.decode(*answer)

        self.run_passes(lengths, complete_pass)
        return [answer for answer in answers if answer is not None]

    def complete(self, prompts: Sequence[Sequence[int]], ids: Sequence[int]) -> list[AnswerTokens | Failed]:
        """Continue one batch of tokenised prompts; `ids` seed the sampling."""
        return self._search(prompts) if self.beams > 1 else self._follow(prompts, ids)

    def _follow(self, prompts: Sequence[Sequence[int]], ids: Sequence[int]) -> list[AnswerTokens | Failed]:
        """Generate one token at a time: the most probable one, or a drawn one."""
        import torch

        state = self._begin(prompts)
        streams = [self._stream(number) for number in ids] if self.temperature > 0 else []
        answers: list[AnswerTokens | Failed] = [AnswerTokens([], False) for _ in prompts]
        live = list(range(len(prompts)))
        with torch.inference_mode():
            for _ in range(self.max_new_tokens):
                logits = self._logits(state)
                best, chosen = self._scores(logits, [streams[i] for i in live if streams]).max(dim=-1)
                keep = self._take(answers, live, chosen.tolist(), torch.isfinite(best).tolist())
                if not keep:
                    break
                self._go_on(state, keep, chosen[torch.tensor(keep, device=chosen.device)])
                live = [live[k] for k in keep]
        return answers

    def _search(self, prompts: Sequence[Sequence[int]]) -> list[AnswerTokens | Failed]:
        """Search all beams of all rows as one batch; `places` are the continuations that go on, among a row's best."""
        import torch

        state = self._begin(prompts)
        searches = [BeamSearch(self.beams, self.ends, self.max_new_tokens) for _ in prompts]
        failed: dict[int, Failed] = {}
        live = list(range(len(prompts)))
        scores = torch.zeros(len(prompts), 1, device=self.model.device)
        with torch.inference_mode():
            for step in range(self.max_new_tokens):
                logprobs = self._logits(state).float().log_softmax(-1).view(len(live), scores.shape[1], -1)
                known = logprobs.shape[-1]
                totals = (logprobs + scores.unsqueeze(-1)).flatten(1)
                values, found = totals.topk(min(candidates(self.beams, len(self.ends)), totals.shape[1]))
                parents, chosen = found // known, found % known
                sound = torch.isfinite(values[:, 0]).tolist()  # topk puts a NaN first, too
                keep, places = [], []
                for k, columns in enumerate(zip(values.tolist(), parents.tolist(), chosen.tolist(), strict=True)):
                    if not sound[k]:
                        failed[live[k]] = Failed(f"the model gave no finite logits after {step} tokens")
                    elif going := searches[live[k]].step(*columns):
                        keep.append(k)
                        places.append(going)
                if not keep:
                    break
                rows = torch.tensor(keep, device=scores.device).unsqueeze(1)
                going_on = torch.tensor(places, device=scores.device)
                before = (rows * scores.shape[1] + parents[rows, going_on]).flatten()
                self._go_on(state, before.tolist(), chosen[rows, going_on].flatten())
                scores = values[rows, going_on]
                live = [live[k] for k in keep]
        return [failed.get(i) or search.best() for i, search in enumerate(searches)]

    def _begin(self, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Arguments of the first forward pass; prompts are padded on the left."""
        import torch

        device = self.model.device
        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        tokens = torch.tensor([[*[pad] * (width - len(p)), *p] for p in prompts], device=device)
        mask = torch.tensor([[*[0] * (width - len(p)), *[1] * len(p)] for p in prompts], device=device)
        positions = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if self.takes_positions else {}
        return {"input_ids": tokens, "attention_mask": mask, "past_key_values": None, **positions}

    def _logits(self, state: dict[str, Any]) -> Tensor:
        """Logits of the next token of each sequence; new keys and values go into the state."""
        output = self.model(**state, use_cache=True, **self.thinning)
        state["past_key_values"] = output.past_key_values
        logits: Tensor = output.logits[:, -1]
        return logits

    def _go_on(self, state: dict[str, Any], before: Sequence[int], tokens: Tensor) -> None:
        """Extend the state's sequences numbered `before` (which may repeat or omit some) by one token each."""
        import torch

        mask = state["attention_mask"]
        if list(before) != list(range(len(mask))):
            kept = torch.tensor(before, device=mask.device)
            state["past_key_values"].reorder_cache(kept)  # a method that every kind of cache layer has
            mask = mask[kept]
            state |= {name: state[name][kept] for name in ("position_ids",) if name in state}
        state["input_ids"] = tokens.unsqueeze(1)
        state["attention_mask"] = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        if "position_ids" in state:
            state["position_ids"] = state["position_ids"][:, -1:] + 1

    def _take(
        self, answers: list[AnswerTokens | Failed], live: Sequence[int], chosen: Sequence[int], sound: Sequence[bool]
    ) -> list[int]:
        """Record one step's tokens and return the places in `live` that go on."""
        keep = []
        for k, (i, token, is_sound) in enumerate(zip(live, chosen, sound, strict=True)):
            answer = answers[i]
            assert isinstance(answer, AnswerTokens)
            if not is_sound:
                answers[i] = Failed(f"the model gave no finite logits after {len(answer.tokens)} tokens")
            elif token in self.ends:
                answers[i] = AnswerTokens(answer.tokens, True)
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
        return self.prompts.encode(conversation_of(row))
