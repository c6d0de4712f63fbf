"""The stages of MoDS beyond quality and coverage: the model's own answers, what they are worth, and the order of the rows.

Rows that a stage sets aside keep their scores in its tables. The last stage, `order`, records what became of every row of
the pool.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysift.actors.language_model import resolve_model
from raysift.actors.prompts import ANSWER, FINISHED
from raysift.config import CommonConfig
from raysift.errors import ConfigError
from raysift.jobs.cluster.machines import for_role
from raysift.jobs.coverage.centers import choose_centers, chosen_rows, rows_without_vector, write_centers
from raysift.jobs.runs.chosen_rows import rows_in_order
from raysift.jobs.runs.models import computing, find_model, number_type, without_models
from raysift.jobs.runs.run import Run, StageResult
from raysift.jobs.runs.tables import CHUNK_ROWS, Tally, count_answers, publish, read_ids, read_numbers, relative
from raysift.jobs.scoring.quality import score_answers, score_column
from raysift.jobs.stages import asked_as_trained, require_answers, trained_model
from raysift.manifest import Manifest
from raysift.methods import Selector
from raysift.methods.mods import CHOSEN, NECESSITY, QUALITY, ModsConfig, Stages, place_rows
from raysift.records import ERROR, FATE, ID, MESSAGES, META, ORDER, RADIUS, ROWS
from raysift.scoring.questions import with_answers
from raysift.settings.generation import TRANSFORMERS
from raysift.storage import Location, open_location


def check_room(config: CommonConfig, settings: ModsConfig) -> None:
    """Refuse answers so long that no prompt fits before them, if the model's own files state its maximum length."""
    card = open_location(resolve_model(config.model, "tokenizer")) / "config.json"
    described = json.loads(card.read_text()) if card.exists() else {}
    positions, asked = described.get("max_position_embeddings"), settings.generation.max_new_tokens
    if settings.seed_share < 1 and positions and positions <= asked:
        raise ConfigError(
            f"mods.generation.max_new_tokens={asked} leaves no room for a prompt: the model '{config.model}' has {positions} "
            "positions for prompt and answer together. Lower it, or take a model with more."
        )


def only_seeds(run: Run, settings: ModsConfig, good: Manifest, seeds: Manifest, total: int) -> bool:
    """Whether the seeds are the whole selection: all the rows asked for, or all good rows there are."""
    found, there = seeds.counts["kept"], good.counts["kept"]
    if found < min(total, there) and settings.seed_share < 1:
        return False
    if found < total and settings.seed_share < 1:
        run.console.note(
            f"seeds: {total} rows asked, and the seeds are all {there} good rows there are; no model is tuned to find more. "
            "A lower mods.alpha lets more rows count as good"
        )
    return True


def generate(run: Run, config: CommonConfig, settings: ModsConfig, rows: Manifest, tuned: Manifest) -> Manifest:
    """Let the model that was tuned on the seeds answer the question of every good row."""
    from raysift.jobs.on_ray.fitting import need_to_answer, with_room
    from raysift.jobs.on_ray.generation import describe_backend, pick_backend, recorded_backend
    from raysift.jobs.on_ray.generation import generate as answer_all

    base = find_model(run, config)
    model, adapter = trained_model(run, tuned, base.name)
    train = settings.seed_train or config.train
    asked = asked_as_trained(run, "generate", "mods.generation", settings.generation, model, adapter, train)

    def body(folder: Location) -> StageResult:
        def work(own: CommonConfig) -> list[Location]:
            return answer_all(
                run.files(rows, "rows"),
                model,
                folder,
                asked,
                own.resources,
                adapter=adapter,
                dtype=number_type(own, base.name),
                trust_remote_code=own.trust_remote_code,
                rows=rows.counts["kept"],
                progress=run.progress,
            )

        placed = for_role(config, "generate").resources
        need = need_to_answer(config, base.name) if pick_backend(asked, placed) == TRANSFORMERS else None
        answers = with_room(run, "generate", config, need, work, "generate")
        run.console.note(f"generate: {describe_backend(asked, placed, folder)}")
        finished = Tally(FINISHED)
        counts = count_answers("generate", answers, rows.counts["kept"], [FINISHED], finished)
        require_answers("generate", run, answers, counts, folder)
        cut_off = counts["kept"] - finished.counts[FINISHED]
        if cut_off:
            run.console.note(
                f"generate: {cut_off} of {counts['kept']} answers reached max_new_tokens="
                f"{asked.max_new_tokens} and were cut off"
            )
        return StageResult(
            files={"answers": relative(answers, folder)},
            counts=counts | {"cut_off": cut_off},
            values=recorded_backend(folder),
            rows=counts["rows_in"],
        )

    inputs = {"rows": rows.fingerprint, "model": computing(config, base), "tuned": tuned.fingerprint}
    return run.stage("generate", {"generation": asked.deciding()}, inputs, body)


