"""The record of a report: a run, several runs, or a comparison, read into sections of blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raysift.jobs.compare.result import is_comparison
from raysift.jobs.report.alerts import alerts_section
from raysift.jobs.report.check import check_section
from raysift.jobs.report.comparison import comparison_sections
from raysift.jobs.report.cost import cost_section, reproduction_section
from raysift.jobs.report.differences import differing_sections
from raysift.jobs.report.funnel import funnel_section
from raysift.jobs.report.gather import Gathered
from raysift.jobs.report.groups import groups_section
from raysift.jobs.report.map import map_of
from raysift.jobs.report.rows import rows_section
from raysift.jobs.report.scores import scores_section
from raysift.jobs.report.training import evaluation_section, training_section
from raysift.jobs.report.verdict import verdict_section
from raysift.jobs.report.why import why
from raysift.jobs.runs.run import Run
from raysift.report.blocks import Record, Section

SECTIONS: tuple[Callable[[Gathered], Section | None], ...] = (
    verdict_section,
    alerts_section,
    funnel_section,
    scores_section,
    groups_section,
    lambda found: map_of(found.run),
    rows_section,
    lambda found: why(found.run, found.with_text),
    training_section,
    evaluation_section,
    check_section,
    cost_section,
    reproduction_section,
)


def report_of(run: Run, with_text: bool = True) -> Record:
    """The record of a finished or unfinished run of any kind, or of a comparison."""
    if is_comparison(run.folder):
        return _record(run.name, "comparison", with_text, comparison_sections(run))
    found = Gathered(run, with_text)
    return _record(run.name, "run", with_text, [section for of in SECTIONS if (section := of(found))])


def report_of_runs(runs: Sequence[Run], with_text: bool = True) -> Record:
    """The record of several runs: how they differ, section by section."""
    found = [Gathered(run, with_text) for run in runs]
    return _record(" · ".join(run.name for run in runs), "runs", with_text, differing_sections(found))


def _record(title: str, kind: str, with_text: bool, sections: Sequence[Section]) -> Record:
    from raysift import __version__

    return Record(
        title=title, kind=kind, created_by=f"raysift {__version__}", with_text=with_text, sections=tuple(sections)
    )
