"""The first screen: what came out, in one sentence, the few headline numbers, and the command that repeats it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from raysift.jobs.report.features import ANSWER, PROMPT
from raysift.jobs.report.gather import Gathered
from raysift.jobs.report.groups import source_counts
from raysift.jobs.runs.replay import command_of
from raysift.jobs.runs.tables import sum_tokens
from raysift.records import ID
from raysift.report.bins import by_rank
from raysift.report.blocks import Block, Fact, Facts, Section, Text
from raysift.report.words import amount, largest_sources, share

LIKE_LONGEST = 0.5
REPEAT = "The command that repeats it"


def verdict_section(found: Gathered) -> Section:
    """The verdict of any run."""
    lead = _selected(found) if found.choose else _unfinished(found) or _done(found)
    blocks: list[Block] = [Facts(items=tuple(fact for fact in _facts(found) if fact.value is not None))]
    if found.made_with.get("method"):
        blocks.append(Text(title=REPEAT, text=command_of(found.made_with), note=f"or: {_from_file(found)}"))
    return Section(key="verdict", title="Verdict", lead=lead, blocks=tuple(blocks))


def _from_file(found: Gathered) -> str:
    return f"raysift {found.made_with['method']} --config {found.run.folder}/run.yaml --run NEW"


def _selected(found: Gathered) -> str:
    count, rows = len(found.ids), found.pool_rows
    parts = [f"{share(count, rows)} of {rows:,} rows ({count:,}), {_size(found)}"]
    pool, selected = source_counts(found)
    parts += [text] if (text := largest_sources(selected, len(pool))) else []
    like = overlap_with_longest(found)
    if like is not None:
        shared, by_chance = like
        told = f"{share(shared, 1)}, {share(by_chance, 1)} by chance"
        like_it = shared >= LIKE_LONGEST
        parts.append(f"{'hardly told from' if like_it else 'little like'} taking the longest answers (overlap {told})")
    parts += [found.null.sentence] if found.null and found.null.above is not None else []
    return "; ".join(parts) + "."


def overlap_with_longest(found: Gathered) -> tuple[float, float] | None:
    """Rows shared with as many of the longest answers, over the rows of both, and what chance would give; in the sample."""
    features = found.pool.features
    chosen = np.isin(features[ID].to_numpy(), found.ids)
    taken, rows = int(chosen.sum()), len(features)
    if not 0 < taken < rows:
        return None
    longest = by_rank(features[ANSWER].to_numpy(), features[ID].to_numpy())[:taken]
    shared, expected = int(chosen[longest].sum()), taken * taken / rows
    return shared / (2 * taken - shared), expected / (2 * taken - expected)


def tokens_of(found: Gathered) -> int | None:
    """Tokens of the selection, where a stage counted them."""
    if found.choose and "tokens" in found.choose.counts:
        return int(found.choose.counts["tokens"])
    lengths = found.stage("lengths")
    return sum_tokens(found.run.files(lengths, "answers"), found.ids) if lengths and found.choose else None


def characters_of(found: Gathered) -> int:
    """Characters of the selection; scaled up from a sample of it where it is large."""
    features = found.picked.features
    total = int(sum(int(features[name].to_numpy().sum()) for name in (PROMPT, ANSWER)))
    return round(total * len(found.ids) / max(1, len(features)))


def _size(found: Gathered) -> str:
    tokens = tokens_of(found)
    return f"{amount(characters_of(found))} characters" if tokens is None else f"{amount(tokens)} tokens"


def stopped_in(event: Mapping[str, Any]) -> str:
    """The stage that failed, and its error as a sentence."""
    error = str(event.get("error", "no error told")).removeprefix(f"{event['stage']}: ").rstrip()
    return f"{event['stage']}: {error}{'' if error.endswith(('.', '!', '?')) else '.'}"


def _unfinished(found: Gathered) -> str:
    """What to do with a run that is not at its end; nothing for one that has nothing left to do."""
    last = found.events[-1] if found.events else {}
    if last.get("event") == "failed":
        return f"Stopped in {stopped_in(last)} The same command continues the run."
    if found.stage("search") is not None:
        return ""  # its stages of other classes lie in folders of their own
    begun = {event["stage"] for event in found.events} - {manifest.stage for manifest in found.manifests}
    if begun or (found.made_with.get("method") and found.stage("search") is None):
        done = ", ".join(manifest.stage for manifest in found.manifests) or "nothing"
        return f"Not finished. Done: {done}. The same command continues the run."
    return ""


def _done(found: Gathered) -> str:
    """The result of a run that selects nothing."""
    parts = []
    if (tried := found.stage("search")) is not None:
        parts.append(f"{len(tried.values['trials']):,} settings of the policy were tried")
    if (won := found.stage("win_rate")) is not None:
        total: dict[str, Any] = won.values["total"]
        told = {name: value for name, value in total.items() if isinstance(value, int | float)}
        parts.append("; ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in told.items()))
    if (trained := found.stage("final")) is not None and trained.values.get("mean_losses"):
        losses = trained.values["mean_losses"]
        rows = trained.counts.get("rows_trained", trained.counts.get("rows_in", 0))
        parts.append(
            f"trained on {rows:,} rows; mean loss {losses[0]:.3f} in the first epoch, {losses[-1]:.3f} in the last"
        )
    if (tested := found.stage("evaluate")) is not None and tested.values["overall"]["mean"] is not None:
        overall = tested.values["overall"]
        parts.append(f"score {overall['mean']:.3f} on {overall['n']:,} examples")
    if not parts and found.ingest is not None:
        counts = found.ingest.counts
        parts.append(f"{counts['kept']:,} of {counts['rows_in']:,} rows were kept")
    text = "; ".join(parts) or "Nothing is done yet"
    return f"{text[:1].upper()}{text[1:]}."


def _facts(found: Gathered) -> list[Fact]:
    ingest, made = found.ingest, found.made_with
    facts = [
        Fact(name="method", value=made.get("method")),
        Fact(name="model", value=made.get("model")),
        Fact(name="rows of the pool", value=ingest.counts["rows_in"] if ingest else None, type="count"),
        Fact(name="kept", value=ingest.counts["kept"] if ingest else None, type="count"),
    ]
    if found.choose:
        count = len(found.ids)
        facts += [
            Fact(name="selected", value=count, type="count"),
            Fact(name="share", value=count / max(1, found.pool_rows), type="percent"),
            Fact(name="tokens", value=tokens_of(found), type="count"),
            Fact(name="characters", value=characters_of(found), type="count"),
            Fact(name="sources", value=len(source_counts(found)[0]), type="count"),
            Fact(name="fingerprint", value=found.choose.fingerprint, type="id"),
        ]
    seconds = sum(one.seconds for one in found.manifests if not one.reused_from)
    facts.append(Fact(name="computed in", value=round(seconds, 1), type="seconds"))
    return facts
