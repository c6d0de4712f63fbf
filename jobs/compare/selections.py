"""The selections of a comparison: one run folder for each method and seed; equal stages are shared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from raysift.config import CommonConfig
from raysift.draws import uniform_of
from raysift.evaluation.standings import Ranked
from raysift.jobs import stages
from raysift.jobs.compare.plan import Contender, Plan
from raysift.jobs.gradients.null import FoundNull, found_null
from raysift.jobs.recipes import run_method
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.reuse import is_run
from raysift.jobs.runs.run import Run, open_run
from raysift.jobs.runs.table_layout import duration
from raysift.jobs.runs.tables import read_chunks, read_ids
from raysift.manifest import Manifest, read_manifest
from raysift.records import ID, SCORE
from raysift.storage import Location

RANKED_ROWS = 200_000
"""Rows whose ranks are compared, drawn by id; more would change a rank correlation only in its third digit."""
NOT_SELECTION = ("final", "evaluate")


@dataclass(frozen=True)
class Chosen:
    """The rows that one method chose with one seed."""

    name: str
    seed: int
    config: CommonConfig
    files: tuple[Location, ...]
    identity: str
    """Fingerprint of the stage that wrote them."""
    ids: np.ndarray
    pool_rows: int
    seconds: float
    """What the selection would have taken alone: stages shared with other methods count in full."""
    ranked: Ranked | None
    null: FoundNull | None = None
    """How the rows stand against targets without meaning, for methods by gradient."""


def make_selections(run: Run, plan: Plan, every_stage: bool) -> Iterator[Chosen]:
    """Make all selections; finished work is reused. `every_stage` prints the stages of each."""
    made: list[str] = []
    first: dict[str, Chosen] = {}
    for number, seed in enumerate(plan.seeds):
        for contender in plan.contenders:
            if not contender.has(seed):
                continue
            if number >= plan.selections_of(contender) and seed not in contender.finished:
                yield replace(first[contender.name], seed=seed, config=contender.config(seed))
                continue
            if seed in contender.finished:
                own = open_run(contender.finished[seed])
                chosen = read_manifest(own.folder / "choose")
                assert chosen is not None  # checked by the plan
            else:
                own, chosen = _select(run, contender, seed, [*made, *_finished(plan)], every_stage)
            if own.name not in made:
                made.append(own.name)
            found = _chosen(own, contender, seed, chosen)
            run.console.note(
                f"{contender.name}, seed {seed}: {len(found.ids):,} rows chosen in {duration(found.seconds)}"
            )
            first.setdefault(contender.name, found)
            yield found


def _finished(plan: Plan) -> list[str]:
    return [folder for contender in plan.contenders for folder in contender.finished.values()]


def _select(run: Run, contender: Contender, seed: int, reuse: list[str], every_stage: bool) -> tuple[Run, Manifest]:
    folder = run.folder / contender.name.replace(" ", "_") / f"seed-{seed}"
    console = run.console if every_stage else Console("quiet")
    own = Run(folder, console, [name for name in reuse if is_run(name)], run.start)
    config = contender.config(seed)
    return own, stages.ingest(own, config) if contender.takes_all else run_method(own, config)


def _chosen(own: Run, contender: Contender, seed: int, chosen: Manifest) -> Chosen:
    files = tuple(own.files(chosen, "rows"))
    before = [manifest for manifest in own.manifests() if manifest.stage not in NOT_SELECTION]
    scores = own.folder / "scores.parquet"
    return Chosen(
        name=contender.name,
        seed=seed,
        config=contender.config(seed),
        files=files,
        identity=chosen.fingerprint,
        ids=read_ids(files),
        pool_rows=chosen.counts["kept"] if contender.takes_all else chosen.counts["rows_in"],
        seconds=sum(manifest.seconds for manifest in before),
        ranked=_ranked(scores) if scores.exists() and not contender.takes_all else None,
        null=None if contender.takes_all else found_null(own),
    )


def _ranked(scores: Location) -> Ranked:
    """Scores by row id, for a sample of rows that is the same for every method."""
    ids, values = np.empty(0, np.int64), np.empty(0)
    for chunk in read_chunks([scores], [ID, SCORE]):
        ids = np.concatenate([ids, chunk[ID].to_numpy()])
        values = np.concatenate([values, chunk[SCORE].to_numpy().astype(np.float64)])
        if len(ids) > RANKED_ROWS:
            drawn = np.argsort(uniform_of(ids, 0), kind="stable")[:RANKED_ROWS]
            ids, values = ids[drawn], values[drawn]
    scored = np.isfinite(values)
    order = np.argsort(ids[scored])
    return Ranked(ids[scored][order], values[scored][order])


__all__ = ["Chosen", "make_selections"]
