"""RDS+: the cosines of all rows with the target examples, and the scores from them."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq

from raysift.actors.state_match import StateMatch
from raysift.config import CommonConfig
from raysift.evaluation.examples import reference_answer
from raysift.gradients.influence import TargetColumns, weigh_checkpoints
from raysift.jobs import stages
from raysift.jobs.gradients.stages import empty_scores, matches_of, score_table
from raysift.jobs.gradients.targeting import TargetMembers, content_key, subtask_of, target_files
from raysift.jobs.runs.models import find_model
from raysift.jobs.runs.run import Run, StageResult
from raysift.jobs.runs.tables import count_answers, count_true, publish, relative
from raysift.manifest import Manifest
from raysift.methods.rds import Rds
from raysift.pool.files import fingerprint_files
from raysift.scoring.columns import TRUNCATED
from raysift.storage import Location


def similarity(run: Run, config: CommonConfig, selector: Rds, found: TargetMembers, rows: Manifest) -> Manifest:
    """Run the model to be trained once over each row, with the template and maximum length of its training."""
    from raysift.jobs.on_ray.fitting import need_to_answer, with_room
    from raysift.jobs.on_ray.raydata import map_rows

    model, train, settings = find_model(run, config), config.train, selector.config
    members = sorted(found.members, key=content_key)  # they pick in this order, for any order of files
    columns = TargetColumns(
        tuple(example.id for example in members),
        tuple(found.target_of.get(subtask_of(example), 0) for example in members),
        settings.match.target_weights or (1.0,),
    )
    conversations = [
        [
            *({"role": message.role, "content": message.content} for message in example.prompt),
            {"role": "assistant", "content": reference_answer(example)},
        ]
        for example in members
    ]

    def body(folder: Location) -> StageResult:
        arguments: dict[str, Any] = {"model": model.name, "targets": conversations, "template": train.template}
        arguments |= {"max_length": train.max_length, "dtype": train.dtype}
        total, schema, files = rows.counts["kept"], selector.score_schema(), run.files(rows, "rows")

        def match(own: CommonConfig) -> list[Location]:
            loaded = arguments | stages.placing(own)
            return map_rows(files, StateMatch, loaded, folder, own.resources, rows=total, progress=run.progress)

        answers = with_room(run, "similarity", config, need_to_answer(config, model.name), match, "embed")
        counts = count_answers("similarity", answers, total) | {"truncated": count_true(answers, TRUNCATED)}
        stages.require_answers("similarity", run, answers, counts, folder)
        place = folder / "scores.parquet"
        with pq.ParquetWriter(place.path, schema, filesystem=place.fs, compression="zstd") as writer:
            for ids, matches, failed in matches_of(answers, 1, len(conversations)):
                by_example = weigh_checkpoints(matches, [1.0])
                writer.write_table(score_table(schema, ids, by_example, columns, settings.match))
                writer.write_table(empty_scores(schema, failed))
        written = {"scores": ["scores.parquet"], "answers": relative(answers, folder)}
        return StageResult(files=written, counts=counts, rows=total)

    inputs = {
        "rows": rows.fingerprint,
        "target": fingerprint_files(target_files(config)),
        "model": model.identity,
    }
    decides = {name: getattr(train, name) for name in ("template", "max_length", "dtype")}
    decides |= {"match": settings.match, "drawn": dict(found.drawn), "split": settings.targets.split}
    manifest = run.stage("similarity", decides, inputs, body)
    publish(run.files(manifest, "scores")[0], run.folder / "scores.parquet")
    return manifest
