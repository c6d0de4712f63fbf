"""Reports on a run of RAISE, computed from its logs on demand: its rounds, its picks over time, and single rows.

from raysift.jobs.policy.story import learning_curve, picks_over_time
picks_over_time("runs/raise", by="skill").to_pandas()
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysift.errors import ConfigError
from raysift.ids import look_up
from raysift.jobs.commands.console import Console
from raysift.jobs.runs.labels import labels_of
from raysift.jobs.runs.reuse import read_events
from raysift.jobs.runs.run import Run, open_run
from raysift.jobs.runs.tables import read_chunks
from raysift.manifest import Manifest, read_manifest
from raysift.policy.pool import PolicyPool, positions, read_pool, restrict
from raysift.policy.saved import finished_rounds, load_episodes, load_policy, read_account
from raysift.policy.settings import PolicySettings
from raysift.policy.state import Episode, replay
from raysift.records import ID, SCORE, SOURCE
from raysift.storage import Location

if TYPE_CHECKING:
    from raysift.policy.network import Acquisition

STRETCHES = 6
SHOWN_ROUNDS, SHOWN_VALUES, SHOWN_STEPS = 40, 24, 20
DOTS = 16
CLASS = "class"
OTHERS = "(others)"


@dataclass(frozen=True)
class RowStory:
    """Facts on a row that the policy of a run could pick."""

    class_number: int
    class_rows: int
    steps: list[int]
    """Steps of the final training in which the row was picked."""
    rounds: list[int]
    """Picks of the row in each round, over all trainings of the round."""
    score: float
    """The policy's score before the last step; the ranks below count from 1, and ties go to the smaller id."""
    rank: int
    class_rank: int
    likelihood: float
    """The row's probability of being drawn within its class, as a multiple of a uniform draw's."""


def learning_curve(run: str | Run) -> pa.Table:
    """One line per finished round; works while the run is still learning, too."""
    lines = []
    for folder in round_folders(open_run(run) if isinstance(run, str) else run):
        account = read_account(folder)
        update = account.pop("update")
        account.pop("reports")
        gain = account["performance"] - account["start"]
        lines.append(account | {"gain": gain, "ratio": update.pop("last_ratio", None)} | update)
    return pa.Table.from_pylist(lines)


def picks_over_time(run: str | Run, by: str | None = None, stretches: int = STRETCHES) -> pa.Table:
    """Picks of the final training by source, class and a column of the rows' meta, with each value's share of the pool."""
    run = open_run(run) if isinstance(run, str) else run
    pool, episode = _pool(run), _final(run)[1]
    labels = {SOURCE: _labels(run, pool, SOURCE), CLASS: pa.array(pool.classes).cast(pa.string())}
    labels |= {by: _labels(run, pool, by)} if by else {}
    lines = []
    for column, values in labels.items():
        codes, names = _codes(values)
        of_pool = np.bincount(codes, minlength=len(names)) / len(pool)
        for first, last in _stretches(episode.steps, stretches):
            picked = positions(pool, np.concatenate(episode.picks[first:last]))
            counts = np.bincount(codes[picked], minlength=len(names))
            when = {"first_step": first + 1, "last_step": last, "column": column}
            for name, count, usual in zip(names, counts.tolist(), of_pool.tolist(), strict=True):
                share = {"picks": count, "share": count / len(picked), "pool_share": usual}
                lines.append(when | {"value": name} | share)
    return pa.Table.from_pylist(lines)


def row_story(run: Run, row_id: int) -> RowStory | None:
    """The story of a row; None if the policy could not pick it, for lack of features or of anything to learn."""
    from raysift.policy.picking import Picker

    pool, (final, episode) = _pool(run), _final(run)
    if row_id not in pool.ids:
        return None
    place = int(positions(pool, row_id))
    settings = PolicySettings.model_validate(final.settings["policy"])
    ((state, _),) = deque(replay(episode, pool), maxlen=1)
    scores = Picker(pool, settings, _network(run)).scores(state)
    ahead = (scores > scores[place]) | ((scores == scores[place]) & (pool.ids < row_id))
    mine = pool.classes == pool.classes[place]
    weights = np.exp((scores[mine] - scores[place]) / settings.temperature)
    return RowStory(
        class_number=int(pool.classes[place]),
        class_rows=int(mine.sum()),
        steps=_steps_with(episode, row_id),
        rounds=[sum(len(_steps_with(one, row_id)) for one in load_episodes(folder)) for folder in round_folders(run)],
        score=float(scores[place]),
        rank=int(ahead.sum()) + 1,
        class_rank=int((ahead & mine).sum()) + 1,
        likelihood=float(1 / weights.mean()),
    )


