"""The stages of MoDS beyond quality and coverage: the model's own answers, what they are worth, and the order of the rows.

Rows that a stage sets aside keep their scores in its tables, and the last stage, `order`, says of every row of the pool what
became of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysift.actors.prompts import ANSWER, FINISHED
from raysift.config import CommonConfig
from raysift.jobs.centers import choose_centers, chosen_rows, write_centers
from raysift.jobs.quality import score_answers, score_column
from raysift.jobs.run import Run, StageResult
from raysift.jobs.selection import rows_in_order
from raysift.jobs.stages import model_fingerprint, trained_model
from raysift.jobs.tables import count_answers, count_true, publish, read_chunks, read_ids, read_numbers, relative
from raysift.manifest import Manifest
from raysift.methods import Selector
from raysift.methods.mods import CHOSEN, NECESSITY, QUALITY, ModsConfig, Stages, place_rows
from raysift.records import ERROR, FATE, ID, MESSAGES, ORDER, RADIUS, ROWS
from raysift.scoring.questions import split_exchange
from raysift.storage import Location


def generate(run: Run, config: CommonConfig, settings: ModsConfig, rows: Manifest, tuned: Manifest) -> Manifest:
    """Let the model that was tuned on the seeds answer the question of every good row."""
    from raysift.jobs.generation import generate as answer_all
    from raysift.jobs.generation import recorded_backend

    model, adapter = trained_model(run, tuned, config.model)

    def body(folder: Location) -> StageResult:
        answers = answer_all(
            run.files(rows, "rows"),
            model,
            folder,
            settings.generation,
            config.resources,
            adapter=adapter,
            trust_remote_code=config.trust_remote_code,
            progress=run.console.shows_progress,
        )
        backend = recorded_backend(folder)
        run.console.note(f"generate: answered by {backend['backend']} {backend['version']}")
        counts = count_answers("generate", answers, rows.counts["kept"])
        cut_off = counts["kept"] - count_true(answers, FINISHED)
        if cut_off:
            run.console.note(
                f"generate: {cut_off} of {counts['kept']} answers reached max_new_tokens="
                f"{settings.generation.max_new_tokens} and were cut off"
            )
        return StageResult(
            files={"answers": relative(answers, folder)},
            counts=counts | {"cut_off": cut_off},
            values=backend,
            rows=counts["rows_in"],
        )

    inputs = {"rows": rows.fingerprint, "model": model_fingerprint(config.model), "tuned": tuned.fingerprint}
    return run.stage("generate", {"generation": settings.generation}, inputs, body)


def necessity(run: Run, config: CommonConfig, settings: ModsConfig, rows: Manifest, answers: Manifest) -> Manifest:
    """Score the model's own answers as the rows' were scored; a row without one has no necessity."""
    scorer = settings.scorer.model_copy(update={"trailing_newline": settings.necessity_newline})

    def body(folder: Location) -> StageResult:
        asked, failed = _own_conversations(run.files(rows, "rows"), run.files(answers, "answers"), folder)
        result = score_answers("necessity", run, config, scorer, asked, rows.counts["kept"] - failed, folder)
        counts = {**result.counts, "rows_in": rows.counts["kept"], "failed": result.counts["failed"] + failed}
        return StageResult(files=result.files, counts=counts, rows=rows.counts["kept"])

    inputs = {"rows": rows.fingerprint, "answers": answers.fingerprint, "scorer": model_fingerprint(scorer.scorer)}
    return run.stage("necessity", {"scorer": scorer}, inputs, body)


def augment(
    run: Run,
    config: CommonConfig,
    settings: ModsConfig,
    needed: Manifest,
    vectors: Manifest,
    seeds: Manifest,
    count: int,
) -> Manifest:
    """The needed rows that are taken beside the seeds: `count` by k-center, or all of them (`second_coverage` off)."""
    if settings.second_coverage:
        apart = settings.second_from == "seeds"
        return choose_centers(run, config, "augmented", settings.centers, needed, vectors, count, seeds, apart)

    def body(folder: Location) -> StageResult:
        ids = np.setdiff1d(read_ids(run.files(needed, "rows")), read_ids(run.files(seeds, "centers")))
        write_centers(ids, folder)
        return chosen_rows(run, "augmented", needed, ids, len(ids), folder, {})

    return run.stage(
        "augmented", {"second_coverage": False}, {"needed": needed.fingerprint, "seeds": seeds.fingerprint}, body
    )


def order(
    run: Run,
    selector: Selector,
    scored: Manifest,
    good: Manifest,
    seeds: Manifest,
    needed: Sequence[Manifest] = (),
) -> Manifest:
    """Seeds, then augmented rows, and of every row what became of it; `needed`: necessity, needed rows, augmented rows."""
    settings: Any = selector.config
    column = score_column(settings)

    def body(folder: Location) -> StageResult:
        found = Stages(
            read_numbers(run.files(scored, "answers"), column, QUALITY),
            read_ids(run.files(good, "rows")),
            read_numbers(run.files(seeds, "centers"), RADIUS, RADIUS),
        )
        if needed:
            answers, unknown, augmented = needed
            found = replace(
                found,
                necessity=read_numbers(run.files(answers, "answers"), column, NECESSITY),
                needed=read_ids(run.files(unknown, "rows")),
                augmented=read_numbers(run.files(augmented, "centers"), RADIUS, RADIUS),
            )
        table = place_rows(found)
        pq.write_table(table, (folder / "scores.parquet").path, filesystem=folder.fs, compression="zstd")
        fates = dict(sorted(Counter(table[FATE].to_pylist()).items()))
        chosen = len(table) - table[ORDER].null_count
        return StageResult(
            files={"scores": ["scores.parquet"]},
            counts={
                "rows_in": len(table),
                "kept": chosen,
                "rejected": {k: n for k, n in fates.items() if k not in CHOSEN},
            },
            values={"fates": fates},
            rows=len(table),
        )

    parts = {"quality": scored, "good": good, "seeds": seeds}
    parts |= dict(zip(("necessity", "needed", "augmented"), needed, strict=False))
    manifest = run.stage("order", {"method": selector.name}, {name: m.fingerprint for name, m in parts.items()}, body)
    publish(run.files(manifest, "scores")[0], run.folder / "scores.parquet")
    return manifest


def _own_conversations(
    rows: Sequence[Location], answers: Sequence[Location], folder: Location
) -> tuple[list[Location], int]:
    """The rows with the model's own answer in place of theirs, as files, and how many have none."""
    parts = (folder / "conversations").make_folder()
    files: list[Location] = []
    failed = 0
    for chunk in read_chunks(answers, [ID, ANSWER, ERROR]):
        sound = chunk.filter(chunk[ERROR].is_null())
        failed += len(chunk) - len(sound)
        own = sound[ANSWER].to_pylist()
        done = 0
        for table in rows_in_order(rows, sound[ID].to_numpy()):
            texts = own[done : done + len(table)]
            talks = [
                split_exchange(m, text).messages for m, text in zip(table[MESSAGES].to_pylist(), texts, strict=True)
            ]
            place = parts / f"part-{len(files):05d}.parquet"
            columns = {ID: table[ID], MESSAGES: pa.array(talks, ROWS.field(MESSAGES).type)}
            pq.write_table(pa.table(columns), place.path, filesystem=place.fs, compression="zstd")
            files.append(place)
            done += len(table)
    return files, failed
