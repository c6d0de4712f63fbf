"""`raysift nano pool|target|pairs|test`: files with which every method can be tried offline."""

import json

import pytest

from raysift.evaluation.examples import read_examples
from raysift.jobs.commands import cli, guard
from raysift.jobs.commands.look import look_at_target
from raysift.nano.world import generate_pool


def command(*arguments):
    return guard.run_guarded(lambda: cli.app(args=["nano", *map(str, arguments)]))


def test_folders_are_made_and_what_was_written_is_said(tmp_path, capsys):
    path = tmp_path / "new" / "pool.jsonl"
    assert command("pool", path, "--rows", 30, "--seed", 5) == 0
    assert capsys.readouterr().out == f"{path}: 30 rows\n"
    assert [json.loads(line) for line in path.read_text().splitlines()] == list(generate_pool(30, 5))
    assert [file.name for file in path.parent.iterdir()] == ["pool.jsonl"]


def test_targets_serve_the_methods_they_are_for(tmp_path):
    for kind, methods in (
        ("target", ("less", "rds", "raise")),
        ("test", ("less", "rds", "raise")),
        ("pairs", ("rose",)),
    ):
        assert command(kind, tmp_path / f"{kind}.jsonl", "--rows", 20, "--skill", "reverse", "--skill", "roman") == 0
        found = look_at_target(str(tmp_path / f"{kind}.jsonl"))
        assert found.methods == methods and "20 " in found.what
    target, test = (read_examples(str(tmp_path / f"{kind}.jsonl")) for kind in ("target", "test"))
    assert {example.subset for example in [*target, *test]} == {"reverse", "roman"}
    assert not {example.prompt for example in target} & {example.prompt for example in test}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["target", "t.jsonl", "--skill", "juggle"], "'juggle' is no skill. Known: add, "),
        (["test", "t.jsonl", "--skill", "parity", "--rows", "5000"], "ask for fewer rows"),
        (["pool", "file/t.jsonl"], "cannot write 'file/t.jsonl'"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert command(*arguments) == 2
    assert message in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
