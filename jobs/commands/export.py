"""`raysift export RUN --to FORMAT`: the rows of a finished selection in another format, with card and `dataset_info.json`."""

from __future__ import annotations

from typing import get_args

import pyarrow.parquet as pq

from raysift.config import CommonConfig
from raysift.errors import ConfigError, system_words
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import open_run
from raysift.jobs.runs.selection import SELECTED, card_of
from raysift.manifest import read_manifest
from raysift.pool.export import INFO, write_export
from raysift.records import SCORE
from raysift.storage import Location, open_location

FORMATS = get_args(CommonConfig.model_fields["output_format"].annotation)


def export_command(name: str, shape: str, out: str | None, console: Console) -> None:
    """Write the export and print where it lies."""
    if shape not in FORMATS:
        raise ConfigError(f"export: --to is '{shape}', which is unknown. Known: {', '.join(FORMATS)}.")
    run = open_run(name)
    chosen, config = read_manifest(run.folder / "choose"), run.config()
    if chosen is None:
        raise ConfigError(f"run: '{name}' has no finished selection. Finish it with the command that began it.")
    folder = open_location(out) if out else run.folder / f"{SELECTED}-{shape}"
    _require_room(folder)
    ingested = run.manifest("ingest")
    place = run.files(chosen, "selection")[0]
    scores = pq.read_table(place.path, columns=[SCORE], filesystem=place.fs)[SCORE].to_numpy()
    card = card_of(config, ingested, chosen.values["by_source"], scores, chosen.counts["rows_in"])
    try:
        written = write_export(run.files(chosen, "rows"), folder.make_folder(), shape, card)
    except OSError as error:
        raise ConfigError(f"export: cannot write into '{folder}': {system_words(error)} Name another --out.") from None
    console.note(
        f"export: {chosen.counts['kept']:,} rows in {written[0]}, with {', '.join(file.name for file in written[1:])}"
    )


def _require_room(folder: Location) -> None:
    """Refuse a file, and a folder of anything but an earlier export: a README.md there would be replaced."""
    if not folder.exists():
        return
    if not folder.is_folder():
        raise ConfigError(f"export: --out '{folder}' is a file, expected a folder. Name another one.")
    if not (folder / INFO).exists() and (first := folder.first_entry()):
        raise ConfigError(
            f"export: --out '{folder}' holds '{first}' and no earlier export. Name a new folder, since README.md there "
            "would be replaced."
        )
