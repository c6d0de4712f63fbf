"""One reading of a pool's rows: the texts of the few that are shown, and figures of a sample drawn by id.

Figures are turns, lengths, the writing system, and small columns of the meta. The size of both does not grow with the pool.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from raysift.draws import seed_for, uniform_of
from raysift.jobs.report.asked import Asked
from raysift.jobs.report.scored import SAMPLED, draw, is_in
from raysift.jobs.runs.tables import read_chunks
from raysift.pool.likeness import script_of
from raysift.records import FILE, ID, MESSAGES, META, POSITION, SOURCE
from raysift.report.twins import plain_texts
from raysift.storage import Location
from raysift.topk import Ids

TURNS, PROMPT, ANSWER, SCRIPT = "turns", "prompt characters", "answer characters", "writing system"
SCRIPT_ROWS, SCRIPT_CHARACTERS = 4_000, 300
MOST_VALUES, MOST_COLUMNS, MOST_CHARACTERS = 40, 6, 40

FEATURES = pa.schema(
    [
        *((ID, pa.int64()), (SOURCE, pa.string()), (TURNS, pa.int64()), (PROMPT, pa.int64()), (ANSWER, pa.int64())),
        *((SCRIPT, pa.string()), (META, pa.string())),
    ]
)
"""One line a row of a sample; the script is known of some rows, the meta holds short values alone."""


@dataclass
class Looked:
    """What one reading of some rows found."""

    features: pa.Table = field(default_factory=FEATURES.empty_table)
    lines: dict[int, dict[str, Any]] = field(default_factory=dict)
    """The rows that are wanted, whole, by id."""
    random: list[int] = field(default_factory=list)
    """Ids of a few rows drawn by id."""
    asked: dict[str, Asked] = field(default_factory=dict)
    """Questions of target and test set that rows of the sample ask."""


def read_rows(
    files: Sequence[Location],
    total: int,
    wanted: Ids | None = None,
    random: int = 0,
    sampled: int = SAMPLED,
    questions: Mapping[str, pa.Array] | None = None,
) -> Looked:
    """Read the rows once: figures of a sample, the wanted ones, so many drawn at random, and who asks these questions."""
    found, rising = Looked(), np.sort(np.empty(0, np.int64) if wanted is None else wanted)
    found.asked = {name: Asked(plain) for name, plain in (questions or {}).items()}
    parts = [found.features]
    shown = [ID, SOURCE, MESSAGES, META, *([FILE, POSITION] if wanted is not None else [])]
    for chunk in read_chunks(files, shown):
        ids = chunk[ID].to_numpy()
        drawn = draw(ids, sampled, total)
        if drawn.any():
            rows = chunk if drawn.all() else chunk.filter(pa.array(drawn))
            parts.append(measured(rows, total))
            if found.asked:
                plain = plain_texts(questions_in(rows))
                for asked in found.asked.values():
                    asked.look(rows[ID].to_numpy(), plain)
        by_chance = draw(ids, random, total, "random rows") if random else np.zeros(len(ids), bool)
        found.random += ids[by_chance].tolist()
        if wanted is not None and (shown_here := is_in(ids, rising) | by_chance).any():
            found.lines |= {line[ID]: line for line in chunk.filter(pa.array(shown_here)).to_pylist()}
    found.features = pa.concat_tables(parts).combine_chunks()
    found.random = first_by_chance(found.random, random)
    return found


def first_by_chance(ids: Sequence[int], most: int) -> list[int]:
    """At most so many of the ids, in the order of a draw."""
    known = np.asarray(ids, np.int64)
    order = np.argsort(uniform_of(known, seed_for(0, "random rows")), kind="stable")
    drawn: list[int] = known[order][:most].tolist()
    return drawn


def measured(rows: pa.Table, total: int) -> pa.Table:
    """The figures of these rows; `total` rows there are in all."""
    turns, contents = flat(rows)
    ends = np.cumsum(turns)
    characters = np.concatenate([[0], np.cumsum(pc.utf8_length(contents).to_numpy(zero_copy_only=False))])
    whole = characters[ends] - characters[ends - turns]
    answer = characters[ends] - characters[ends - 1]
    answers = contents.take(pa.array(ends - 1))
    told = draw(rows[ID].to_numpy(), SCRIPT_ROWS, total, "scripts")
    first = pc.utf8_slice_codeunits(answers, 0, SCRIPT_CHARACTERS)
    scripts = [_script_of(text) if wanted else None for text, wanted in zip(first.to_pylist(), told, strict=True)]
    columns = [rows[ID], rows[SOURCE], pa.array(turns), pa.array(whole - answer), pa.array(answer)]
    return pa.table([*columns, pa.array(scripts, pa.string()), _small(rows[META])], schema=FEATURES)


def questions_in(rows: pa.Table) -> pa.Array:
    """The message before the last answer of each row; an empty text where there is none."""
    turns, contents = flat(rows)
    place = np.where(turns > 1, np.cumsum(turns) - 2, -1)
    return pc.fill_null(contents.take(pa.array(place, mask=place < 0)), "")


def flat(rows: pa.Table) -> tuple[np.ndarray, pa.Array]:
    """The number of messages of each row, and the contents of all of them."""
    messages = rows[MESSAGES].combine_chunks()
    contents = pc.struct_field(pc.list_flatten(messages), "content")
    contents = contents.combine_chunks() if isinstance(contents, pa.ChunkedArray) else contents
    return pc.list_value_length(messages).to_numpy(zero_copy_only=False).astype(np.int64), contents


def meta_groups(pool: pa.Table, selected: pa.Table) -> dict[str, tuple[Counter[str], Counter[str]]]:
    """Columns of the meta with few values, and the rows of each value in the pool and in the selection."""
    of_pool, of_selected = (_counted(table) for table in (pool, selected))
    few = [
        name for name, values in of_pool.items() if 2 <= len(values) <= MOST_VALUES and values.total() >= len(pool) / 2
    ]
    kept = sorted(few, key=lambda name: (-of_pool[name].total(), name))[:MOST_COLUMNS]
    return {name: (of_pool[name], of_selected.get(name, Counter())) for name in sorted(kept)}


def _counted(table: pa.Table) -> dict[str, Counter[str]]:
    counted: dict[str, Counter[str]] = {}
    for text in table[META].drop_null().to_pylist():
        for name, value in orjson.loads(text).items():
            values = counted.setdefault(name, Counter())
            if len(values) <= MOST_VALUES or value in values:  # a column of names or numbers is no group
                values[value] += 1
    return counted


def _small(meta: pa.ChunkedArray) -> pa.Array:
    """The short values of each row's meta, as JSON."""
    found = []
    for text in meta.to_pylist():
        known = orjson.loads(text) if text else None
        kept = {k: _name(v) for k, v in known.items() if _is_small(v)} if isinstance(known, dict) else None
        found.append(orjson.dumps(kept).decode() if kept else None)
    return pa.array(found, pa.string())


def _is_small(value: Any) -> bool:
    return isinstance(value, (bool, int)) or (isinstance(value, str) and 0 < len(value) <= MOST_CHARACTERS)


def _name(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _script_of(text: str) -> str:
    letters = Counter(map(_script, filter(str.isalpha, text)))
    return max(sorted(letters), key=letters.__getitem__) if letters else "no letters"


@lru_cache(100_000)
def _script(letter: str) -> str:
    return script_of(letter)