def necessity(run: Run, config: CommonConfig, settings: ModsConfig, rows: Manifest, answers: Manifest) -> Manifest:
    """Score the model's own answers as the rows' answers were scored; a row without one has no necessity."""
    scorer = settings.necessity_scorer
    judge = find_model(run, config, scorer.scorer)

    def body(folder: Location) -> StageResult:
        found = scorer.model_copy(update={"model": judge.name})
        asked, failed = _own_conversations(run.files(rows, "rows"), run.files(answers, "answers"), folder)
        result = score_answers("necessity", run, config, found, asked, rows.counts["kept"] - failed, folder)
        counts = {**result.counts, "rows_in": rows.counts["kept"], "failed": result.counts["failed"] + failed}
        return StageResult(files=result.files, counts=counts, rows=rows.counts["kept"])

    inputs = {"rows": rows.fingerprint, "answers": answers.fingerprint, "scorer": computing(config, judge)}
    return run.stage("necessity", {"scorer": without_models(scorer)}, inputs, body)


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
        if len(ids) != count:
            run.console.note(
                f"augmented: {count} rows asked, {len(ids)} taken; mods.second_coverage is off, so every row below beta is "
                "taken, and no other"
            )
        write_centers(ids, folder)
        return chosen_rows(run, needed, ids, count, folder, {})

    decides = {"second_coverage": False, "count": count}
    return run.stage("augmented", decides, {"needed": needed.fingerprint, "seeds": seeds.fingerprint}, body)


def order(
    run: Run,
    selector: Selector,
    scored: Manifest,
    good: Manifest,
    vectors: Manifest,
    seeds: Manifest,
    needed: Sequence[Manifest] = (),
) -> Manifest:
    """Seeds, then augmented rows, and the fate of every row; `needed`: necessity, needed rows, augmented rows."""
    settings: Any = selector.config
    column = score_column(settings)

    def body(folder: Location) -> StageResult:
        found = Stages(
            read_numbers(run.files(scored, "answers"), column, QUALITY),
            read_ids(run.files(good, "rows")),
            read_numbers(run.files(seeds, "centers"), RADIUS, RADIUS),
            no_vector=rows_without_vector(run, vectors),
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
        schema = selector.score_schema()
        with pq.ParquetWriter((folder / "scores.parquet").path, schema, filesystem=folder.fs, compression="zstd") as to:
            for start in range(0, len(table), CHUNK_ROWS):
                to.write_table(table.slice(start, CHUNK_ROWS).cast(schema))
        fates = {fate["values"]: fate["counts"] for fate in pc.value_counts(table[FATE]).to_pylist()}
        fates = dict(sorted(fates.items()))
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
    """The rows with the model's own answer in place of theirs, as files, and how many have none.

    They are in the order of the rows: which rows are judged side by side then does not depend on the order of the answers
    in their files, which differs after a kill. Rows and answers are each read once.
    """
    parts = (folder / "conversations").make_folder()
    files: list[Location] = []
    failed = 0
    there = pq.read_schema(rows[0].path, filesystem=rows[0].fs).names if rows else []
    columns = [name for name in (ID, MESSAGES, META) if name in there]
    ids = read_ids(rows)
    told = rows_in_order(rows, ids, columns, folder / "work", answers, (ANSWER, ERROR)) if len(ids) else ()
    for part in told:
        sound = part.filter(part[ERROR].is_null())
        failed += len(part) - len(sound)
        talks = with_answers(*(sound[name].combine_chunks() for name in (MESSAGES, ANSWER)))
        place = parts / f"part-{len(files):05d}.parquet"
        spoken = sound.select(columns).set_column(columns.index(MESSAGES), ROWS.field(MESSAGES), talks)
        pq.write_table(spoken, place.path, filesystem=place.fs, compression="zstd")
        files.append(place)
    return files, failed
