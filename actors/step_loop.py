"""The steps of a fine-tune: transformers' Trainer with our batches, loss, optimizer and checkpoints.

Departures from stock use: it sees the rest of the training as one long epoch of ready-made steps, so that resuming only
changes where the batches begin, and a step's passes come as one batch, so that each step has as many as it needs.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

from raysift.actors.effective_batches import EffectiveBatches
from raysift.actors.language_model import pick_device
from raysift.actors.optimizers import build_optimizer, restore_moments
from raysift.actors.train_checkpoints import EPOCH_RECORD, STEP_RECORD, EpochRecord, delete_steps, write_checkpoint
from raysift.errors import StageError
from raysift.gradients.moments import Moments
from raysift.settings.training import epoch_mean_learning_rates, learning_rates
from raysift.storage import Location

log = logging.getLogger(__name__)

OnStep = Callable[[int, int, float], None]
"""Called with the step, the number of steps, and the mean loss since the call before, in nats per counted token."""
TELL_EVERY_S = 1.0  # reading the loss waits for the GPU
MARKS = 20  # points of the loss curve in an epoch


def build_trainer(model: Any, batches: EffectiveBatches, moments: Moments | None, scratch: str) -> Any:
    """transformers' Trainer over these batches, whose optimizer continues from the moments."""
    import torch
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import PrinterCallback, Trainer, TrainingArguments

    from raysift.gradients.loss import find_head, label_logits
    from raysift.gradients.rows import PaddedRows

    config, place, head = batches.config, batches.place, find_head(model)

    class Finetuner(Trainer):  # type: ignore[misc]
        """A Trainer with our batches, rates and loss, and no other work between two steps."""

        loss_sum: Any = 0.0
        label_tokens: int = 0

        def get_train_dataloader(self) -> Any:
            return batches

        def num_examples(self, dataloader: Any) -> int:
            return len(batches.lengths)

        def floating_point_ops(self, inputs: dict[str, Any]) -> int:
            return 0  # the stock method walks over all parameters in every pass

        def create_optimizer(self, model: Any = None) -> Any:
            self.optimizer = build_optimizer(self.model, config)
            if moments:
                restore_moments(self.model, self.optimizer, moments)
            return self.optimizer

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            rates = learning_rates(config, batches.steps)
            factors = [rate / config.learning_rate for rate in rates[batches.first_step :]]
            self.lr_scheduler = LambdaLR(self.optimizer, lambda step: factors[min(step, len(factors) - 1)])
            return self.lr_scheduler

        def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
            """All passes of a step as one batch, and the number of tokens that count in it on all ranks."""
            passes, tokens = next(epoch_iterator)
            self.label_tokens += tokens
            return [passes], tokens

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            """The backward passes of a step; ranks with whole gradients add them up over ranks in the last one only."""
            losses = []
            for number, padded in enumerate(inputs, 1):
                last = number == len(inputs)
                with contextlib.nullcontext() if last else self.accelerator.no_sync(model=model):
                    losses.append(super().training_step(model, vars(padded), num_items_in_batch))
            return torch.stack(losses).sum()

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            """Nats of this pass per token of the whole step, times the ranks, since their gradients are averaged."""
            padded = PaddedRows(**inputs)
            logits = label_logits(model, padded, head).float()
            nats = torch.nn.functional.cross_entropy(logits, padded.targets.to(logits.device), reduction="sum")
            self.loss_sum = self.loss_sum + nats.detach().double()
            return nats * (place.world_size / num_items_in_batch)

    on_cpu = pick_device(place.device) == "cpu"
    arguments = TrainingArguments(
        output_dir=scratch,
        max_steps=batches.steps - batches.first_step,
        per_device_train_batch_size=1,  # has no effect: batches come ready-made
        gradient_accumulation_steps=1,  # the passes of a step are one batch
        max_grad_norm=config.max_grad_norm,
        bf16=config.dtype == "bf16",
        use_cpu=on_cpu,
        gradient_checkpointing=place.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if place.gradient_checkpointing else None,
        ddp_find_unused_parameters=False,
        average_tokens_across_devices=False,
        save_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,  # reads the loss, and waits for the GPU, after each step
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


def build_keeper(
    trainer: Any,
    tokenizer: Any,
    out: Location,
    last: tuple[Location, EpochRecord, bool] | None,
    on_epoch: Callable[[EpochRecord], None] | None,
    on_step: OnStep | None,
) -> Any:
    """The callback that seeds each step, and writes a checkpoint after each epoch and, in long ones, in between."""
    import torch
    from transformers import TrainerCallback

    batches: EffectiveBatches = trainer.get_train_dataloader()
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
                self.write(f"epoch-{record.epoch}", record, EPOCH_RECORD)
                log.info("epoch %d: step %d, loss %.4f", record.epoch, step, record.mean_loss)
                if on_epoch:
                    on_epoch(record)
                trainer.loss_sum, trainer.label_tokens = 0.0, 0
                self.loss_before, self.seconds_before, self.clock = 0.0, 0.0, time.perf_counter()
                self.marks_before, self.marks, self.told = (), [], (0.0, 0, self.told[2])
            elif step % place.steps_per_checkpoint == 0:
                self.write(f"step-{step}", self.record(step), STEP_RECORD)

        def write(self, folder: str, record: EpochRecord, name: str) -> None:
            """Rank 0 writes; of divided weights all ranks give their shares."""
            writes = place.rank == 0
            if writes or place.sharded:
                write_checkpoint(out / folder, record, name, model, tokenizer, trainer.optimizer, writes)
            if writes:
                delete_steps(out, keep=folder)

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
