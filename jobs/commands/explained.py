"""`raysift explain RUN ID`: prints what a run knows about a row, its text first, or writes it as JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from raysift.jobs.explaining.explain import explain
from raysift.jobs.explaining.record import Explanation, described, paragraphs
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import open_run
from raysift.pool.id_text import id_text


def explain_command(folder: str, row_id: str, pairs: bool, text: bool, as_json: bool, console: Console) -> None:
    """Explain a row on screen. Ray starts, and the model is loaded, only for a run by gradient."""
    from raysift.jobs.cluster.session import own_session

    with own_session() as start:
        if pairs and open_run(folder, console).manifest("influence") is not None:
            start()
        found = explain(folder, row_id, pairs=pairs, text=text, console=console)
    if as_json:
        print(json.dumps(described(found), indent=1))
    else:
        show(found, console)


def show(found: Explanation, console: Console) -> None:
    """Print an explanation: in words, then the cosines by checkpoint and subtask if the run has them."""
    console.prose(f"Row {id_text(found.id)}", [])
    for part in paragraphs(found):
        console.prose(part.title, part.lines, part.texts)
    if found.matches:
        table: list[list[Any]] = [
            [name, weight, *cosines]
            for name, weight, cosines in zip(found.checkpoints, found.weights, found.matches, strict=True)
        ]
        totals = np.array(found.weights) @ np.array(found.matches)
        table.append(["weighted", None, *totals.tolist()])
        if found.subtask_weights:
            table.append(["target ×", None, *found.subtask_weights])
        console.table("Cosine with the target", ["checkpoint", "weight", *found.subtasks], table)
