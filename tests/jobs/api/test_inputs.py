"""Rows in memory become files that are named by their content; what cannot be one is told without what stands in it."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysift.errors import ConfigError
from raysift.jobs.api.inputs import STEP_ROWS, as_names, read_given
from raysift.nano.world import generate_pool
from raysift.pool.files import find_files

SECRET = "the secret text of a row"
ROWS = list(generate_pool(30, 0))


def given(rows, folder, role="pool"):
    folder.mkdir(exist_ok=True)
    return read_given(role, rows, str(folder))


def test_paths_of_every_form_are_names(tmp_path):
    assert as_names("a.jsonl") == ["a.jsonl"]
    assert as_names(tmp_path / "a") == [f"{tmp_path}/a"]
    assert as_names((tmp_path / "a", "s3://b/c")) == [f"{tmp_path}/a", "s3://b/c"]
    assert as_names(ROWS) is None and as_names(7) is None and as_names(["a", ROWS[0]]) is None


def test_the_name_of_rows_in_memory_follows_from_their_content(tmp_path):
    once, again = given(ROWS, tmp_path / "a"), given([dict(row) for row in ROWS], tmp_path / "b")
    other, less = given(ROWS[::-1], tmp_path / "c"), given(ROWS[:-1], tmp_path / "d")
    assert once.inside == again.inside
    assert len({once.inside, other.inside, less.inside}) == 3
    assert once.place("runs/x") == f"runs/x/given/{once.inside}"
    assert once.place("s3://b/x?region=y") == f"s3://b/x/given/{once.inside}?region=y"


def test_a_table_has_one_name_however_it_is_chunked_and_whatever_it_notes(tmp_path):
    table = pa.table({"instruction": [f"{n}?" for n in range(STEP_ROWS + 90)], "output": ["x"] * (STEP_ROWS + 90)})
    cut = pa.concat_tables([table.slice(0, 7), table.slice(7, STEP_ROWS), table.slice(STEP_ROWS + 7)])
    noted = table.replace_schema_metadata({"by": "another tool"})
    names = {given(one, tmp_path / f"{n}").inside for n, one in enumerate((table, cut, noted, table.to_pandas()))}
    assert len(names) == 1
    written = pq.read_table(tmp_path / "1" / "pool.parquet")
    assert written.equals(table)


def test_the_source_of_such_rows_is_what_they_are_given_as(tmp_path):
    held = given(ROWS, tmp_path / "work")
    held.keep(str(tmp_path / "run"))
    [file] = find_files([held.place(str(tmp_path / "run"))])
    assert file.stem == "pool"
    assert held.keep(str(tmp_path / "run")) is None  # it is there already, and stays as it is


def test_values_of_numpy_and_missing_ones_are_written_as_json(tmp_path):
    held = given([{"n": np.int64(3), "v": np.array([1.0, 2.0]), "none": None}], tmp_path / "w")
    assert json.loads(held.file.read_text()) == {"n": 3, "v": [1.0, 2.0], "none": None}


def mixed_frame():
    import pandas

    return pandas.DataFrame({"output": ["x", "y"], "instruction": [SECRET, {"text": SECRET}]})


class Unwritable:
    def __repr__(self):
        return SECRET


def refused_kinds():
    import datasets
    import pandas

    frame = pandas.DataFrame(ROWS)
    dataset = datasets.Dataset.from_list([{"instruction": SECRET, "output": "x"}])
    return {
        "a number": (7, r"found int, expected paths, a pandas\.DataFrame"),
        "a set": ({SECRET}, r"found set"),
        "one record": ({"instruction": SECRET}, r"found dict"),
        "texts and records": (["a.jsonl", {"instruction": SECRET}], r"found a list of dict and str"),
        "numbers": ([1, 2], r"found a list of int"),
        "a column": (frame["messages"], r"Series.*Give the whole DataFrame"),
        "a class": (pa.Table, r"found"),
        "kinds in one column": (mixed_frame(), r"column 'instruction' of the DataFrame holds values of several kinds"),
        "no JSON": ([{"a": 1}, {"a": Unwritable()}], r"record 2 cannot be written as JSON: .*Unwritable"),
        "half a surrogate": ([{"a": SECRET + "\ud800"}], r"record 1 cannot be written as JSON"),
        "splits": (datasets.DatasetDict({"train": dataset}), r"Name one of its splits: dataset\['train'\]"),
        "a stream": (dataset.to_iterable_dataset(), r"ray\.data\.from_huggingface"),
        "no rows": (pa.table({"a": pa.array([], pa.string())}), r"no rows"),
    }


@pytest.mark.parametrize("kind", refused_kinds())
def test_what_is_no_data_is_told_by_its_kind_alone(kind, tmp_path):
    one, message = refused_kinds()[kind]
    with pytest.raises(ConfigError, match=rf"^target: .*{message}") as caught:
        given(one, tmp_path / "work", "target")
    told = [caught.value, caught.value.__cause__] + [caught.value.__context__] * (not caught.value.__suppress_context__)
    assert not any(SECRET in str(error) for error in told)


def test_datasets_are_read_as_they_are_filtered_and_shuffled(tmp_path):
    import datasets

    dataset = datasets.Dataset.from_list([{"n": n} for n in range(20)]).filter(lambda row: row["n"] % 2).shuffle(seed=1)
    held = given(dataset, tmp_path / "work")
    assert pq.read_table(Path(held.file.path))["n"].to_pylist() == dataset["n"][:]
