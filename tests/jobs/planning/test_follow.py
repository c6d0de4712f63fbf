"""A run that follows a plan: drift and end are told, a run far over its plan stops and continues, a copy stays in the run."""

from __future__ import annotations

import threading

import pytest

from raysift.errors import ConfigError, StageError
from raysift.jobs.planning.follow import Followed, read_factor
from raysift.jobs.planning.rendering import compared
from raysift.jobs.runs.progress import Bar
from raysift.jobs.runs.run import Run, StageResult
from raysift.manifest import Manifest
from raysift.planning.record import Plan, PlannedStage, Seconds


def planned(**seconds):
    stages = [
        PlannedStage(
            stage=name,
            rows=1,
            kept=1,
            tokens=0,
            device="cpu",
            workers=1,
            seconds=Seconds(low=s / 2, likely=s, high=2 * s),
            host=2**30,
            gpu=0,
            written=0,
            restart_s=0,
            basis="measured",
        )
        for name, s in seconds.items()
    ]
    return Plan(method="less", model="nano", machine="", measured=True, settings={}, stages=stages)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def watched(follow, clock, total=100):
    bar = Bar("nowhere", "", total, "rows", lambda told, words: None, clock=clock)
    bar.watch = follow.look
    return bar


def elsewhere(call):
    """Reports of progress come from a thread beside the one that works."""
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def test_a_slow_stage_is_stopped_in_the_middle_by_its_own_speed_and_not_by_its_start():
    clock, notes, stops = Clock(), [], []
    follow = Followed(planned(gradients=1000.0, choose=1.0), 1.5, notes.append, clock, lambda: stops.append(clock()))
    follow.begin("gradients")
    bar = watched(follow, clock)
    clock.now = 300.0  # loading took long, and counts with what it is
    elsewhere(lambda: bar.update(1))
    for done in range(2, 50):
        clock.now += 8.0
        elsewhere(lambda done=done: bar.update(done))
    assert not stops and follow.stopped() is None
    assert all("times the planned time" in note and "ends about" in note for note in notes) and notes
    for done in range(50, 100):
        clock.now += 40.0
        elsewhere(lambda done=done: bar.update(done))
    assert len(stops) == 1
    assert "--stop-over allows 1.5" in str(follow.stopped())


def test_a_stage_that_ends_late_stops_the_run_before_the_next_one_only():
    follow = Followed(planned(warmup=100.0, gradients=100.0), 1.5, lambda words: None)
    follow.begin("warmup")
    with pytest.raises(StageError, match=r"take 1\.60 times"):
        follow.end("warmup", 160.0)
    last = Followed(planned(warmup=100.0, gradients=100.0), 1.5, lambda words: None)
    last.end("warmup", 100.0)
    last.end("gradients", 900.0)  # nothing is left to be saved


def test_stages_before_one_that_begins_were_reused():
    follow = Followed(planned(ingest=500.0, gradients=100.0), 1.5, lambda words: None)
    follow.begin("gradients")
    follow.end("gradients", 90.0)
    assert follow.course.over() == pytest.approx(0.9)


def test_without_a_factor_a_run_is_never_stopped():
    stops = []
    follow = Followed(planned(a=10.0, b=10.0), None, lambda words: None, stop=lambda: stops.append(1))
    follow.end("a", 1000.0)
    assert not stops


def test_an_interrupted_stage_says_why_and_the_run_continues_without_the_plan(tmp_path):
    def body(folder):
        raise KeyboardInterrupt

    def stage(run, what):
        return run.stage("gradients", {}, {}, what)

    run = Run(tmp_path / "run")
    run.follow = follow = Followed(planned(gradients=10.0), 1.5, lambda words: None)
    with pytest.raises(KeyboardInterrupt):
        stage(run, body)  # someone else's Ctrl-C stays one
    follow._why = StageError("the run will take 2 times what was planned")
    with pytest.raises(StageError, match="2 times"):
        stage(run, body)
    again = Run(tmp_path / "run")
    assert stage(again, lambda folder: StageResult(counts={"rows_in": 1})).counts == {"rows_in": 1}


def test_a_bar_that_nobody_sees_is_counted_where_a_plan_is_followed(tmp_path):
    run, seen = Run(tmp_path / "run"), []

    class Listening:
        def begin(self, stage):
            seen.append(("begin", stage))

        def look(self, bar):
            seen.append(("look", bar.done))

        def stopped(self):
            return None

        def end(self, stage, seconds):
            seen.append(("end", stage))

    def body(folder):
        with run.progress(4) as bar:
            assert bar.is_shown
            bar.update(3)
        return StageResult()

    run.follow = Listening()
    run.stage("score", {}, {}, body)
    assert seen == [("begin", "score"), ("look", 3), ("end", "score")]


@pytest.mark.parametrize(("text", "factor"), [("1.5x", 1.5), ("2", 2.0), (1.25, 1.25), (None, None)])
def test_factors(text, factor):
    assert read_factor(text) == factor


@pytest.mark.parametrize("text", ["x", "1", "0.5x", "", "nan"])
def test_other_factors_are_refused(text):
    with pytest.raises(ConfigError, match="--stop-over"):
        read_factor(text)


def test_plan_and_fact_stand_side_by_side_without_stages_of_other_runs():
    def done(stage, seconds, host, reused=None):
        return Manifest(stage=stage, fingerprint="", seconds=seconds, peaks={"host": host}, reused_from=reused)

    plan = planned(ingest=10.0, gradients=100.0, choose=1.0)
    found = [done("ingest", 5.0, 2**29, reused="runs/old"), done("gradients", 150.0, 2**30), done("choose", 1.0, 0)]
    lines = compared(plan, found)
    assert [line[0] for line in lines] == ["gradients", "choose", "all"]
    assert lines[0][1:] == [100.0, 150.0, 1.5, 2**30, 2**30, 1.0]
    assert lines[1][4:] == [2**30, None, None]
    assert lines[2][1:4] == [101.0, 151.0, round(151 / 101, 2)]
