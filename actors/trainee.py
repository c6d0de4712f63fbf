"""Fine-tunes a language model, in one process or as one of several ranks; no Ray here.

Tokens come as effective batches, transformers' `Trainer` makes the steps, and after each epoch rank 0 writes `epoch-N/`
(see train_checkpoints). A training continues from the last valid folder.

The result is the same for 1 or 7 ranks, up to rounding: an effective batch's loss is the sum over its counted tokens,
of all ranks and passes, divided by their number. Dropout is seeded by (seed, step, rank), so a resumed training drops
the same units as an uninterrupted one.

Departure from stock `Trainer` use: it sees the rest of the training as one long epoch, so resuming at any step only
changes where the batches begin.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa

from raysift.actors.effective_batches import EffectiveBatches, Place
from raysift.actors.language_model import (
    SPREAD,
    load_adapter,
    load_language_model,
    load_tokenizer,
    local_copy,
    move,
    pick_device,
)
from raysift.actors.train_checkpoints import (
    EPOCH_RECORD,
    MOMENTS,
    STEP_RECORD,
    EpochRecord,
    delete_steps,
    last_checkpoint,
    restore_moments,
    write_checkpoint,
)
from raysift.errors import StageError
from raysift.gradients.moments import Moments, load_moments
from raysift.settings.training import TrainConfig, epoch_mean_learning_rates, learning_rates
from raysift.storage import Location, open_location
from raysift.templates import IGNORED

log = logging.getLogger(__name__)

OnStep = Callable[[int, int, float], None]
"""Called with the step, the number of steps, and the mean loss since the call before, in nats per counted token."""
TELL_EVERY_S = 1.0  # reading the loss waits for the GPU
MARKS = 20  # points of the loss curve in an epoch


def build_model(
    config: TrainConfig,
    model: str,
    start: str | Location | None,
    trust_remote_code: bool = False,
    device: str = "cpu",
) -> Any:
    """The model with its trainable weights: a new adapter, or the adapter or weights of the folder `start`.

    Trained weights are float32. Frozen weights under an adapter have the type of the products, or four bits.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    if config.method == "full":
        if start is None:
            return load_language_model(model, dtype="fp32", device=device, trust_remote_code=trust_remote_code)
        with local_copy(open_location(start)) as folder:
            return load_language_model(folder, dtype="fp32", device=device, trust_remote_code=trust_remote_code)
    base = load_language_model(
        model,
        dtype=config.dtype,
        device=device,
        trust_remote_code=trust_remote_code,
        quantization=config.quantization,
    )
    if start is not None:
        return load_adapter(base, start, trainable=True)
    targets = config.lora_targets if isinstance(config.lora_targets, str) else list(config.lora_targets)
    torch.manual_seed(config.seed)
    return get_peft_model(
        base,
        LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=targets,
            task_type="CAUSAL_LM",
        ),
    )


def build_placed(config: TrainConfig, model: str, start: str | Location | None, place: Place) -> Any:
    """The model with its trainable weights (see `build_model`) on the device of `place`."""
    built = build_model(config, model, start, place.trust_remote_code, loading_device(config, place))
    return move(built, place.device)


def loading_device(config: TrainConfig, place: Place) -> str:
    """The device to load on: the CPU, to be moved later, except for a base that must be loaded where it will stay."""
    if place.device == SPREAD:
        if place.world_size > 1:
            raise StageError(
                f"training: {place.world_size} ranks cannot share a model that is spread over the GPUs. Set "
                "resources.train_workers to 0, or resources.device to auto."
            )
        return SPREAD
    if config.quantization == "none":
        return "cpu"
    device = pick_device(place.device)
    # Ray Train names each worker's GPU in this variable; accelerate, under transformers' Trainer, obeys it too.
    return os.environ.get("ACCELERATE_TORCH_DEVICE", device) if device == "cuda" else device


