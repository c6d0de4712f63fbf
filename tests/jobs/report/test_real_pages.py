"""The pages of real runs in a real browser: every method of the demo, the demo itself, and 163,000 rows of many sources."""

import time
from pathlib import Path

import pytest

import raysift
from raysift.jobs.report.page.page import MOST_BYTES
from raysift.jobs.report.writing import write_report
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import open_run
from raysift.storage import open_location

from .chromium import NEEDED, SIZES, opens_soundly

pytestmark = NEEDED
DEMO = Path(__file__).resolve().parents[3] / "runs" / "demo"
RUNS = [
    "",
    *(f"{name}/seed-0" for name in ("uniform", "longest", "less", "rose", "mods", "raise", "full_pool", "oracle")),
]


def page_of(folder, *runs) -> Path:
    opened = [open_run(str(run), Console("quiet")) for run in runs]
    return Path(write_report(opened, open_location(str(folder))).path)


def opens(browser, page, record_property):
    assert page.stat().st_size < MOST_BYTES
    for size in SIZES[:2]:
        for scheme in ("light", "dark"):
            opens_soundly(browser, page, size, prefers_color_scheme=scheme)
    record_property("bytes", page.stat().st_size)
    record_property("milliseconds", browser.run("return performance.getEntriesByName('raysift-drawn')[0].startTime"))


@pytest.mark.skipif(not (DEMO / "compare.json").exists(), reason="needs the runs that `make demo` leaves in runs/demo")
@pytest.mark.parametrize("name", RUNS)
def test_the_page_of_each_method_of_the_demo(browser, tmp_path, name, record_property):
    opens(browser, page_of(tmp_path, DEMO / name), record_property)


@pytest.mark.skipif(not (DEMO / "compare.json").exists(), reason="needs the runs that `make demo` leaves in runs/demo")
def test_the_page_of_several_runs(browser, tmp_path, record_property):
    opens(browser, page_of(tmp_path, DEMO / "less/seed-0", DEMO / "rose/seed-0", DEMO / "mods/seed-0"), record_property)


@pytest.mark.ray
def test_the_page_of_all_real_rows(browser, tmp_path, shared_data, ray_local, record_property):
    chosen = raysift.uniform(shared_data / "pool", run=tmp_path / "run", log="quiet")
    assert chosen.manifest.counts["rows_in"] > 100_000
    began = time.perf_counter()
    page = page_of(tmp_path / "page", tmp_path / "run")
    record_property("seconds_to_write", time.perf_counter() - began)
    opens(browser, page, record_property)
