"""`raysift explain RUN ID`: prints what a run knows about a row, its text first, or writes it as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np

from raysift.jobs.commands.explain import Explanation, explain
from raysift.jobs.runs.console import Console
from raysift.jobs.runs.run import open_run
from raysift.pool.id_text import id_text

SHOWN_PAIRS, SHOWN_CHARACTERS = 5, 60


def explain_command(folder: str, row_id: str, pairs: bool, text: bool, as_json: bool, console: Console) -> None:
    """Explain a row on screen. The model is loaded only for a run by gradient."""
    from raysift.jobs.on_ray.session import own_session

    with own_session() as start:
        if pairs and open_run(folder, console).manifest("influence") is not None:
            start()
        else:
            pairs = False
        found = explain(folder, row_id, pairs=pairs, text=text, console=console)
    if as_json:
        print(json.dumps(described(found), indent=1))
    else:
        show(found, console)


def described(found: Explanation) -> dict[str, Any]:
    """The explanation as JSON values: the id as text, without what the run does not have."""
    told = {name: value for name, value in asdict(found).items() if value not in (None, [], {})}
    return told | {"id": id_text(found.id)}


def show(found: Explanation, console: Console) -> None:
    """Print an explanation."""
    if found.messages:
        console.table("Text", ["role", "text"], [[m["role"], m["content"]] for m in found.messages])
    if found.raw is not None:
        console.table("Record", ["", "text"], [["raw", found.raw]])
    place = f"{found.file}, record {found.position}" if found.file else None
    lines: list[list[Any]] = [["id", id_text(found.id)], ["verdict", found.verdict], ["source", found.source]]
    lines += [["file", place], *([["its own id", str(found.own_id)]] if found.own_id is not None else [])]
    if found.standing:
        lines += [["score", found.standing.score], ["percentile", round(found.standing.percentile, 2)]]
    lines += [[name, value] for name, value in found.own.items() if not isinstance(value, list)]
    lines += [["rejected twin" if found.messages or found.standing else "rejected", why] for why in found.rejections]
    console.table("Row", ["", "value"], lines)
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
    if found.pulls:
        strongest = [
            [str(p.record), _short(p.text), p.subtask, p.pull, *p.cosines, p.file] for p in found.pulls[:SHOWN_PAIRS]
        ]
        console.table(
            f"Pairs or examples of the target that pull most, of {len(found.pulls):,}",
            ["record", "text", "subtask", "weighted", *found.checkpoints, "file"],
            strongest,
        )
    if found.no_pulls:
        console.note(f"explain: {found.no_pulls}.")
    if found.policy:
        from raysift.jobs.policy.story import show_row

        show_row(found.policy, console)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 3] + "..."
