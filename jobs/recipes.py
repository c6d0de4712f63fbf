"""The stage list of each method, readable as a recipe: dispatch is by the selector's class, the first argument.

A method without its own recipe uses that of its base class, in the end the yardsticks' recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from typing import Any

from raysift.config import CommonConfig, make_selector, replayed
from raysift.jobs import stages
from raysift.jobs.coverage import centers
from raysift.jobs.gradients import similarity, targeting
from raysift.jobs.gradients import stages as gradients
from raysift.jobs.gradients.given_checkpoints import adopt_checkpoints, find_checkpoints
from raysift.jobs.gradients.matching import match_and_choose
from raysift.jobs.policy import features as policy_features
from raysift.jobs.policy import stages as raise_policy
from raysift.jobs.policy.transfer import LearnedPolicy, learned_by
from raysift.jobs.runs import checks
from raysift.jobs.runs.run import Run
from raysift.jobs.scoring import mods, quality
from raysift.manifest import Manifest, read_manifest
from raysift.methods import Selector
from raysift.methods.coverage import Coverage
from raysift.methods.gradient import GradientSelector
from raysift.methods.mods import Mods, seed_count
from raysift.methods.quality import Quality
from raysift.methods.raise_policy import Raise
from raysift.methods.rds import Rds
from raysift.settings.budget import parse_budget
from raysift.settings.training import TrainConfig


@dataclass(frozen=True)
class Pool:
    """A dataset passed in from Python, with the name that identifies it as the same data."""

    dataset: Any = None
    name: str | None = None


def announce(run: Run, config: CommonConfig, selector: Selector, *names: str) -> None:
    """Tell the run which stages a recipe will go through, and the training and test after it."""
    trains = config.train_on_selection and not selector.trains_itself
    tests = bool(config.test) and (trains or selector.trains_itself)
    run.plan(*names, *("final",) * trains, *("evaluate",) * tests)


@singledispatch
def select_rows(selector: Selector, run: Run, config: CommonConfig, pool: Pool) -> Manifest:
    """Yardsticks: score each row on its own, take the best."""
    needs_lengths = bool(selector.reads) or parse_budget(config.budget).counts_tokens
    if needs_lengths:
        checks.check_models(config)
    announce(run, config, selector, "ingest", *("lengths",) * needs_lengths, "score", "choose")
    rows = stages.ingest(run, config, pool.dataset, pool.name)
    lengths = stages.lengths(run, config, rows) if needs_lengths else None
    scores = stages.score(run, config, selector, rows, lengths if selector.reads else None)
    return stages.choose(run, config, selector, rows, scores, lengths)


@select_rows.register
def best_by_score(selector: Quality, run: Run, config: CommonConfig, pool: Pool) -> Manifest:
    """Quality: let the scorer judge each row, take the best."""
    settings = selector.config
    checks.check_models(config, {"scorer": settings.scorer.scorer})
    by_tokens = parse_budget(config.budget).counts_tokens
    announce(run, config, selector, "ingest", *("lengths",) * by_tokens, "quality", "score", "choose")
    rows = stages.ingest(run, config, pool.dataset, pool.name)
    lengths = stages.lengths(run, config, rows) if by_tokens else None
    judged = quality.judge(run, config, settings.scorer, rows)
    scores = stages.score(run, config, selector, rows, judged)
    return stages.choose(run, config, selector, rows, scores, lengths)


@select_rows.register
def by_coverage(selector: Coverage, run: Run, config: CommonConfig, pool: Pool) -> Manifest:
    """Coverage: embed the rows, take centres."""
    settings = selector.config
    stages.row_budget(config)
    checks.check_models(config, {"embedding": settings.embedding.model})
    announce(run, config, selector, "ingest", "embed", "centers", "order", "choose")
    rows = stages.ingest(run, config, pool.dataset, pool.name)
    count = stages.count_rows(config, rows)
    vectors = centers.embed(run, config, settings.embedding, rows)
    chosen = centers.choose_centers(run, config, "centers", settings.centers, rows, vectors, count)
    scores = centers.order_centers(run, rows, vectors, chosen)
    return stages.choose(run, config, selector, rows, scores, None)


@select_rows.register
def good_diverse_unknown(selector: Mods, run: Run, config: CommonConfig, pool: Pool) -> Manifest:
    """MoDS: good rows; seeds that cover them; rows that a model tuned on the seeds answers badly, covered again."""
    settings = selector.config
    stages.row_budget(config)
    checks.check_models(config, {"scorer": settings.scorer.scorer, "embedding": settings.embedding.model})
    mods.check_room(config, settings)
    unknown = ("tune", "generate", "necessity", "needed", "augmented") if settings.seed_share < 1 else ()
    announce(run, config, selector, "ingest", "quality", "good", "embed", "seeds", *unknown, "order", "choose")
    rows = stages.ingest(run, config, pool.dataset, pool.name)
    total, column = stages.count_rows(config, rows), quality.score_column(settings)
    judged = quality.judge(run, config, settings.scorer, rows)
    good = quality.keep(run, "good", settings.alpha, "above", rows, judged, column, needed_by="mods.alpha")
    vectors = centers.embed(run, config, settings.embedding, good)
    seeds = centers.choose_centers(run, config, "seeds", settings.centers, good, vectors, seed_count(settings, total))
    if mods.only_seeds(run, settings, good, seeds, total):
        scores = mods.order(run, selector, judged, good, vectors, seeds)
        return stages.choose(run, config, selector, rows, scores, None)

    tuned = stages.finetune(run, with_recipe(config, settings.seed_train), seeds, "tune")
    answers = mods.generate(run, config, settings, good, tuned)
    answered = mods.necessity(run, config, settings, good, answers)
    needed = quality.keep(run, "needed", settings.beta, "below", good, answered, column)
    augmented = mods.augment(run, config, settings, needed, vectors, seeds, total - seeds.counts["kept"])
    scores = mods.order(run, selector, judged, good, vectors, seeds, (answered, needed, augmented))
    return stages.choose(run, config, selector, rows, scores, None)


@select_rows.register
def learned_policy(selector: Raise, run: Run, config: CommonConfig, pool: Pool) -> Manifest:
    """RAISE: compute row features; learn a policy in rounds or load one; train once with it; its picks are the selection."""
    settings = selector.config
    stages.row_budget(config)
    source: LearnedPolicy | None = learned_by(settings) if settings.policy_from else None
    if source:
        settings = source.settings_for(settings)
    raise_policy.check_input(config, settings)
    features_of = ("encode", "difficulty", "embed", "features", *(() if source else ("learn",)))
    announce(run, config, selector, "ingest", "validation", "likeness", *features_of, "final", "order", "choose")
    rows = stages.ingest(run, config, pool.dataset, pool.name)
    total = stages.count_rows(config, rows)
    target = raise_policy.split_target(run, config, settings)
    raise_policy.like_pool(run, config, rows)
    encoded = raise_policy.encode(run, config, rows)
    measured = policy_features.difficulty(run, config, settings.features, rows)
    vectors = centers.embed(run, config, settings.features.embedding, rows)
    features = policy_features.features(
        run,
        config,
        settings.features,
        settings.policy.classes,
        rows,
        measured,
        vectors,
        source.fitted if source else None,
    )
    if source:
        policy = source.policy
    else:
        learned = raise_policy.learn(run, config, settings, features, encoded, target, total)
        policy = run.files(learned, "policy")[0]
    final = raise_policy.train_frozen(run, config, settings, rows, features, encoded, target, policy, total)
    scores = raise_policy.order(run, rows, features, encoded, final)
    chosen = stages.choose(run, config, selector, rows, scores, None)
    raise_policy.warn_of_policy(run, final)
    return chosen


def with_recipe(config: CommonConfig, train: TrainConfig | None) -> CommonConfig:
    """The settings with `train` replaced, if another one is given."""
    return config.model_copy(update={"train": train}) if train else config


@select_rows.register
def by_gradient(selector: GradientSelector, run: Run, config: CommonConfig, pool: Pool) -> Manifest:
    """ROSE and LESS: warm up on a random share, match each row's gradient with the target's at every checkpoint."""
    settings = selector.config
    if selector.picks_in_turn:
        stages.row_budget(config)
    found = targeting.read_targets(config, selector)
    checks.check_models(config)
    if settings.warmup_from:
        find_checkpoints(settings.warmup_from)
    by_tokens = parse_budget(config.budget).counts_tokens
    warms = ("warmup",) if settings.warmup_from else ("warmup_rows", "warmup")
    matched = ("gradients",) if settings.matching == "exact" else ("gradients", "match")
    before = ("ingest", "likeness", *("lengths",) * by_tokens, *warms)
    announce(run, config, selector, *before, "targets", *matched, "influence", "choose")
    rows = stages.ingest(run, config, pool.dataset, pool.name)
    targeting.like_pool(run, config, selector, found, rows)
    lengths = stages.lengths(run, config, rows) if by_tokens else None
    if settings.warmup_from:
        warm = adopt_checkpoints(run, config, settings.warmup_from)
    else:
        warm_rows = gradients.warmup_rows(run, config, settings, rows)
        warm = gradients.warmup(run, config, settings, warm_rows)
    return match_and_choose(run, config, selector, found, rows, warm, lengths)


@select_rows.register
def by_similarity(selector: Rds, run: Run, config: CommonConfig, pool: Pool) -> Manifest:
    """RDS+: compare the untrained model's states of each row with those of the target examples; these pick in turn."""
    if selector.picks_in_turn:
        stages.row_budget(config)
    found = targeting.read_targets(config, selector)
    checks.check_models(config)
    by_tokens = parse_budget(config.budget).counts_tokens
    announce(run, config, selector, "ingest", "likeness", *("lengths",) * by_tokens, "similarity", "choose")
    rows = stages.ingest(run, config, pool.dataset, pool.name)
    targeting.like_pool(run, config, selector, found, rows)
    lengths = stages.lengths(run, config, rows) if by_tokens else None
    scores = similarity.similarity(run, config, selector, found, rows)
    return stages.choose(run, config, selector, rows, scores, lengths)


def run_method(run: Run, config: CommonConfig, pool: Pool | None = None) -> Manifest:
    """Select and, if asked, train on the selection and evaluate. Returns the selection's manifest."""
    pool, selector = pool or Pool(), make_selector(config)
    checks.check_selection(run, config, pool.dataset is not None)
    with run.replayable(replayed(config)):
        selected = select_rows(selector, run, config, pool)
        trained = read_manifest(run.folder / "final") if selector.trains_itself else None
        if config.train_on_selection and trained is None:
            trained = stages.finetune(run, config, selected)
        if config.test and trained is not None:
            stages.evaluate(run, config, trained)
    return selected
