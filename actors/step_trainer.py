"""A language model that is trained one chosen batch at a time, and can be reset to where it began; no Ray here.

A step equals one of `trainee.train` on the same rows: mean loss over the batch's counted tokens, clipped gradient,
AdamW, the scheduled rate, dropout seeded by (seed, step). The caller chooses the batches; a row may be in any number
of them. The order of a batch's ids has no effect beyond rounding.

Several processes can share a training, each with the whole model (see `peers`). Passes, their dropout and the tree in which
their gradients are added follow from the batch, so weights are the same, bit for bit, for 1, 2, 4 or 8 processes.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raysift.actors.effective_batches import Place
from raysift.actors.encoded_rows import COUNTED, INPUT_IDS, EncodedRows
from raysift.actors.language_model import load_tokenizer
from raysift.actors.optimizers import build_optimizer, moments_of, restore_moments
from raysift.actors.optimizers import trainable_parameters as trainable_parameters
from raysift.actors.peers import ALONE, LANES, Peers, TreeSum
from raysift.actors.token_files import TokenFiles
from raysift.actors.train_checkpoints import EPOCH_RECORD, MOMENTS, EpochRecord, write_checkpoint
from raysift.actors.trainee import build_placed, own_settings, step_seed
from raysift.errors import StageError
from raysift.gradients.moments import load_moments, save_moments
from raysift.settings.training import TrainConfig, epoch_mean_learning_rates, learning_rates
from raysift.storage import Location
from raysift.tensors import load_tensors, save_tensors

STATE, WEIGHTS = "state.json", "weights.safetensors"
FEW_TOKENS = 1024
"""Passes of fewer tokens are not quicker: launching their kernels takes as long as the products."""


class StepTrainer:
    """Holds the model, its optimizer and all rows it may be trained on (five bytes per token), or maps their files.

    `rows` are trainable rows from `EncodeRows` and `split_trainable`. `steps` is the length of the training, on which
    the learning rates depend. On one kind of machine, with the same number of threads, results repeat bit for bit.
    """

    def __init__(
        self,
        rows: pa.Table | TokenFiles,
        config: TrainConfig,
        steps: int,
        model: str,
        place: Place,
        *,
        adapter: str | Location | None = None,
        peers: Peers = ALONE,
    ) -> None:
        self.config, self.place, self.steps, self.name, self.peers = config, place, steps, model, peers
        self.rows = _checked(rows)
        self.rates = learning_rates(config, steps)
        with own_settings(place):
            self.model = build_placed(config, model, adapter, place)
        if place.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.trainable = trainable_parameters(self.model)
        self.device = self.model.get_input_embeddings().weight.device
        self.optimizer = build_optimizer(self.model, config)
        self._start = {name: weight.detach().clone() for name, weight in self.trainable.items()}
        self._gradients = flat_gradients(list(self.trainable.values()))
        self.restart()

    def restart(self) -> None:
        """Reset weights, optimizer and step number to their state before the first step."""
        import torch

        with torch.no_grad():
            for name, weight in self.trainable.items():
                weight.copy_(self._start[name])
        self.optimizer.state.clear()
        self.step_number = 0
        self.loss_sum, self.label_tokens, self.seconds = 0.0, 0, 0.0

    def step(self, ids: Sequence[int] | np.ndarray) -> float:
        """Make one optimizer step on the rows with these ids; return the mean loss of their tokens before the step."""
        from raysift.gradients.cpu_products import quick_products

        started = time.perf_counter()
        positions = self._batch(ids)
        tokens = int(self.rows.labels_per_row[positions].sum())
        with own_settings(self.place), quick_products(self.model):
            self.model.train()
            nats = self._backward(positions, tokens)
            self._update(nats)
        self.step_number += 1
        self.loss_sum += nats
        self.label_tokens += tokens
        self.seconds += time.perf_counter() - started
        return nats / tokens

    def weights(self) -> dict[str, np.ndarray]:
        """Copies of the trained weights, by name."""
        return {name: _array(weight) for name, weight in self.trainable.items()}

    def save_epoch(self, out: Location) -> EpochRecord:
        """Write `out/epoch-1/` as a fine-tune would if the steps so far were an epoch, and return its record."""
        if not self.step_number:
            raise StageError("training: no step was made yet, so there is no epoch to save.")
        record = EpochRecord(
            epoch=1,
            step=self.step_number,
            mean_learning_rate=epoch_mean_learning_rates(self.config, self.step_number, self.steps)[0],
            first_learning_rate=self.rates[0],
            last_learning_rate=self.rates[self.step_number - 1],
            mean_loss=self.loss_sum / self.label_tokens,
            loss_sum=self.loss_sum,
            label_tokens=self.label_tokens,
            seconds=round(self.seconds, 3),
            template=self.config.template,
        )
        tokenizer = load_tokenizer(self.name, self.place.trust_remote_code)
        write_checkpoint(out / "epoch-1", record, EPOCH_RECORD, self.model, tokenizer, self.optimizer)
        return record

    def save_state(self, folder: Location) -> None:
        """Save weights, moments and step for `load_state`; the folder is valid once it holds `state.json`."""
        (folder / STATE).delete()
        save_tensors(folder / WEIGHTS, self.weights(), {})
        save_moments(folder / MOMENTS, moments_of(self.model, self.optimizer, self.step_number))
        totals = {"loss_sum": self.loss_sum, "label_tokens": self.label_tokens, "seconds": self.seconds}
        (folder / STATE).write(json.dumps({"step": self.step_number, "steps": self.steps} | totals, indent=2) + "\n")

    def load_state(self, folder: Location) -> None:
        """Resume where `save_state` left off, bit for bit, in a trainer with the same model, rows and settings."""
        if not (folder / STATE).exists():
            raise StageError(f"training: {folder} holds no {STATE}, so no state was written there, or not to its end.")
        state = json.loads((folder / STATE).read_text())
        if state["steps"] != self.steps:
            raise StageError(
                f"training: {folder} is of a training of {state['steps']} steps, this one has {self.steps}; their "
                "learning rates differ. Start it anew."
            )
        copy_weights(self.trainable, load_tensors(folder / WEIGHTS, "training")[0])
        restore_moments(self.model, self.optimizer, load_moments(folder / MOMENTS))
        self.step_number = state["step"]
        self.loss_sum, self.label_tokens, self.seconds = state["loss_sum"], state["label_tokens"], state["seconds"]

    def _batch(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Positions of the rows, in order of id."""
        if self.step_number >= self.steps:
            raise StageError(f"training: all {self.steps} steps were made; restart() begins the training anew.")
        positions = np.sort(self.rows.positions(ids))
        different = len(np.unique(positions))
        if not 0 < different == len(positions):
            raise StageError(
                f"training: step {self.step_number} has a batch of {len(positions)} rows of which {different} are "
                "different; a batch holds one row at least, and no row twice."
            )
        return positions

    def _seed(self, number: int) -> None:
        """Dropout of a pass depends on the seed, the step and the pass alone."""
        import torch

        seed = step_seed(self.config.seed, self.step_number, number)
        # Not torch.manual_seed: without CUDA it keeps every call, to repeat it should CUDA be initialised.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _backward(self, positions: np.ndarray, tokens: int) -> float:
        """Leave the gradient of the batch's mean loss in the parameters; return its summed loss in nats."""
        passes = plan_passes(self.rows.lengths[positions], self.place.tokens_per_pass, self.place.rows_per_pass)
        sums, own = [TreeSum() for _ in self._gradients], {}
        for numbers in deal(len(passes))[self.peers.lanes.start : self.peers.lanes.stop]:
            for gradient in self._gradients:
                gradient.zero_()
            for number in numbers:
                self._seed(number)
                own[number] = self._pass(positions[passes[number]], tokens)
            for total, gradient in zip(sums, self._gradients, strict=True):
                total.add(gradient.clone() if numbers else None)
        for total, gradient in zip(sums, self._gradients, strict=True):
            found = total.result()
            gradient.zero_() if found is None else gradient.copy_(found)
        self.peers.add_up(self._gradients)
        nats = np.zeros(len(passes))
        for number, loss in own.items():
            nats[number] = float(loss)
        return math.fsum(self.peers.merge(nats))

    def _pass(self, positions: np.ndarray, tokens: int) -> Any:
        """Add the gradient of these rows' share in the mean loss; their summed loss in nats."""
        import torch
        from torch.nn.functional import cross_entropy

        from raysift.gradients.loss import find_head, label_logits
        from raysift.gradients.rows import pad_rows

        batch = pad_rows(self.rows.token_rows(positions), self.device)
        with autocast(self.config, self.device):
            logits = label_logits(self.model, batch, find_head(self.model))
        nats = cross_entropy(logits.float(), batch.targets, reduction="sum")
        torch.autograd.backward(nats * (1 / tokens))
        return nats.detach()

    def _update(self, nats: float) -> None:
        """Clip and step; raise if loss or gradient is not finite, since such a gradient would ruin every weight."""
        import torch

        longest = self.config.max_grad_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.trainable.values(), longest))
        if not (math.isfinite(nats) and math.isfinite(norm)):
            raise StageError(
                f"training: at step {self.step_number} of {self.steps} the loss became {nats} and the gradient's norm "
                f"{norm}. Lower the learning rate ({self.config.learning_rate:g}) or max_grad_norm, or train in fp32."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates[self.step_number]
        self.optimizer.step()


def plan_passes(lengths: Sequence[int] | np.ndarray, tokens: int, rows: int) -> list[list[int]]:
    """Members of each pass, longest first, which holds at most `tokens` tokens with padding, and `rows` rows.

    Passes are as many as the lanes, or a multiple of them, unless they would hold fewer than FEW_TOKENS; they are as equal as
    rows sorted by length allow.
    """
    from raysift.gradients.rows import plan_batches

    known = np.asarray(lengths).tolist()
    most = LANES * -(-len(plan_batches(known, tokens, rows)) // LANES)
    low, high = min(FEW_TOKENS, tokens), tokens
    while low < high:  # the smallest size with which passes are not too many
        middle = (low + high) // 2
        low, high = (low, middle) if len(plan_batches(known, middle, rows)) <= most else (middle + 1, high)
    return plan_batches(known, high, rows)


def deal(passes: int) -> list[list[int]]:
    """The passes of each lane, in order; few are spread over the lanes, so that two processes have them half each."""
    lanes: list[list[int]] = [[] for _ in range(LANES)]
    for number in range(passes):
        lanes[number * LANES // passes].append(number)
    return lanes


def flat_gradients(weights: Sequence[Any]) -> list[Any]:
    """One tensor of zeros for each device, of which the weights' gradients are parts from now on."""
    import torch

    kinds: dict[tuple[Any, Any], list[Any]] = {}
    for weight in weights:
        kinds.setdefault((weight.device, weight.dtype), []).append(weight)
    flats = []
    for (device, dtype), members in kinds.items():
        flats.append(torch.zeros(sum(weight.numel() for weight in members), dtype=dtype, device=device))
        start = 0
        for weight in members:
            weight.grad = flats[-1][start : start + weight.numel()].view_as(weight)
            start += weight.numel()
    return flats


def copy_weights(trainable: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> None:
    """Copy the values of `weights` into the parameters of the same names and shapes."""
    import torch

    if trainable.keys() != weights.keys() or any(
        tuple(weight.shape) != weights[name].shape for name, weight in trainable.items()
    ):
        raise StageError(
            f"training: weights of {len(weights)} parameters do not fit the {len(trainable)} that the model trains, by "
            "name or by shape. The model, the adapter or their settings are not those the weights were trained with."
        )
    with torch.no_grad():
        for name, weight in trainable.items():
            weight.copy_(torch.tensor(weights[name]))  # copies first: arrays from Ray's store are read-only


@contextlib.contextmanager
def autocast(config: TrainConfig, device: Any) -> Iterator[None]:
    """Compute products in bfloat16 if the recipe asks for it, as transformers' Trainer does."""
    import torch

    with torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bf16"):
        yield


def _checked(rows: pa.Table | TokenFiles) -> EncodedRows:
    if isinstance(rows, TokenFiles):
        return rows.open()  # holds nothing but trainable rows, each once
    missing = rows[INPUT_IDS].null_count or rows[COUNTED].null_count
    if not len(rows) or missing or not (encoded := EncodedRows(rows)).labels_per_row.all():
        raise StageError(
            f"training: of {len(rows)} rows some could not be encoded or hold nothing to learn, or there are none. "
            "Hand over those that split_trainable keeps."
        )
    if len(np.unique(encoded.ids)) != len(encoded):
        raise StageError(f"training: {len(encoded)} rows have {len(np.unique(encoded.ids))} different ids.")
    return encoded


def _array(weight: Any) -> np.ndarray:
    values: np.ndarray = weight.detach().float().cpu().numpy().copy()
    return values
