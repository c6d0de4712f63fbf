"""Second half of a gradient method: targets, matching, scores, choice. `raysift rescore` repeats it for new targets."""

from __future__ import annotations

from raysift.config import CommonConfig
from raysift.jobs import stages
from raysift.jobs.gradients import stages as gradients
from raysift.jobs.gradients import store, store_match, targeting
from raysift.jobs.runs.run import Run
from raysift.manifest import Manifest
from raysift.methods.gradient import GradientSelector


def match_and_choose(
    run: Run,
    config: CommonConfig,
    selector: GradientSelector,
    found: targeting.TargetMembers,
    rows: Manifest,
    warm: Manifest,
    lengths: Manifest | None,
    stored_in: str | None = None,
) -> Manifest:
    """Match exactly or through a store (`stored_in` if given), then score and choose."""
    settings = selector.config
    target = targeting.targets(run, config, selector, found, rows, warm)
    if settings.matching == "store":
        kept = store.store_of(run, config, settings, warm, target, stored_in)
        stored = store.fill(run, config, settings, rows, kept)
        matched = store_match.match(run, config, rows, target, stored, store.as_filled(run, kept, stored))
    else:
        matched = gradients.gradients(run, config, settings, rows, warm, target)
    scores = gradients.influence(run, config, settings, selector, rows, warm, target, matched)
    return stages.choose(run, config, selector, rows, scores, lengths)