def train(
    rows: pa.Table,
    out: Location,
    config: TrainConfig,
    model: str,
    place: Place,
    *,
    adapter: str | Location | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    on_step: OnStep | None = None,
    callbacks: Sequence[Any] = (),
) -> None:
    """Train on encoded rows and write one folder per epoch below `out`, continuing where an earlier attempt stopped.

    `on_epoch` is called on every rank after each epoch, `on_step` on rank 0 at most once a second. All rows are held in
    memory, at five bytes per token.
    """
    from raysift.gradients.cpu_products import quick_products

    with own_settings(place):
        last = last_checkpoint(out)
        start = adapter
        if last:
            start = last[0] / ("adapter" if config.method == "lora" else "model")
        trained = build_model(config, model, start, place.trust_remote_code, loading_device(config, place))
        tokenizer = load_tokenizer(model, place.trust_remote_code)
        batches = EffectiveBatches(rows, config, place, tokenizer.pad_token_id, last[1].step if last else 0)
        if batches.first_step >= batches.steps:
            return
        with tempfile.TemporaryDirectory() as scratch:
            trainer = _trainer(trained, batches, config, place, scratch)
            if last:
                trainer.moments = load_moments(last[0] / MOMENTS)
            keeper = _keeper(trainer, tokenizer, batches, out, last, on_epoch, on_step)
            for callback in (keeper, *callbacks):
                trainer.add_callback(callback)
            with quick_products(trained):
                trainer.train()


def _trainer(model: Any, batches: EffectiveBatches, config: TrainConfig, place: Place, scratch: str) -> Any:
    import torch
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import PrinterCallback, Trainer, TrainingArguments

    class Finetuner(Trainer):  # type: ignore[misc]
        """A Trainer with our batches, rates and loss, and no other work between two steps."""

        moments: Moments | None = None
        loss_sum: Any = 0.0
        label_tokens: int = 0

        def get_train_dataloader(self) -> Any:
            return batches

        def num_examples(self, dataloader: Any) -> int:
            return len(batches.lengths)

        def floating_point_ops(self, inputs: dict[str, Any]) -> int:
            return 0  # the stock method walks over all parameters in every pass

        def create_optimizer(self, model: Any = None) -> Any:
            optimizer = super().create_optimizer(model)
            if self.moments:
                restore_moments(self.model, optimizer, self.moments)
            return optimizer

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            rates = learning_rates(config, batches.steps)
            factors = [rate / config.learning_rate for rate in rates[batches.first_step :]]
            self.lr_scheduler = LambdaLR(self.optimizer, lambda step: factors[min(step, len(factors) - 1)])
            return self.lr_scheduler

        def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
            """The passes of one step, and the number of tokens that count in it on all ranks."""
            passes = [next(epoch_iterator) for _ in range(num_batches)]
            tokens = {taken.pop("tokens_of_step") for taken in passes}
            self.label_tokens += max(tokens)
            return passes, max(tokens)

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            """Nats of this pass per token of the whole step, times the ranks, since their gradients are averaged.

            Batches are padded on the right, where a causal model cannot look, so no attention mask is needed.
            """
            labels = inputs["labels"][:, 1:]
            counted = labels != IGNORED
            logits = model(input_ids=inputs["input_ids"], use_cache=False).logits[:, :-1]
            nats = torch.nn.functional.cross_entropy(logits[counted].float(), labels[counted], reduction="sum")
            self.loss_sum = self.loss_sum + nats.detach().double()
            return nats * (place.world_size / num_items_in_batch)

    on_cpu = pick_device(place.device) == "cpu"
    arguments = TrainingArguments(
        output_dir=scratch,
        max_steps=batches.steps - batches.first_step,
        per_device_train_batch_size=1,  # has no effect: batches come ready-made
        gradient_accumulation_steps=batches.passes,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        adam_epsilon=config.adam_epsilon,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=config.dtype == "bf16",
        use_cpu=on_cpu,
        gradient_checkpointing=place.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if place.gradient_checkpointing else None,
        ddp_find_unused_parameters=False,
        average_tokens_across_devices=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=config.seed,
    )
    if place.world_size == 1 and not on_cpu:
        arguments._n_gpu = 1  # otherwise a second visible GPU would switch on torch's DataParallel
    trainer = Finetuner(model=model, args=arguments)
    trainer.model_accepts_loss_kwargs = True  # our loss is already divided by the tokens of the step
    trainer.remove_callback(PrinterCallback)
    return trainer


