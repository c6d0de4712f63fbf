"""Rows on their way into a training: encoded, counted, and set apart where they hold nothing to learn."""

from __future__ import annotations

import logging
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysift.actors.effective_batches import (
    DOUBLED,
    INPUT_IDS,
    TRUNCATED,
    UNTRAINED,
    EncodeRows,
    split_trainable,
)
from raysift.errors import StageError
from raysift.records import ID, REASON
from raysift.storage import Location

log = logging.getLogger(__name__)

UNTRAINED_FILE = "untrained.parquet"


class Account:
    """Counts rows as they pass, and writes those that cannot be trained on."""

    def __init__(self, out: Location) -> None:
        self.out = out
        self.counts = {"rows_in": 0, "rows_trained": 0, "rows_truncated": 0, "rows_doubled_special": 0, "tokens": 0}
        self.untrained: list[pa.Table] = []

    def add(self, encoded: pa.Table) -> pa.Table:
        """The trainable rows of the table."""
        trainable, untrained = split_trainable(encoded)
        self.untrained.append(untrained)
        for reason in untrained[REASON].to_pylist():
            key = "rows_" + reason.replace("-", "_")
            self.counts[key] = self.counts.get(key, 0) + 1
        self.counts["rows_in"] += len(encoded)
        self.counts["rows_trained"] += len(trainable)
        self.counts["rows_truncated"] += pc.sum(trainable[TRUNCATED]).as_py() or 0
        self.counts["rows_doubled_special"] += pc.sum(trainable[DOUBLED]).as_py() or 0
        self.counts["tokens"] += pc.sum(pc.list_value_length(trainable[INPUT_IDS])).as_py() or 0
        return trainable

    def close(self) -> None:
        """Write the rows left out, warn, and refuse to train on nothing."""
        untrained = pa.concat_tables(self.untrained) if self.untrained else UNTRAINED.empty_table()
        sink = pa.BufferOutputStream()
        pq.write_table(untrained.sort_by(ID), sink)
        (self.out / UNTRAINED_FILE).write(sink.getvalue().to_pybytes())
        counts = self.counts
        if not counts["rows_trained"]:
            reasons = {key: n for key, n in counts.items() if key not in ("rows_in", "tokens") and n}
            raise StageError(
                f"finetune: none of {counts['rows_in']} rows can be trained on ({reasons}); see "
                f"{self.out / UNTRAINED_FILE}. Raise max_length or name another template."
            )
        for key in ("rows_truncated", "rows_doubled_special", "rows_no_label_tokens", "rows_failed"):
            if counts.get(key):
                log.warning("finetune: %d of %d rows: %s", counts[key], counts["rows_in"], key.removeprefix("rows_"))


def encoder_of(job: dict[str, Any]) -> EncodeRows:
    config = job["config"]
    return EncodeRows(job["model"], config.template, config.max_length, job["place"].trust_remote_code)


def read_columns(file: Location, columns: list[str]) -> pa.Table:
    with file.open_input() as stream:
        return pq.read_table(stream, columns=columns)