def show_policy(run: Run, console: Console, by: str | None = None) -> None:
    """Print the rounds so far and, once the run has finished, what its final training picked."""
    if round_folders(run):
        _show_rounds(learning_curve(run).to_pylist(), console)
    if read_manifest(run.folder / "order") is None or read_manifest(run.folder / "final") is None:
        return
    final, episode = _final(run)
    _show_stretches(episode, int(final.settings["train"]["batch_size"]), console)
    lines = picks_over_time(run, by).to_pylist()
    for column in dict.fromkeys(line["column"] for line in lines):
        rows: dict[str | None, list[Any]] = {}
        for line in lines:
            if line["column"] == column:
                rows.setdefault(line["value"], [_percent(line["pool_share"])]).append(_percent(line["share"]))
        if len(rows) > 1:
            title = f"Picks by {column} in the final training"
            heads = ["", "pool", *(f"to step {last}" for _, last in _stretches(episode.steps, STRETCHES))]
            cells = [["(none)" if value is None else value, *shares] for value, shares in rows.items()]
            console.table(title, heads, cells)


def show_row(story: RowStory, console: Console) -> None:
    """Print a row's story: numbers only, no text of the row."""
    lines: list[list[object]] = [["class", f"{story.class_number} ({story.class_rows:,} rows)"]]
    lines += [["picked in the final training", _times(len(story.steps), "step", story.steps)]]
    if story.rounds:
        rounds = [number for number, times in enumerate(story.rounds, 1) if times]
        lines += [["picked in learning", _times(sum(story.rounds), "round", rounds)]]
    lines += [
        ["policy's score before the last step", f"{story.score:.4f}"],
        ["rank by it", f"{story.rank:,}; in its class {story.class_rank:,}"],
        ["probability in its class", f"{story.likelihood:.3g} times that of a uniform draw"],
    ]
    console.table("Under the policy", ["", "value"], lines)


def round_folders(run: Run) -> list[Location]:
    """Folders of the finished rounds; works while the run is still learning, too."""
    learned = read_manifest(run.folder / "learn")
    if learned:
        return finished_rounds(learned.home / learned.fingerprint / "rounds")[: learned.values["rounds"]]
    begun = [event for event in read_events(run.folder) if event["stage"] == "learn"]
    latest = [event["fingerprint"] for event in begun if "fingerprint" in event]
    return finished_rounds(run.folder / "learn" / latest[-1] / "rounds") if latest else []


def _finished(run: Run, stage: str) -> Manifest:
    manifest = read_manifest(run.folder / stage)
    if manifest is None:
        raise ConfigError(
            f"raise: {run.folder} has not finished the stage {stage}. Name a finished run of `raysift raise`."
        )
    return manifest


def _pool(run: Run) -> PolicyPool:
    """The rows that the policy could pick."""
    chunks = read_chunks(run.files(_finished(run, "order"), "scores"), [ID, SCORE])
    ids = np.concatenate([chunk.filter(chunk[SCORE].is_valid())[ID].to_numpy() for chunk in chunks])
    return restrict(read_pool(run.files(_finished(run, "features"), "features")[0]), ids)


def _final(run: Run) -> tuple[Manifest, Episode]:
    """The final training and its log."""
    final = _finished(run, "final")
    log = run.files(final, "log")[0]
    return final, Episode(pq.read_table(log.path, filesystem=log.fs))


def _network(run: Run) -> Acquisition:
    """The policy of the final training, learned here or in the run that `policy_from` names."""
    from raysift.jobs.policy.transfer import learnt_by

    learned = read_manifest(run.folder / "learn")
    return load_policy(
        run.files(learned, "policy")[0] if learned else learnt_by(getattr(run.config(), "raise")).policy
    )[0]


