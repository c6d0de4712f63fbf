"""Token files of a pool: the trainable rows, in order of id, whatever files their tokens came in and however many parts."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysift.actors.token_files import TokenFiles
from raysift.jobs.policy import token_stage
from raysift.jobs.policy.token_stage import cut_ids, merge_part, write_pieces, write_token_files
from raysift.settings.resources import Resources
from raysift.storage import open_location

ROWS = 200


def answers_in(folder, files, seed=0):
    """Encoded rows, of which some have nothing to learn and some failed, dealt to so many files."""
    rng = np.random.default_rng(7)
    ids = rng.choice(10**12, ROWS, replace=False) - 5 * 10**11
    lines = []
    for number, row in enumerate(ids.tolist()):
        if number % 11 == 0:
            lines.append({"id": row, "input_ids": None, "counted": None, "error": "too long"})
        else:
            tokens = rng.integers(0, 1000, rng.integers(2, 9)).tolist()
            counted = [False] + [number % 7 != 0] * (len(tokens) - 1)
            lines.append({"id": row, "input_ids": tokens, "counted": counted, "error": None})
    kinds = [pa.int64(), pa.list_(pa.int32()), pa.list_(pa.bool_()), pa.string()]
    schema = pa.schema(list(zip(["id", "input_ids", "counted", "error"], kinds, strict=True)))
    folder.mkdir()
    places = []
    for number, part in enumerate(np.array_split(np.random.default_rng(seed).permutation(ROWS), files)):
        places.append(open_location(folder / f"{number}.parquet"))
        pq.write_table(pa.Table.from_pylist([lines[i] for i in part], schema=schema), places[-1].path)
    return places, {line["id"]: line for line in lines if line["error"] is None and any(line["counted"])}


def content(files):
    rows = TokenFiles(tuple(files)).open()
    return {
        row.id: (row.input_ids.tolist(), (row.labels >= 0).tolist()) for row in rows.token_rows(range(len(rows)))
    }, rows.ids.tolist()


def test_one_part_needs_no_sorting_and_holds_the_rows_with_something_to_learn(tmp_path):
    answers, expected = answers_in(tmp_path / "answers", 3)
    found, ids = content([merge_part(open_location(tmp_path), 0, answers)])
    assert ids == sorted(expected)
    assert found == {row: (line["input_ids"], line["counted"]) for row, line in expected.items()}


def test_other_files_in_another_order_give_the_same_parts(tmp_path):
    written = []
    for name, files in (("a", 1), ("b", 5)):
        answers, expected = answers_in(tmp_path / name, files, seed=files)
        pieces, out = (open_location(tmp_path / f"{name}-{kind}").make_folder() for kind in ("pieces", "out"))
        ends = cut_ids(answers, 4)
        shares = [answers[:2], answers[2:]] if files > 1 else [answers]
        for number, share in enumerate(shares):
            write_pieces(pieces, number, share, ends)
        mine = [
            merge_part(out, part, [pieces / f"{part:05d}-{number:05d}.parquet" for number in range(len(shares))])
            for part in range(4)
        ]
        written.append([place.name for place in mine])
        found, ids = content(mine)
        assert ids == sorted(expected) and len(found) == len(expected)
        assert max(len(TokenFiles((place,)).ids()) for place in mine) <= ROWS / 4
    assert written[0] == written[1], "names hold the hash of the content"


def test_answers_without_a_row_to_train_on_give_a_file_without_rows(tmp_path):
    answers, _ = answers_in(tmp_path / "answers", 1)
    table = pq.read_table(answers[0].path).slice(0, 0)
    pq.write_table(table, answers[0].path)
    place = merge_part(open_location(tmp_path), 0, answers)
    assert content([place]) == ({}, []) and TokenFiles((place,)).longest == 0


@pytest.mark.ray
def test_tasks_write_the_parts_and_leave_nothing_else(ray_local, tmp_path, monkeypatch):
    monkeypatch.setattr(token_stage, "PART_ROWS", 64)
    answers, expected = answers_in(tmp_path / "answers", 3)
    folder = open_location(tmp_path / "stage").make_folder()
    files = write_token_files(answers, ROWS, folder, Resources())
    assert len(files) == 4 and content(files)[1] == sorted(expected)
    assert [place.name for place in (tmp_path / "stage").iterdir()] == ["tokens"]
