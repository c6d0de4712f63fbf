"""What `raysift show RUN --json` writes: settings, stages, selection, trained weights and evaluation of a run, ids as text."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysift.errors import ConfigError
from raysift.jobs.compare.result import is_comparison, read_result
from raysift.jobs.runs.labels import labels_of
from raysift.jobs.runs.replay import command_of
from raysift.jobs.runs.run import Run, open_run
from raysift.manifest import Manifest
from raysift.pool.id_text import exact, id_text
from raysift.records import ID

TOP_ROWS = 100


def print_run(folder: str, by: str | None) -> None:
    """Print the description of a run as one JSON document."""
    print(json.dumps(describe_run(open_run(folder), by), indent=1, default=str))


def describe_run(run: Run, by: str | None = None) -> dict[str, Any]:
    """All that a finished or unfinished run holds, without the text of rows; `by` groups the selection by a column of meta."""
    manifests, settings = run.manifests(), run.made_with()
    if is_comparison(run.folder):
        return {"run": run.name, "comparison": read_result(run.folder)}
    found: dict[str, Any] = {"run": run.name, "settings": settings}
    if settings:
        found["command"] = command_of(settings)
    found["stages"] = [_stage(run, manifest) for manifest in manifests]
    if chosen := next((manifest for manifest in manifests if manifest.stage == "choose"), None):
        found["selection"] = _selection(run, chosen, by)
    elif by:
        raise ConfigError(f"show: '{run.name}' holds no finished selection whose rows --by could group. Leave it out.")
    if tested := next((manifest for manifest in manifests if manifest.stage == "evaluate"), None):
        found["evaluation"] = exact(tested.values)
    return found


def _stage(run: Run, manifest: Manifest) -> dict[str, Any]:
    weights = [str(place) for place in run.files(manifest, "epochs")] if "epochs" in manifest.files else None
    told = {
        "stage": manifest.stage,
        "fingerprint": manifest.fingerprint,
        "started": manifest.started,
        "seconds": manifest.seconds,
        "rows_per_second": manifest.rows_per_second,
        "reused_from": manifest.reused_from,
        "counts": exact(manifest.counts),
        "values": exact(manifest.values),
        "weights": weights,
    }
    return {name: value for name, value in told.items() if value is not None}


def _selection(run: Run, chosen: Manifest, by: str | None) -> dict[str, Any]:
    place = run.files(chosen, "selection")[0]
    table = pq.read_table(place.path, filesystem=place.fs)
    first = [row | {ID: id_text(row[ID])} for row in table.slice(0, TOP_ROWS).to_pylist()]
    found = {
        "counts": exact(chosen.counts),
        "by_source": chosen.values["by_source"],
        "files": [str(file) for file in run.files(chosen, "selected")],
        "first_rows": first,
    }
    ingested = run.manifest("ingest")
    return found | {f"by_{by}": _groups(run, ingested, table, by)} if by and ingested else found


def _groups(run: Run, rows: Manifest, table: pa.Table, by: str) -> dict[str, dict[str, int]]:
    """Rows of the pool and of the selection, by the value of a column; rows without one are under the empty text."""
    ids, values = labels_of(run, rows, by)
    taken = set(table[ID].to_pylist())
    found: dict[str, dict[str, int]] = {}
    for row, value in zip(ids.tolist(), values.to_pylist(), strict=True):
        line = found.setdefault(value or "", {"pool": 0, "selected": 0})
        line["pool"] += 1
        line["selected"] += row in taken
    return dict(sorted(found.items()))
