"""What every training under a policy of a run has in common: its rows, its place, and the memory that it needs."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysift.actors.effective_batches import COUNTED, INPUT_IDS, Place, split_trainable
from raysift.actors.encoded_rows import by_id
from raysift.actors.episode import EpisodeSetup
from raysift.actors.language_model import portable_name
from raysift.actors.validator import BATCH_TOKENS
from raysift.config import CommonConfig
from raysift.errors import DataError
from raysift.jobs.on_ray.fitting import model_shape, need_to_train
from raysift.jobs.runs.models import find_model
from raysift.jobs.runs.run import Run
from raysift.jobs.runs.tables import read_chunks
from raysift.manifest import Manifest
from raysift.policy.pool import read_pool, restrict
from raysift.policy.settings import RaiseConfig
from raysift.pool.longest import most_tokens
from raysift.records import ERROR, ID, MESSAGES
from raysift.settings.memory import Need, stepping
from raysift.storage import Location

_ENCODED = [ID, INPUT_IDS, COUNTED, ERROR]


def make_setup(
    run: Run,
    config: CommonConfig,
    settings: RaiseConfig,
    features: Manifest,
    encoded: Manifest,
    target: Manifest,
    steps: int,
) -> EpisodeSetup:
    """The setup of every training of the run; the policy's pool consists of the rows with features and something to learn."""
    rows = trainable_rows(run, encoded)
    pool = restrict(read_pool(run.files(features, "features")[0]), rows[ID].to_numpy())
    if len(pool) < config.train.batch_size:
        raise DataError(
            f"learn: {len(pool)} rows have features and something to learn, a batch has {config.train.batch_size}. "
            "Lower train.batch_size, or give a larger pool."
        )
    most = settings.policy.max_repeats
    if most is not None and steps * config.train.batch_size > most * len(pool):
        raise DataError(
            f"learn: {steps} steps of {config.train.batch_size} rows need more than {len(pool)} rows of which each is picked "
            f"{most} times at most. Raise raise.policy.max_repeats, or lower the budget."
        )
    validation, report = (_read(run.files(target, name)[0]) for name in ("validation", "report"))
    return EpisodeSetup(
        pool=pool,
        rows=rows,
        validation=validation,
        report=report,
        policy=settings.policy,
        episode=settings.episode,
        train=config.train,
        model=find_model(run, config).name,
        steps=steps,
        place=place_of(config),
        adapter=portable_name(config.adapter) if config.adapter else None,
    )


def place_of(config: CommonConfig) -> Place:
    """Where and how fast a training runs under these resources."""
    resources = config.resources
    return Place(
        device=resources.placed_on,
        threads=resources.threads or max(1, int(resources.cpus)),
        rows_per_pass=resources.batch_rows,
        tokens_per_pass=resources.tokens,
        gradient_checkpointing=resources.gradient_checkpointing,
        trust_remote_code=config.trust_remote_code,
    )


def need_of(config: CommonConfig, setup: EpisodeSetup, validators: int = 0) -> Need | None:
    """Memory of a process that trains, beside `validators` of its round; None if the model's configuration lacks the widths."""
    longest = pc.max(pc.list_value_length(setup.rows[INPUT_IDS])).as_py()
    need, shape = need_to_train(config, setup.model, longest), model_shape(config, setup.model)
    if need is None or shape is None:
        return None
    # The table and the trainer's copy, the features, and the policy's first layer over them.
    rows = 2 * setup.rows.nbytes + setup.pool.features.nbytes + 4 * len(setup.pool) * setup.policy.hidden[0]
    asked = max(most_tokens(part[MESSAGES]) for part in (setup.validation, setup.report))
    return stepping(
        need, shape, config.train.dtype, rows, max(BATCH_TOKENS, min(config.train.max_length, asked)), validators
    )


def reserved_for_helpers(config: CommonConfig, need: Need | None) -> int | None:
    """Bytes that Ray reserves for a validator; None for what a training's own process has, or nothing."""
    planned = need is not None and not need.small and config.resources.worker_gib is None
    return need.helper if planned and need else None


def trainable_rows(run: Run, encoded: Manifest) -> pa.Table:
    """The encoded rows with something to learn, by rising id."""
    chunks = read_chunks(run.files(encoded, "answers"), _ENCODED)
    return by_id(pa.concat_tables([split_trainable(chunk)[0] for chunk in chunks]))


def _read(place: Location) -> pa.Table:
    return pq.read_table(place.path, filesystem=place.fs)
