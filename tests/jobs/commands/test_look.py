"""`raysift look`: counts that add up, the methods that targets serve, a YAML that runs, and texts that move no terminal."""

import json

import pytest
import yaml

from raysift.config import load_config, make_config
from raysift.errors import ConfigError
from raysift.jobs.commands import cli, guard
from raysift.jobs.commands.look import look, look_at_target, served_methods, starter_yaml
from raysift.jobs.commands.options import spread_multiple
from raysift.jobs.runs.console import Console
from raysift.nano.world import examples, generate_pool, preference_pairs
from raysift.pool.checks import IngestConfig
from raysift.pool.files import find_files
from raysift.pool.survey import survey_pool


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def files(tmp_path):
    rows = list(generate_pool(60, 0))
    rows += [rows[0], {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]}]
    return {
        "pool": write(tmp_path / "pool.jsonl", rows),
        "pairs": write(tmp_path / "pairs.jsonl", preference_pairs(6, 0, ["add"], "correctness")),
        "examples": write(tmp_path / "examples.jsonl", examples(5, 0, ["add"], "validation")),
    }


def conversations(pool):
    with open(pool, encoding="utf-8") as lines:
        rows = [json.loads(line)["messages"] for line in lines]
    return [rows[i] for i in range(len(rows)) if rows[i] not in rows[:i]]


def test_every_row_is_kept_or_counted_with_its_reason(files):
    found = survey_pool(find_files([files["pool"]]), IngestConfig())
    assert found.rows == 62 == found.kept + found.duplicates + found.reasons.total()
    sound = [talk for talk in conversations(files["pool"]) if talk[-1]["content"].strip()]
    assert found.kept == len(sound) == found.turns.total() == found.sources.total()
    assert found.characters[1.0] == max(sum(len(m["content"]) for m in talk) for talk in sound)
    assert found.whole and found.layouts == {"messages": 1}


def test_a_large_pool_is_read_to_the_most_rows_and_says_so(files):
    found = survey_pool(find_files([files["pool"]]), IngestConfig(), most_rows=10)
    assert not found.whole and found.rows >= 10


def test_a_file_that_cannot_be_read_is_named_beside_the_others(files, tmp_path):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    found = survey_pool(find_files([str(tmp_path / "broken.parquet"), files["pool"]]), IngestConfig())
    assert list(found.bad_files) == [str(tmp_path / "broken.parquet")] and found.rows == 62


def test_targets_serve_the_methods_that_can_read_them(files, tmp_path):
    pairs, tests = look_at_target(files["pairs"]), look_at_target(files["examples"])
    assert pairs.methods == ("rose",) and "6 preference pairs" in pairs.what
    assert tests.methods == ("less", "rds", "raise") and "5 examples, 5 with an answer" in tests.what
    assert served_methods([tests]) == ["less", "rds", "raise"] and served_methods([pairs]) == ["rose"]
    assert "mods" in served_methods([]) and "mods" in served_methods([pairs, tests])
    assert "nowhere" in look_at_target(str(tmp_path / "nowhere.jsonl")).problem


def test_what_it_writes_is_a_run_of_the_first_method(files, tmp_path):
    config = make_config({"method": "uniform", "pool": [files["pool"]], "target": [files["examples"]], "budget": "5"})
    place = tmp_path / "my.yaml"
    look(config, str(place), Console("quiet"))
    made = load_config(str(place), {}, [])
    assert (made.method, made.pool, made.target, made.budget) == ("less", config.pool, config.target, "5")
    assert place.read_text().count("#") >= 8
    with pytest.raises(ConfigError, match=r"my\.yaml' exists"):
        look(config, str(place), Console("quiet"))


@pytest.mark.parametrize("name", ["a b#c: d.jsonl", "{x}.jsonl", "value.jsonl", "it's.jsonl"])
def test_names_of_files_survive_the_yaml(name):
    config = make_config({"method": "uniform", "pool": [name], "target": [name]})
    assert yaml.safe_load(starter_yaml(config, ["less"]))["pool"] == [name]


def test_texts_of_rows_move_no_terminal(tmp_path, capsys):
    evil = "\x1b[2Jgone\u202e"
    row = {"messages": [{"role": "user", "content": evil}, {"role": "assistant", "content": evil}], "source": "s"}
    look(make_config({"method": "uniform", "pool": [write(tmp_path / "p.jsonl", [row])]}), None, Console("plain"))
    shown = capsys.readouterr().out
    assert "gone" in shown and "\x1b[2J" not in shown and "\u202e" not in shown


def command(*arguments):
    return guard.run_guarded(lambda: cli.app(args=spread_multiple(list(map(str, arguments)))))


def test_the_command_line_looks_and_refuses(files, tmp_path, capsys):
    assert command("look", "--pool", files["pool"], "--target", files["pairs"], "--log", "plain") == 0
    shown = capsys.readouterr()
    assert "these files serve: rose" in shown.err and "exact duplicates" in shown.out
    assert command("look", "--pool", tmp_path / "nowhere.jsonl") == 3
    assert command("look") == 2
    assert "'pool' is missing" in capsys.readouterr().err


def test_the_version_and_help_are_asked_for_as_everywhere(capsys):
    import raysift

    assert command("--version") == 0
    assert capsys.readouterr().out.strip() == f"raysift {raysift.__version__}"
    assert command("-h") == command("less", "-h") == 0
    assert command("settings", "less", "less.matching") == 0
    assert "less.matching=exact" in capsys.readouterr().out
    assert command("settings", "lest") == 2


def test_a_pool_of_which_nothing_is_kept_is_told_with_its_reasons(tmp_path):
    (tmp_path / "pool.jsonl").write_text('{"instruction": "say", "output": ""}\n')
    found = survey_pool(find_files([str(tmp_path / "pool.jsonl")]), IngestConfig())
    assert (found.rows, found.kept, found.reasons) == (1, 0, {"empty_response": 1})
    assert found.characters == {}
