"""Rows as tokens in flat arrays: in order of id, however they came, and beyond what 32 bits can count."""

import numpy as np
import pyarrow as pa

from raysift.actors.encoded_rows import EncodedRows, by_id


def test_rows_lie_by_id_whatever_chunks_they_came_in():
    rng = np.random.default_rng(0)
    tokens = {int(i): rng.integers(0, 99, rng.integers(1, 9)).tolist() for i in rng.permutation(50)}
    lines = [{"id": i, "input_ids": of, "counted": [n > 0 for n in range(len(of))]} for i, of in tokens.items()]
    kind = pa.schema([("id", pa.int64()), ("input_ids", pa.list_(pa.int32())), ("counted", pa.list_(pa.bool_()))])
    whole = pa.Table.from_pylist(lines, schema=kind)
    for table in (whole, pa.concat_tables([whole.slice(0, 7), whole.slice(7, 0), whole.slice(7)]), by_id(whole)):
        # Offsets of 32 bits end at 2^31 tokens, 4 million rows of 500.
        assert [column.type.equals(pa.large_list(column.type.value_type)) for column in by_id(table).columns[1:]] == [
            True
        ] * 2
        rows = EncodedRows(table)
        assert rows.ids.tolist() == sorted(tokens)
        assert [row.input_ids.tolist() for row in rows.token_rows(range(50))] == [tokens[i] for i in sorted(tokens)]
        assert rows.labels_per_row.tolist() == [len(tokens[i]) - 1 for i in sorted(tokens)]
