"""A first look at a pool, without a model and without Ray: its layouts, what is not kept and why, lengths, sample rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow.compute as pc

from raysift.pool.checks import IngestConfig
from raysift.pool.chunks import chunk_bytes_for, plan_file
from raysift.pool.files import BadFile, SourceFile
from raysift.pool.formats import LAYOUTS, recognise
from raysift.pool.likeness import Sample, sample_of
from raysift.pool.normalise import Normalised, Normaliser
from raysift.pool.reading import read_chunk
from raysift.records import ID, MESSAGES, SOURCE

MOST_ROWS = 100_000
SAMPLE_ROWS = 3
SAMPLE_TEXTS = 2_000
QUANTILES = (0.05, 0.5, 0.95, 1.0)


@dataclass
class Survey:
    """What the first rows of a pool are; rows = kept + duplicates + not kept."""

    files: int = 0
    whole: bool = True
    """False where reading stopped at the most rows."""
    rows: int = 0
    kept: int = 0
    duplicates: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    bad_files: dict[str, str] = field(default_factory=dict)
    layouts: Counter[str] = field(default_factory=Counter)
    """Files by layout."""
    sources: Counter[str] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    """Kept rows by their number of messages."""
    characters: dict[float, int] = field(default_factory=dict)
    """Quantiles of the length of a whole conversation."""
    samples: list[list[dict[str, str]]] = field(default_factory=list)
    language: Sample = field(default_factory=Sample)


def survey_pool(files: Sequence[SourceFile], config: IngestConfig, most_rows: int = MOST_ROWS) -> Survey:
    """Reads the files in order, up to so many rows; a file that cannot be read is told beside the others."""
    found = Survey(files=len(files))
    ids: set[int] = set()
    lengths: list[np.ndarray] = []
    texts: list[str] = []
    for file in files:
        try:
            plan = plan_file(file, chunk_bytes_for(file.size))
            if not plan.chunks:
                continue
            layout = recognise(plan.columns, config.format, config.columns, file.name).name
            found.layouts[layout] += 1
            normalise = Normaliser(file, LAYOUTS[layout], config)
            for chunk in plan.chunks:
                for batch in read_chunk(chunk):
                    _add(found, normalise(batch), ids, lengths, texts)
                    if found.rows >= most_rows:
                        found.whole = False
                        break
                if not found.whole:
                    break
        except BadFile as error:
            found.bad_files[file.name] = str(error)
        if not found.whole:
            break
    if sum(map(len, lengths)):  # batches may hold no row that is kept
        spread = np.quantile(np.concatenate(lengths), QUANTILES, method="inverted_cdf")
        found.characters = dict(zip(QUANTILES, spread.astype(int).tolist(), strict=True))
    found.language = sample_of(texts)
    return found


def _add(found: Survey, batch: Normalised, ids: set[int], lengths: list[np.ndarray], texts: list[str]) -> None:
    reasons = Counter(problem.reason for problem in batch.problems)
    found.reasons.update(reasons)
    found.rows += len(batch.rows) + reasons.total()
    new = np.zeros(len(batch.rows), bool)
    for place, row_id in enumerate(batch.rows[ID].to_pylist()):
        new[place] = row_id not in ids
        ids.add(row_id)
    rows = batch.rows.filter(new)
    found.kept += len(rows)
    found.duplicates += len(new) - len(rows)
    found.sources.update(rows[SOURCE].to_pylist())
    found.turns.update(pc.list_value_length(rows[MESSAGES]).to_pylist())
    messages = rows[MESSAGES].to_pylist()
    lengths.append(np.array([sum(len(m["content"]) for m in one) for one in messages], np.int64))
    found.samples += messages[: SAMPLE_ROWS - len(found.samples)]
    room = max(0, SAMPLE_TEXTS - len(texts))
    texts += [" ".join(message["content"] for message in one) for one in messages[:room]]