def _labels(run: Run, pool: PolicyPool, column: str) -> pa.Array:
    """The group of each row of the pool."""
    return look_up(pool.ids, *labels_of(run, _finished(run, "ingest"), column))


def _codes(values: pa.Array) -> tuple[NDArray[np.int64], list[str | None]]:
    """A code for each row, and the codes' names: the most frequent values, sorted by name; the rest become `(others)`."""
    cells = values.dictionary_encode(null_encoding="encode")
    names, codes = cells.dictionary.to_pylist(), cells.indices.to_numpy()
    counts = np.bincount(codes)
    kept = sorted(range(len(names)), key=lambda k: (-counts[k], names[k] or ""))[:SHOWN_VALUES]
    kept.sort(key=lambda k: names[k] or "")
    renumbered = np.full(len(names), len(kept), np.int64)
    renumbered[kept] = np.arange(len(kept))
    return renumbered[codes], [*(names[k] for k in kept), *([OTHERS] if len(kept) < len(names) else [])]


def _stretches(steps: int, count: int) -> list[tuple[int, int]]:
    """(first, last) of `count` stretches of steps, `first` excluded; one stretch per step if there are fewer steps."""
    count = min(count, steps)
    return list(pairwise(round(part * steps / count) for part in range(count + 1)))


def _steps_with(episode: Episode, row_id: int) -> list[int]:
    return [step for step, batch in enumerate(episode.picks, 1) if row_id in batch]


def _show_rounds(lines: list[dict[str, Any]], console: Console) -> None:
    """Print the learning curve: each round's performance as a mark between the lowest and the highest."""
    start, ends = lines[0]["start"], [line["performance"] for line in lines]
    low, high = min(start, *ends), max(start, *ends)

    def dot(value: float) -> str:
        place = round((value - low) / (high - low) * (DOTS - 1)) if high > low else 0
        return "." * place + "#" + "." * (DOTS - 1 - place)

    every = -(-len(lines) // SHOWN_ROUNDS)
    rows: list[list[Any]] = [["start", _number(start), dot(start), _number(lines[0]["report_start"]), *[None] * 3]]
    for line in lines:
        if line["round"] % every == 0 or line is lines[-1]:
            report, clipped, entropy = (_number(line[name]) for name in ("report", "clipped", "entropy"))
            ends = [_number(line["performance"]), dot(line["performance"]), report]
            rows.append([str(line["round"]), *ends, round(line["distinct_rows"]), clipped, entropy])
    heads = ["round", "performance", "lowest to highest", "report", "rows", "clipped", "entropy"]
    console.table(f"Rounds ({len(lines)}, of {round(lines[0]['picks']):,} picks each)", heads, rows)


def _show_stretches(episode: Episode, size: int, console: Console) -> None:
    """Print performance, mean loss and the share of repeated picks over the final training."""
    known, losses, every = (
        episode.known_performance,
        episode.table["loss"].to_numpy()[1:],
        np.concatenate(episode.picks),
    )
    repeated = np.ones(len(every), np.bool_)
    repeated[np.unique(every, return_index=True)[1]] = False
    ends = np.cumsum([0, *map(len, episode.picks)])
    rows = [
        [
            f"{first + 1}-{last}" if first + 1 < last else str(last),
            _number(known[last]),
            _number(float(np.mean(losses[first:last]))),
            _percent(float(repeated[ends[first] : ends[last]].mean())),
        ]
        for first, last in _stretches(episode.steps, STRETCHES)
    ]
    title = f"Final training: {episode.steps:,} steps of {size} rows"
    console.table(title, ["steps", "performance", "loss", "picked before"], rows)


def _times(count: int, what: str, places: Sequence[int]) -> str:
    shown = ", ".join(f"{place:,}" for place in places[:SHOWN_STEPS]) + (" ..." if len(places) > SHOWN_STEPS else "")
    return f"{count:,} times: in {what} {shown}" if places else "never"


def _number(value: float | None) -> str | None:
    """Four decimals unless the number is tiny, so that numbers in a column align."""
    return None if value is None else f"{value:.4f}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if abs(share) >= 0.0995 or share == 0 else f"{100 * share:.1f}%"