def _keeper(
    trainer: Any,
    tokenizer: Any,
    batches: EffectiveBatches,
    out: Location,
    last: tuple[Location, EpochRecord, bool] | None,
    on_epoch: Callable[[EpochRecord], None] | None,
    on_step: OnStep | None,
) -> Any:
    """The callback that seeds each step, and writes a checkpoint after each epoch and, in long ones, in between."""
    import torch
    from transformers import TrainerCallback

    config, place, model = batches.config, batches.place, trainer.model
    marked = max(1, batches.steps_per_epoch // MARKS)
    rates = learning_rates(config, batches.steps)
    means = epoch_mean_learning_rates(config, batches.steps_per_epoch, batches.steps)
    if last and not last[2]:
        trainer.label_tokens = last[1].label_tokens

    class Keeper(TrainerCallback):  # type: ignore[misc]
        loss_before = last[1].loss_sum if last and not last[2] else 0.0
        seconds_before = last[1].seconds if last and not last[2] else 0.0
        marks_before = last[1].marks if last and not last[2] else ()
        marks: list[tuple[int, Any, int]]
        clock = time.perf_counter()
        told = (0.0, trainer.label_tokens, float("-inf"))

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.clock, self.marks = time.perf_counter(), []

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seed = step_seed(config.seed, batches.first_step + state.global_step, place.rank)
            # Not torch.manual_seed: without CUDA it keeps every call, to repeat it should CUDA be initialised.
            torch.default_generator.manual_seed(seed)
            if torch.cuda.is_available():
                torch.cuda.manual_seed(seed)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            step = batches.first_step + state.global_step
            if step % batches.steps_per_epoch % marked == 0 or step == batches.steps:
                self.marks.append((step, trainer.loss_sum.clone(), trainer.label_tokens))
            if (
                on_step
                and place.rank == 0
                and (time.monotonic() - self.told[2] > TELL_EVERY_S or step == batches.steps)
            ):
                self.tell(step)
            if step % batches.steps_per_epoch == 0 or step == batches.steps:
                record = self.record(step)
                if place.rank == 0:
                    write_checkpoint(
                        out / f"epoch-{record.epoch}", record, EPOCH_RECORD, model, tokenizer, trainer.optimizer
                    )
                    delete_steps(out)
                log.info("epoch %d: step %d, loss %.4f", record.epoch, step, record.mean_loss)
                if on_epoch:
                    on_epoch(record)
                trainer.loss_sum, trainer.label_tokens = 0.0, 0
                self.loss_before, self.seconds_before, self.clock = 0.0, 0.0, time.perf_counter()
                self.marks_before, self.marks, self.told = (), [], (0.0, 0, self.told[2])
            elif step % place.steps_per_checkpoint == 0:
                record = self.record(step)
                if place.rank == 0:
                    write_checkpoint(out / f"step-{step}", record, STEP_RECORD, model, tokenizer, trainer.optimizer)
                    delete_steps(out, keep=f"step-{step}")

        def tell(self, step: int) -> None:
            """This rank's share of the loss stands for that of all ranks."""
            assert on_step is not None
            loss_sum, tokens, _ = self.told
            now = trainer.loss_sum.item()
            on_step(step, batches.steps, (now - loss_sum) * place.world_size / max(1, trainer.label_tokens - tokens))
            self.told = (now, trainer.label_tokens, time.monotonic())

        def record(self, step: int) -> EpochRecord:
            losses = torch.stack([trainer.loss_sum, *(loss for _, loss, _ in self.marks)])
            if place.world_size > 1:
                torch.distributed.all_reduce(losses)
            sums = [self.loss_before + loss for loss in losses.tolist()]
            loss_sum = sums[0]
            steps_and_tokens = ((step, tokens) for step, _, tokens in self.marks)
            marks = [(step, loss, tokens) for (step, tokens), loss in zip(steps_and_tokens, sums[1:], strict=True)]
            epoch = math.ceil(step / batches.steps_per_epoch)
            if not math.isfinite(loss_sum):
                raise StageError(
                    f"finetune: the loss of epoch {epoch} became {loss_sum} by step {step}. Lower the learning rate "
                    f"({config.learning_rate:g}) or max_grad_norm, or train in fp32."
                )
            first = (epoch - 1) * batches.steps_per_epoch
            return EpochRecord(
                epoch=epoch,
                step=step,
                mean_learning_rate=means[epoch - 1],
                first_learning_rate=rates[first],
                last_learning_rate=rates[step - 1],
                mean_loss=loss_sum / max(1, trainer.label_tokens),
                loss_sum=loss_sum,
                label_tokens=trainer.label_tokens,
                seconds=round(self.seconds_before + time.perf_counter() - self.clock, 3),
                template=config.template,
                marks=(*self.marks_before, *marks),
            )

    return Keeper()


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of dropout at a step, independent of everything before it."""
    return int.from_bytes(blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=7).digest(), "big")


@contextlib.contextmanager
def own_settings(place: Place) -> Iterator[None]:
    """Set threads and determinism for the training; afterwards restore the caller's settings and random states."""
    import torch

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    states = random.getstate(), np.random.get_state()
    if place.threads:
        torch.set_num_threads(place.threads)
    if pick_device(place.device) != "cpu":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
