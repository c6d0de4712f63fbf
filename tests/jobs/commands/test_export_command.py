"""`raysift export` and `show --json`: a finished selection in another format and as data, without a new run."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raysift
from raysift.jobs.commands import cli, guard
from raysift.pool.export import SHAPES, write_rows
from raysift.pool.id_text import id_text
from raysift.storage import open_location

from .test_show import EVIL, finished_run


def command(*arguments):
    return guard.run_guarded(lambda: cli.app(args=list(map(str, arguments))))


@pytest.fixture
def selection(tmp_path):
    return raysift.load_run(finished_run(tmp_path / "run", "longest").name).selection


@pytest.mark.parametrize("shape", [*SHAPES, "parquet"])
def test_an_export_holds_the_chosen_rows_in_the_format(selection, tmp_path, shape):
    run, out = selection.run.name, tmp_path / "new" / "out"
    assert command("export", run, "--to", shape, "--out", out) == 0
    rows = pa.concat_tables(pq.read_table(place.path) for place in selection.files())
    write_rows([rows], open_location(tmp_path / "expected"), shape)
    (data,) = out.glob("longest-*")
    assert data.read_bytes() == (tmp_path / "expected").read_bytes()
    info = json.loads((out / "dataset_info.json").read_text())
    assert set(info) <= {data.stem}
    card = (out / "README.md").read_text()
    for told in (data.name, "longest", "nano", "8 of 40", "p.jsonl c0ffeec0ffeec0ff", "Licence", "SFTTrainer"):
        assert told in card or (told == "SFTTrainer" and shape not in ("messages", "parquet"))


def test_without_out_it_lies_in_the_run_and_can_be_repeated(selection):
    for _ in range(2):
        assert command("export", selection.run.name, "--to", "alpaca") == 0
    place = selection.run.opened.folder / "selected-alpaca"
    assert sorted(file.name.partition("-")[0] for file in place.files()) == [
        "README.md",
        "dataset_info.json",
        "longest",
    ]


def test_bad_input_is_refused_with_a_sentence(selection, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    (tmp_path / "file").write_text("")
    run = selection.run.name
    for arguments, message in (
        ([run, "--to", "csv"], "--to is 'csv', which is unknown. Known: messages, alpaca"),
        (["nowhere", "--to", "alpaca"], "is no run folder"),
        ([run, "--to", "alpaca", "--out", tmp_path / "mine"], "holds 'README.md' and no earlier export"),
        ([run, "--to", "alpaca", "--out", tmp_path / "file"], "is a file, expected a folder"),
    ):
        assert command("export", *arguments) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "mine" / "README.md").read_text() == "mine"


def test_show_as_json_is_one_document_of_what_the_run_holds(selection, capsys):
    assert command("show", selection.run.name, "--json", "--by", "skill") == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert shown.err == ""
    assert found["settings"]["method"] == "longest" and found["command"].startswith("raysift longest --pool ")
    assert [stage["stage"] for stage in found["stages"]] == [one.stage for one in selection.run.opened.manifests()]
    chosen = found["selection"]
    assert [row["id"] for row in chosen["first_rows"]] == [id_text(row) for row in selection.ids]
    assert chosen["by_source"] == selection.by_source
    assert sum(line["selected"] for line in chosen["by_skill"].values()) == len(selection)
    assert sum(line["pool"] for line in chosen["by_skill"].values()) == selection.manifest.counts["rows_in"]
    assert raysift.explain(selection.run.name, chosen["first_rows"][0]["id"]).rank == 1


def test_the_text_of_a_row_as_json_moves_no_terminal(selection, capsys):
    assert command("explain", selection.run.name, id_text(3), "--json") == 0
    shown = capsys.readouterr().out
    assert json.loads(shown)["messages"][0]["content"] == EVIL
    assert shown.isascii() and all(character.isprintable() or character == "\n" for character in shown)
