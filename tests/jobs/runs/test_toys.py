"""A nano model that nobody named says so before it judges a pool in another language, and the manifest keeps it."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysift.jobs.commands.console import Console
from raysift.jobs.runs.models import find_model
from raysift.jobs.runs.run import Run, StageResult
from raysift.nano.world import generate_pool
from raysift.records import ROWS
from raysift.settings.config import make_config

REAL = [f"Describe chapter {i} of the novel and explain why critics admired its unusual structure." for i in range(40)]


@pytest.fixture
def read(tmp_path):
    """A run that has read these texts, and what it printed since."""

    def make(texts, voice="plain"):
        run = Run(tmp_path / str(len(list(tmp_path.iterdir()))), Console(voice))
        talks = [[{"role": "user", "content": text}] for text in texts]
        columns = {
            "id": range(len(texts)),
            "source": ["a"] * len(texts),
            "messages": talks,
            "meta": ["{}"] * len(texts),
        }
        table = pa.table(columns | {"raw": [None] * len(texts)}, schema=ROWS)

        def body(folder):
            pq.write_table(table, (folder / "rows.parquet").path)
            return StageResult(files={"rows": ["rows.parquet"]}, counts={"kept": len(texts)})

        run.stage("ingest", {}, {}, body)
        return run

    return make


def test_an_unnamed_nano_model_warns_once_of_real_text_and_names_smol(read, capsys):
    run = read(REAL)
    config = make_config({"method": "less", "budget": "5"})
    for _ in range(2):
        find_model(run, config)
    said = capsys.readouterr().err
    assert said.count("WARNING") == 1 and "nano is a toy" in said and "--model smol" in said
    assert run.toys == {"nano": pytest.approx(0.3, abs=0.3)}


@pytest.mark.parametrize(
    ("texts", "named"),
    [(REAL, {"model": "nano"}), ([row["messages"][0]["content"] for row in generate_pool(40, 0)], {})],
    ids=["nano was named", "nano's own pool"],
)
def test_nano_that_was_named_or_reads_its_own_language_says_nothing(read, capsys, texts, named):
    run = read(texts)
    config = make_config({"method": "mods", "budget": "5"} | named)
    for name in ("nano", "nano:reward", "nano:encoder"):
        find_model(run, config, name)
    assert "WARNING" not in capsys.readouterr().err and run.toys == {}


def test_toy_scorers_warn_beside_a_real_model_with_the_setting_to_change(read, capsys):
    run = read(REAL, "quiet")
    config = make_config({"method": "mods", "budget": "5", "model": "smol"})
    find_model(run, config, "nano:reward")
    find_model(run, config, "nano:encoder")
    said = capsys.readouterr().err
    assert "mods.scorer.model=" in said and "mods.embedding.model=smol:encoder" in said
    named = make_config({"method": "mods", "mods": {"scorer": {"model": "nano:reward"}}, "model": "smol"})
    other = read(REAL)
    find_model(other, named, "nano:reward")
    assert other.toys == {}
