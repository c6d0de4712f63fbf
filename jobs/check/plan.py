"""What a check will do with a finished run; refuses at no cost what a later step would refuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raysift.config import CommonConfig
from raysift.errors import ConfigError, DataError
from raysift.evaluation.check import CheckSettings
from raysift.evaluation.quantiles import Bins, cut_bins, draw_rows
from raysift.jobs.check.held_out import HeldOut, read_held_out
from raysift.jobs.runs.checks import check_models
from raysift.jobs.runs.run import Run
from raysift.jobs.runs.tables import read_chunks
from raysift.manifest import Manifest
from raysift.records import ID, SCORE
from raysift.topk import Ids

FREE = ("train", "evaluate", "check", "resources", "model", "adapter", "dtype", "trust_remote_code", "report", "test")
"""Settings that may differ from the run's: they decide what is trained and measured, not the scores."""


@dataclass(frozen=True)
class Plan:
    """A run's ranked rows, and what to measure on."""

    source: Run
    config: CommonConfig
    rows: Manifest
    scores: Manifest
    bins: Bins
    scored: int
    each: int
    """Rows that a model is trained on."""
    held: HeldOut

    @property
    def settings(self) -> CheckSettings:
        """Those of the check."""
        return self.config.check or CheckSettings()

    @property
    def seeds(self) -> list[int]:
        """From the run's own seed on."""
        return [self.config.seed + number for number in range(self.settings.seeds)]

    def drawn(self, seed: int) -> list[Ids]:
        """The rows of each bin that a seed trains on."""
        return [draw_rows(one.ids, self.each, seed) for one in self.bins.bins]


def make_plan(source: Run, changes: Mapping[str, Any], overrides: Sequence[str] = ()) -> Plan:
    """The plan of a check with the run's own settings, some of them changed."""
    for key in [*changes, *(override.partition("=")[0].strip() for override in overrides)]:
        if key.partition(".")[0] not in FREE:
            raise ConfigError(
                f"check: '{key}' decided the scores of {source.name}, or has no effect here. Settings that may differ: "
                f"{', '.join(FREE)}."
            )
    config = source.config(dict(changes), overrides)
    manifests = source.manifests()
    chosen = next((one for one in manifests if one.stage == "choose"), None)
    scores = next((one for one in reversed(manifests) if one.files.get("scores")), None)
    rows = source.manifest("ingest")
    if config.method is None or chosen is None or scores is None or rows is None:
        what = "no finished selection" if config.method else "no selection"
        raise ConfigError(
            f"check: '{source.name}' holds {what}, so there are no scores to check. Name the finished run of a method."
        )
    check_models(config)
    settings = config.check or CheckSettings()
    held = read_held_out(config, settings.held_out, settings.taught)
    bins, scored = _ranked(source, scores, settings.quantiles)
    return Plan(source, config, rows, scores, bins, scored, _rows_each(settings, bins, chosen.counts["kept"]), held)


def _ranked(source: Run, scores: Manifest, quantiles: int) -> tuple[Bins, int]:
    ids, values = [np.empty(0, np.int64)], [np.empty(0)]
    for chunk in read_chunks(source.files(scores, "scores"), [ID, SCORE]):
        found = chunk[SCORE].to_numpy().astype(np.float64)
        ids.append(chunk[ID].to_numpy()[np.isfinite(found)])
        values.append(found[np.isfinite(found)])
    every = np.concatenate(ids)
    return cut_bins(every, np.concatenate(values), quantiles), len(every)


def _rows_each(settings: CheckSettings, bins: Bins, chosen: int) -> int:
    smallest = min(len(one.ids) for one in bins.bins)
    if settings.rows is None:
        return int(min(chosen, smallest))
    if settings.rows > smallest:
        raise DataError(
            f"check: {settings.rows} rows of each bin were asked for (--rows), and a bin of {settings.quantiles} has {smallest}. "
            "Ask for fewer rows or fewer bins (--quantiles)."
        )
    return settings.rows
