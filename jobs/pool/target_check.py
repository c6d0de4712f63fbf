"""The stage that compares a target with the pool, and warns if their languages differ before anything is computed for it.

It is a warning, not an error, since selecting across languages is a valid use. It is a separate stage because its result
depends on the pool, which the target's other stages need not read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raysift.jobs.runs.run import Run, StageResult
from raysift.jobs.runs.samples import sample_rows, texts_of
from raysift.manifest import Manifest
from raysift.pool.files import SourceFile, fingerprint_files
from raysift.pool.likeness import compare_samples, evenly, remarks, sample_of
from raysift.storage import Location

LIKENESS = "likeness"


def compare_with_pool(
    run: Run,
    rows: Manifest,
    files: Sequence[SourceFile],
    decides: Mapping[str, Any],
    read: Callable[[], Mapping[str, Sequence[str]]],
) -> Manifest:
    """The figures of each target, by name, among the manifest's values; notes those that a user should know.

    `read` returns each target's texts, read from `files`; `decides` holds the settings that choose them.
    """

    def body(folder: Location) -> StageResult:
        pool = sample_of(texts_of(sample_rows(run.files(rows, "rows"))))
        targets = read()
        found = {name: compare_samples(pool, sample_of(evenly(texts))) for name, texts in targets.items()}
        for name, figures in found.items():
            for remark in remarks(name, figures):
                run.console.note(f"{LIKENESS}: {remark}")
        count = sum(map(len, targets.values()))
        return StageResult(counts={"rows_in": count, "kept": count}, values={LIKENESS: found}, rows=count)

    inputs = {"rows": rows.fingerprint, "target": fingerprint_files(files)}
    return run.stage(LIKENESS, dict(decides), inputs, body)
