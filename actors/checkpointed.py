"""One base model in memory, and a LoRA training's checkpoints swapped in: adapter weights and Adam's moments."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raysift.actors.language_model import local_copy
from raysift.actors.loaded import LoadedModel, load, longest_input
from raysift.actors.swapped import Swapped
from raysift.draws import seed_for
from raysift.errors import ModelError
from raysift.gradients.moments import load_moments
from raysift.pool.given_input import prompt_of
from raysift.records import Example, Pair
from raysift.settings.gradients import AdamSettings, ProjectionSettings
from raysift.storage import Location
from raysift.store.gradient_store import checkpoint_hash
from raysift.templates import IGNORED, encode_conversation

if TYPE_CHECKING:
    from raysift.gradients.adam import AdamDirection
    from raysift.gradients.collect import RowGradients, Sink
    from raysift.gradients.preference import TokenPair
    from raysift.gradients.rows import TokenRow
    from raysift.store.projection import Projection

OPTIMIZER_FILES = ("moments.safetensors", "optimizer.pt", "optimizer.bin")  # accelerate writes the last one under FSDP


@dataclass(frozen=True)
class Checkpoint:
    """One point of a training; its learning rate is its weight among the checkpoints."""

    name: str
    adapter: Location
    moments: Location | None
    learning_rate: float


class CheckpointedModel:
    """Computes the row gradients of each checkpoint; the base is loaded once.

    `token_budget` bounds the tokens of a batch and does not affect the result. Rows are encoded here, as in training.
    """

    def __init__(
        self,
        model: str | LoadedModel,
        checkpoints: Sequence[Checkpoint],
        adam: AdamSettings,
        *,
        template: str = "auto",
        max_length: int | None = None,
        token_budget: int = 4096,
        **loading: Any,
    ) -> None:
        from raysift.gradients.collect import RowGradients

        self.checkpoints = tuple(checkpoints)
        adapter = self.checkpoints[0].adapter
        loaded = load(model, adapter, **loading)
        self.tokenizer = loaded.tokenizer
        self.template = template
        self.max_length = longest_input(loaded.model, max_length)
        self.gradients: RowGradients = RowGradients(loaded.model, token_budget=token_budget, max_tokens=self.max_length)
        self._factors = [modules[0].weight for modules in self.gradients.adapter.modules]
        self._directions = [self._read_direction(checkpoint, adam) for checkpoint in self.checkpoints]
        self.tensors = self._all_tensors()

    @property
    def layout(self) -> Any:
        """Names and shapes of the adapter's tensors, in the order of a gradient."""
        return self.gradients.adapter.layout

    def at(self, index: int, sink: Sink) -> RowGradients:
        """The row gradients of one checkpoint, which feed `sink`."""
        found = self.tensors.use(index)
        for factor, own in zip(self._factors, found, strict=False):
            factor.data = own  # no copy: factors take turns in being this parameter
        direction = self._directions[index]
        if direction is not None:
            direction.parts = found[len(self._factors) :]
        self.gradients.sink = sink
        self.gradients.direction = direction
        return self.gradients

    def projections(self, settings: ProjectionSettings) -> list[Projection]:
        """The projection for each checkpoint's gradients: one map per checkpoint, or one shared by all."""
        from raysift.store.projection import Projection

        if not settings.own_map or settings.kind == "none":
            return [Projection(settings, self.layout)] * len(self.checkpoints)
        identities = (checkpoint_hash(checkpoint.adapter, None) for checkpoint in self.checkpoints)
        seeds = (seed_for(settings.seed, f"projection at {identity}") for identity in identities)
        return [Projection(settings.model_copy(update={"seed": seed}), self.layout) for seed in seeds]

    def encode(self, row_id: int, messages: Sequence[dict[str, str]]) -> TokenRow:
        """A conversation as tokens; every assistant turn counts."""
        return self.encode_and_cut(row_id, messages)[0]

    def encode_and_cut(self, row_id: int, messages: Sequence[dict[str, str]]) -> tuple[TokenRow, bool]:
        """A conversation as tokens, and whether tokens that count were cut off, as the training cuts them."""
        import numpy as np

        from raysift.gradients.rows import TokenRow

        encoded = encode_conversation(self.tokenizer, list(messages), self.max_length, self.template)
        return TokenRow(row_id, np.asarray(encoded.input_ids), np.asarray(encoded.labels)), encoded.truncated

    def encode_pair(self, number: int, pair: Pair, end_prompt: bool) -> TokenPair:
        """A preference pair as tokens; only the answers count, not the assistant's turns inside the prompt.

        `end_prompt` puts the end-of-sequence token between prompt and answer, as the official code of ROSE does.
        """
        from raysift.gradients.preference import TokenPair

        chosen, one_cut = self.encode_answer(number, pair, pair.chosen, end_prompt)
        rejected, other_cut = self.encode_answer(number, pair, pair.rejected, end_prompt)
        return TokenPair(number, chosen, rejected, pair.subtask, one_cut or other_cut)

    def encode_answer(
        self, number: int, target: Pair | Example, answer: str, end_prompt: bool = False
    ) -> tuple[TokenRow, bool]:
        """A target's prompt and answer, with labels on the answer only, and whether tokens of the answer were cut off.

        Prompt and answer are separated before cutting, so an answer past the longest input leaves no token that counts.
        """
        import numpy as np

        from raysift.gradients.rows import TokenRow

        messages = [*prompt_of(target), {"role": "assistant", "content": answer}]
        whole = encode_conversation(self.tokenizer, messages, sys.maxsize, self.template)
        ids, labels = np.asarray(whole.input_ids), np.asarray(whole.labels)
        counted = np.flatnonzero(labels != IGNORED)
        if len(counted):
            breaks = np.flatnonzero(np.diff(counted) > 1)
            start = int(counted[breaks[-1] + 1] if len(breaks) else counted[0])
            labels[:start] = IGNORED
            if end_prompt and self.tokenizer.eos_token_id is not None:
                ids, labels = np.insert(ids, start, self.tokenizer.eos_token_id), np.insert(labels, start, IGNORED)
        cut = bool(np.any(labels[self.max_length :] != IGNORED))
        return TokenRow(number, ids[: self.max_length], labels[: self.max_length]), cut

    def _all_tensors(self) -> Swapped:
        """Each checkpoint's factors and the tensors of its direction, in the types that they are used in."""
        import torch

        wide = torch.float64 if self._factors[0].dtype == torch.float64 else torch.float32
        lists = []
        for checkpoint, direction in zip(self.checkpoints, self._directions, strict=True):
            weights = zip(self._read_weights(checkpoint), self._factors, strict=True)
            lists.append([weight.to(factor.dtype) for weight, factor in weights])
            if direction is not None:
                lists[-1] += [part.to(wide) for part in direction.parts]
                direction.parts = []
        devices = [factor.device for factor in self._factors]
        return Swapped(lists, devices * (len(lists[0]) // len(devices)))

    def _read_weights(self, checkpoint: Checkpoint) -> list[Any]:
        """The adapter's factors in the layout's order, on the host."""
        import torch
        from safetensors.torch import load_file

        from raysift.gradients.adam import canonical_name

        with local_copy(checkpoint.adapter) as folder:
            try:
                tensors = load_file(f"{folder}/adapter_model.safetensors")
            except Exception as error:  # damaged files raise whatever the library raises
                raise ModelError(f"gradients: the weights of {checkpoint.adapter} cannot be read: {error}") from error
        found = {canonical_name(name): tensor for name, tensor in tensors.items()}
        missing = sorted(set(self.layout.names) - set(found))
        unknown = sorted(set(found) - set(self.layout.names))
        if missing or unknown:
            first = (
                f"lacks {len(missing)}, first {missing[0]}"
                if missing
                else f"has {len(unknown)} others, first {unknown[0]}"
            )
            raise ModelError(
                f"gradients: checkpoint {checkpoint.name} does not fit the model: of {len(self.layout.names)} adapter tensors it "
                f"{first}. It is of another base model or another training; all checkpoints must come from one."
            )
        weights = [found[name] for name in self.layout.names]
        for name, shape, weight in zip(self.layout.names, self.layout.shapes, weights, strict=True):
            if tuple(weight.shape) != tuple(shape):
                raise ModelError(
                    f"gradients: {name} is {tuple(weight.shape)} in checkpoint {checkpoint.name}, {tuple(shape)} in the model."
                )
            if not bool(torch.isfinite(weight).all()):
                raise ModelError(
                    f"gradients: {name} holds NaN or infinite values in checkpoint {checkpoint.name} ({checkpoint.adapter}). "
                    "The training diverged; lower its learning rate, or leave this checkpoint out."
                )
        return weights

    def _read_direction(self, checkpoint: Checkpoint, adam: AdamSettings) -> AdamDirection | None:
        from raysift.gradients.adam import make_direction

        if adam.form == "none":
            return None
        if checkpoint.moments is None:
            raise ModelError(
                f"gradients: checkpoint {checkpoint.name} has no optimizer moments ({' or '.join(OPTIMIZER_FILES)} beside its "
                f"adapter), which adam.form={adam.form} needs. Keep them when training, or set adam.form=none in the "
                "method's section for plain gradients."
            )
        return make_direction(adam, read_moments(checkpoint.moments, self.layout))


def read_moments(place: Location, layout: Any) -> Any:
    """Adam's moments in the layout's order, read from our own file or an optimizer's state dict (`optimizer.pt`)."""
    from raysift.gradients.adam import named_moments, optimizer_moments

    if place.name.endswith(".safetensors"):
        import torch

        own = load_moments(place)
        first, second = ({n: torch.from_numpy(v) for n, v in m.items()} for m in (own.exp_avg, own.exp_avg_sq))
        return named_moments(first, second, own.step, layout)
    import io

    import torch

    try:
        # Never unpickle foreign files: `weights_only` unpacks only tensors and plain containers.
        state = torch.load(io.BytesIO(place.read_bytes()), map_location="cpu", weights_only=True)
        return optimizer_moments(state, layout)[0]
    except ModelError:
        raise
    except Exception as error:  # damaged files can raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ModelError(
            f"gradients: {place} is no optimizer state that torch can read: {reason} Keep the optimizer.pt that transformers' "
            "Trainer saved beside the adapter."
        ) from error


def find_moments(checkpoint: Location) -> Location | None:
    """The optimizer state beside an adapter: ours, or the one that transformers' Trainer leaves."""
    return next((place for name in OPTIMIZER_FILES if (place := checkpoint / name).exists()), None)
