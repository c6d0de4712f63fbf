"""Sections `why` and `map` of a report: figures that the tables bear out, on runs laid out by hand; no Ray, no model."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from laid_runs import id_of, lay_coverage, lay_gradient, lay_mods, lay_yardstick

from raysift.jobs.report import map as maps
from raysift.jobs.report.map import map_of
from raysift.jobs.report.why import why
from raysift.pool.id_text import id_text
from raysift.report.blocks import as_json

COUNT = 40


def blocks(section, kind):
    return [block for block in section.blocks if block.kind == kind]


def chosen_of(run):
    return pq.read_table(f"{run.folder.path}/selection.parquet")["id"].to_pylist()


def test_mean_cosines_are_those_of_the_chosen_rows_and_of_all(tmp_path):
    scores = np.random.default_rng(0).standard_normal((COUNT, 3)) / 5
    run = lay_gradient(tmp_path / "run", scores, "7")
    section = why(run, True)
    assert section.key == "why"
    own, pool = blocks(section, "heatmap")
    taken = np.isin([id_of(k) for k in range(COUNT)], chosen_of(run))
    np.testing.assert_allclose(own.values, [scores[taken].mean(axis=0)] * 2, rtol=1e-5)
    np.testing.assert_allclose(pool.values, [scores.mean(axis=0)] * 2, rtol=1e-5)
    assert own.rows == ("epoch-1", "epoch-2")
    assert own.columns == ("task 0", "task 1", "task 2")
    (table,) = blocks(section, "table")
    assert table.rows == (("epoch-1", 0.25, 2.0), ("epoch-2", 0.75, 1.5))
    assert "exact" in table.note
    assert blocks(section, "texts") == []  # a run made before the figures of examples were kept


def test_what_each_step_of_mods_let_pass_adds_up(tmp_path):
    run = lay_mods(tmp_path / "run")
    section = why(run, True)
    (bars,) = blocks(section, "bars")
    looked, taken = (dict(zip(bars.groups, one.values, strict=True)) for one in bars.series)
    assert taken == {
        "quality above the bar": run.manifest("good").counts["kept"],
        "seeds": 4,
        "not known yet": run.manifest("needed").counts["kept"],
        "added to the seeds": 4,
    }
    assert looked["quality above the bar"] == 60
    assert looked["seeds"] == looked["not known yet"] == taken["quality above the bar"]
    assert looked["added to the seeds"] == taken["not known yet"]
    for drawn, stage in zip(blocks(section, "histogram"), ("good", "needed"), strict=True):
        assert drawn.marks[0].value == run.manifest(stage).values["cut"]["value"]
        assert len(drawn.edges) == len(drawn.series[0].counts) + 1
        assert sum(drawn.series[0].counts) == sum(one["count"] for one in run.manifest(stage).values["histogram"])


def test_yardsticks_have_neither_section(tmp_path):
    run = lay_yardstick(tmp_path / "run", "uniform", "5")
    assert why(run, True) is None
    assert map_of(run) is None


def test_the_map_holds_every_row_with_a_vector_and_the_chosen_ones_as_points(tmp_path):
    run = lay_coverage(tmp_path / "run")
    section = map_of(run)
    (drawn,) = blocks(section, "map")
    assert np.array(drawn.density).shape == (64, 64)
    assert np.array(drawn.density).sum() == 50
    assert [point.id for point in drawn.points] == [id_text(row) for row in chosen_of(run)]
    assert [point.rank for point in drawn.points] == list(range(10))
    for point in drawn.points:
        x, y = (
            min(63, int(np.searchsorted(side, value, side="right")) - 1)
            for side, value in ((drawn.x, point.x), (drawn.y, point.y))
        )
        assert drawn.density[y][x] >= 1
    (curve,) = blocks(section, "lines")
    assert [list(point) for point in curve.series[0].points] == run.manifest("centers").values["curve"]
    assert json.dumps(as_json(section)) == json.dumps(as_json(map_of(run)))
    assert drawn.note == ""


def test_a_map_of_many_rows_is_drawn_from_some_and_says_so(tmp_path, monkeypatch):
    run = lay_coverage(tmp_path / "run")
    for name, most in (("FIT_ROWS", 20), ("SHOWN_ROWS", 30), ("MAP_POINTS", 4)):
        monkeypatch.setattr(maps, name, most)
    (drawn,) = blocks(map_of(run), "map")
    assert np.array(drawn.density).sum() == 30
    assert len(drawn.points) == 4
    assert "20 of 50 rows" in drawn.how
    assert "that of 30 rows" in drawn.note
    assert "4 of 10 chosen rows" in drawn.note


def test_rows_without_a_vector_are_told(tmp_path):
    run = lay_mods(tmp_path / "run")
    section = map_of(run)
    assert [line.name for line in blocks(section, "lines")[0].series] == ["seeds", "rows added to the seeds"]
    (drawn,) = blocks(section, "map")
    assert np.array(drawn.density).sum() == 60
    assert len(drawn.points) == 8


@pytest.mark.parametrize("lay", [lay_mods, lay_coverage])
def test_sections_hold_no_text_of_a_row(tmp_path, lay):
    run = lay(tmp_path / "run")
    told = [as_json(section) for section in (why(run, False), map_of(run)) if section]
    assert "secret" not in json.dumps(told)
