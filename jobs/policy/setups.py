"""What every training under a policy of a run has in common: its rows, its place, and the memory that it needs."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from raysift.actors.effective_batches import Place
from raysift.actors.episode import EpisodeSetup
from raysift.actors.language_model import portable_name
from raysift.actors.token_files import TokenFiles
from raysift.actors.validator import BATCH_TOKENS
from raysift.config import CommonConfig
from raysift.errors import DataError
from raysift.jobs.on_ray.fitting import model_shape, need_to_train
from raysift.jobs.runs.models import find_model
from raysift.jobs.runs.run import Run
from raysift.manifest import Manifest
from raysift.policy.pool import read_pool, restrict
from raysift.policy.settings import RaiseConfig
from raysift.pool.longest import most_tokens
from raysift.records import MESSAGES
from raysift.settings.memory import Need, stepping
from raysift.storage import Location


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
    rows = token_files(run, encoded)
    pool = restrict(read_pool(run.files(features, "features")[0]), rows.ids())
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
        every=settings.steps_per_state,
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


def need_of(config: CommonConfig, setup: EpisodeSetup) -> Need | None:
    """Memory of a process that trains; None if the model's configuration lacks the widths."""
    assert isinstance(setup.rows, TokenFiles)
    need, shape = need_to_train(config, setup.model, setup.rows.longest), model_shape(config, setup.model)
    if need is None or shape is None:
        return None
    # The features, the policy's first layer over them, and what is known of each row without its tokens.
    rows = setup.pool.features.nbytes + len(setup.pool) * (4 * setup.policy.hidden[0] + 20)
    asked = max(most_tokens(part[MESSAGES]) for part in (setup.validation, setup.report))
    return stepping(need, shape, config.train.dtype, rows, max(BATCH_TOKENS, min(config.train.max_length, asked)))


def token_files(run: Run, encoded: Manifest) -> TokenFiles:
    """The encoded rows with something to learn, by rising id."""
    return TokenFiles(tuple(run.files(encoded, "tokens")))


def _read(place: Location) -> pa.Table:
    return pq.read_table(place.path, filesystem=place.fs)
