"""The stages of RAISE: encode rows, split the target, learn the policy, train under it, and record each row's fate.

`features.py` computes the policy's features of the rows; `learning.py` runs the rounds, and `episodes.py` their trainings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysift.actors.effective_batches import EncodeRows
from raysift.actors.frozen_training import FrozenTraining
from raysift.config import CommonConfig
from raysift.draws import seed_for, uniform_of
from raysift.errors import ConfigError, DataError
from raysift.evaluation.examples import example_key, read_examples, reference_answer
from raysift.fingerprint import file_fingerprint
from raysift.jobs.cluster.machines import for_role
from raysift.jobs.on_ray.counts import counted
from raysift.jobs.on_ray.fitting import with_room
from raysift.jobs.policy.episodes import most_processes_of, ray_fleet
from raysift.jobs.policy.learning import learn_rounds
from raysift.jobs.policy.setups import make_setup, need_of, place_of, token_files
from raysift.jobs.policy.token_stage import write_token_files
from raysift.jobs.pool.target_check import compare_with_pool
from raysift.jobs.runs import checks
from raysift.jobs.runs.chosen_rows import chosen_chunks
from raysift.jobs.runs.models import adapter_input, find_model
from raysift.jobs.runs.run import Run, StageResult
from raysift.jobs.runs.samples import texts_of
from raysift.jobs.runs.tables import count_answers, publish, read_ids, relative
from raysift.manifest import Manifest
from raysift.methods.raise_policy import count_policy_steps, departures, place_picks
from raysift.policy.drawing import FINAL_DRAW, Draw
from raysift.policy.pool import read_pool
from raysift.policy.saved import POLICY, ROUND, finished_rounds, kept_round, load_policy, read_account
from raysift.policy.settings import RaiseConfig
from raysift.policy.state import Episode
from raysift.policy.verdict import DOUBT, PolicyStory, describe_policy
from raysift.pool.files import SourceFile, find_files, fingerprint_files
from raysift.pool.given_input import input_meta
from raysift.pool.id_text import id_text
from raysift.records import FATE, ID, MESSAGE, MESSAGES, META, Example
from raysift.settings.roles import LEARN
from raysift.storage import Location

ROUNDS = "rounds"
CURRICULUM, CURRICULUM_ROWS, PICKS_LOG = "curriculum.parquet", "curriculum.jsonl", "log.parquet"
_TARGET = pa.schema([(ID, pa.int64()), (MESSAGES, pa.list_(MESSAGE)), (META, pa.string())])


def encode(run: Run, config: CommonConfig, rows: Manifest) -> Manifest:
    """Encode every row as the tokens that a training sees."""
    from raysift.jobs.on_ray.raydata import map_rows

    model = find_model(run, config, part="tokenizer")

    def body(folder: Location) -> StageResult:
        arguments = {
            "model": model.name,
            "template": config.train.template,
            "max_length": config.train.max_length,
            "trust_remote_code": config.trust_remote_code,
        }
        files = run.files(rows, "rows")
        total = rows.counts["kept"]
        own = for_role(config, "tokenise").resources
        answers = map_rows(files, EncodeRows, arguments, folder, own, rows=total, progress=run.progress)
        counts = count_answers("encode", answers, rows.counts["kept"])
        tokens = write_token_files(answers, total, folder, for_role(config, "reduce").resources)
        return StageResult(
            files={"answers": relative(answers, folder), "tokens": relative(tokens, folder)},
            counts=counts,
            rows=counts["rows_in"],
        )

    settings = {"template": config.train.template, "max_length": config.train.max_length, "files": "tokens by id"}
    inputs = {"rows": rows.fingerprint, "tokenizer": model.identity}
    return run.stage("encode", settings, inputs, body)


def like_pool(run: Run, config: CommonConfig, rows: Manifest) -> Manifest:
    """Compare each target file with the pool and report its likeness, before any costly stage."""

    def read() -> dict[str, list[str]]:
        return {path: list(texts_of(target_rows(read_examples(path))[0])) for path in config.target}

    return compare_with_pool(run, rows, _target_files(config), {}, read)


def check_input(config: CommonConfig, settings: RaiseConfig) -> None:
    """Refuse missing or unusable models and target files, before any stage."""
    features = settings.features
    checks.check_models(config, {"features": features.model, "features.embedding": features.embedding.model})
    _target_files(config)
    _read_target(config)


def _read_target(config: CommonConfig) -> tuple[pa.Table, int, int]:
    """The target's conversations, the number of examples without an answer, and the number of all examples."""
    examples = [example for path in config.target for example in read_examples(path)]
    rows, without = target_rows(examples)
    if len(rows) < 2:
        raise DataError(
            f"validation: {len(rows)} of {len(examples)} examples have a reference answer; expected two at least, one "
            "to learn by and one to report on."
        )
    return rows, without, len(examples)


def split_target(run: Run, config: CommonConfig, settings: RaiseConfig) -> Manifest:
    """Split the target's examples, as conversations, into those that reward a policy and those kept for the report."""
    files = _target_files(config)
    wanted = settings.episode

    def body(folder: Location) -> StageResult:
        rows, without, total = _read_target(config)
        ids = rows[ID].to_numpy()
        order = np.argsort(uniform_of(ids, seed_for(config.seed, "report")), kind="stable")
        kept = min(len(ids) - 1, round(wanted.report_share * len(ids)))
        chosen = order[kept:][: wanted.validation_rows or None]
        for name, part in (("validation", chosen), ("report", order[:kept])):
            pq.write_table(rows.take(pa.array(np.sort(part))), (folder / f"{name}.parquet").path, filesystem=folder.fs)
        unused = len(ids) - kept - len(chosen)
        if unused:
            run.console.note(
                f"validation: {len(chosen):,} of {len(ids) - kept:,} examples measure progress, drawn by seed {config.seed}; "
                f"{config.method}.episode.validation_rows=null takes all, each read after every {wanted.validate_every} steps"
            )
        counts: dict[str, Any] = {"rows_in": total, "kept": len(chosen), "report": kept}
        counts |= {"rejected": {"no reference answer": without, "beyond validation_rows": unused}}
        return StageResult(
            files={"validation": ["validation.parquet"], "report": ["report.parquet"]},
            counts=counts,
            rows=total,
        )

    decides = {"report_share": wanted.report_share, "validation_rows": wanted.validation_rows, "seed": config.seed}
    inputs = {"target": fingerprint_files(files)}
    return run.stage("validation", decides, inputs, body)


def _target_files(config: CommonConfig) -> list[SourceFile]:
    if not config.target:
        raise ConfigError(f"config: 'target' is missing. {config.method} needs validation examples: --target FILE...")
    return find_files(config.target)


def target_rows(examples: Sequence[Example]) -> tuple[pa.Table, int]:
    """Examples as conversations ending in the reference answer, by rising key; and the number of examples without one."""
    rows: dict[int, dict[str, Any]] = {}
    for example in examples:
        answer = reference_answer(example)
        if answer:
            turns = [{"role": message.role, "content": message.content} for message in example.prompt]
            turns.append({"role": "assistant", "content": answer})
            key = example_key(example.id)
            if key in rows:
                raise DataError(f"validation: two examples have the id '{example.id}'; ids must be unique.")
            rows[key] = {ID: key, MESSAGES: turns, META: input_meta(example)}
    return pa.Table.from_pylist([rows[key] for key in sorted(rows)], schema=_TARGET), len(examples) - len(rows)


def learn(
    run: Run,
    config: CommonConfig,
    settings: RaiseConfig,
    features: Manifest,
    encoded: Manifest,
    target: Manifest,
    rows: int,
) -> Manifest:
    """Learn the policy in rounds of training and PPO; each finished round is saved."""
    steps = count_policy_steps(settings, config.train, rows)

    def body(folder: Location) -> StageResult:
        setup = make_setup(run, config, settings, features, encoded, target, steps)
        own = ", ".join(f"{name}={value}" for name, value in departures(settings).items())
        run.console.note(f"learn: settings that are not the paper's: {own or 'none'}")
        rounds, episodes = settings.learning.rounds, settings.learning.episodes
        need = need_of(config, setup)

        def work(own: CommonConfig) -> None:
            here = replace(setup, place=place_of(own))
            done = len(finished_rounds(folder / ROUNDS)[:rounds])
            with (
                run.progress(rounds * episodes * steps, "steps") as bar,
                counted(bar, done * episodes * steps) as counts,
                ray_fleet(here, own.resources, episodes, counts) as fleet,
            ):
                for found in learn_rounds(folder / ROUNDS, here, settings.learning, fleet, config.seed):
                    run.record("round", "learn", **_headline(found))

        with_room(run, "learn", config, need, work, LEARN, most=most_processes_of(config, episodes))
        finished = finished_rounds(folder / ROUNDS)[:rounds]
        kept = kept_round(finished, settings.learning.keep)
        return StageResult(
            files={
                "policy": relative([kept / POLICY], folder),
                "rounds": relative([place / ROUND for place in finished], folder),
            },
            counts={"rows_in": features.counts["kept"], "kept": len(setup.pool)},
            values={
                "steps": steps,
                "rounds": rounds,
                "kept": kept.name,
                "departures": departures(settings),
            },
        )

    decides = {"policy": settings.policy, "learning": settings.learning, "steps": steps, "seed": config.seed}
    decides |= {"train": config.train, "validate_every": settings.episode.validate_every}
    return run.stage("learn", decides, _inputs(run, config, features, encoded, target), body)


def train_frozen(
    run: Run,
    config: CommonConfig,
    settings: RaiseConfig,
    rows: Manifest,
    features: Manifest,
    encoded: Manifest,
    target: Manifest,
    policy: Location,
    total: int,
) -> Manifest:
    """The final training, with batches picked by the frozen policy; leaves the model and the curriculum that it saw."""
    steps = count_policy_steps(settings, config.train, total)

    def body(folder: Location) -> StageResult:
        setup = make_setup(run, config, settings, features, encoded, target, steps)
        actor, _ = load_policy(policy)
        draw = Draw(config.seed, FINAL_DRAW) if settings.policy.deploy == "sampled" else None
        weights = {name: value.numpy() for name, value in actor.state_dict().items()}
        training = FrozenTraining(weights, draw, folder, settings.steps_per_state)
        need = need_of(config, setup)

        def work(own: CommonConfig) -> Episode:
            here = replace(setup, place=place_of(own))
            with (
                run.progress(steps, "steps") as bar,
                counted(bar, training.steps_kept()) as counts,
                ray_fleet(here, own.resources, 1, counts) as fleet,
            ):
                return fleet.run([training])[0]

        episode = with_room(run, "final", config, need, work, LEARN, most=most_processes_of(config, 1))
        write_curriculum(run.files(rows, "rows"), episode, folder)
        picks = np.concatenate(episode.picks)
        known = episode.known_performance
        accounts = [] if settings.policy_from else _accounts(run)
        story = PolicyStory(
            performances=[account["performance"] for account in accounts],
            reports=[account["report"] for account in accounts],
            entropy=accounts[-1]["update"]["entropy"] if accounts else None,
            pool=len(setup.pool),
            batch=config.train.batch_size,
            steps=steps,
            distinct=len(np.unique(picks)),
            start=float(known[0]),
            end=float(known[-1]),
        )
        doubt = describe_policy(story)
        return StageResult(
            files={
                "epochs": ["epoch-1"],
                "log": [PICKS_LOG],
                "curriculum": [CURRICULUM, CURRICULUM_ROWS],
            },
            counts={"rows_in": len(setup.pool), "kept": len(np.unique(picks)), "picks": len(picks)},
            values={
                "steps": steps,
                "start": float(known[0]),
                "performance": float(known[-1]),
                "report_start": episode.report_start,
                "report": episode.report_end,
            }
            | ({DOUBT: doubt} if doubt else {}),
        )

    decides = {"policy": settings.policy, "steps": steps, "seed": config.seed, "train": config.train}
    decides |= {"validate_every": settings.episode.validate_every}
    inputs = _inputs(run, config, features, encoded, target) | {"learned": file_fingerprint(policy)}
    manifest = run.stage("final", decides, inputs, body)
    if (picked := manifest.counts["kept"]) > total:
        run.console.note(
            f"final: the training picked {picked} different rows; the {total} picked first are the selection, "
            f"and {CURRICULUM} in {run.folder / 'final'} names them all"
        )
    return manifest


def _accounts(run: Run) -> list[dict[str, Any]]:
    """The results of each round in which the run's policy learned."""
    learned = run.manifest("learn")
    return [read_account(place.parent) for place in run.files(learned, "rounds")] if learned else []


def warn_of_policy(run: Run, final: Manifest) -> None:
    """Say at the run's end if its policy has learned nothing, which the selection does not show."""
    if doubt := final.values.get(DOUBT):
        run.console.warn(str(doubt))


def order(run: Run, rows: Manifest, features: Manifest, encoded: Manifest, final: Manifest) -> Manifest:
    """The fate of every row of the pool, in `scores.parquet`."""

    def body(folder: Location) -> StageResult:
        ids = np.sort(read_ids(run.files(rows, "rows")))
        with_features = read_pool(run.files(features, "features")[0]).ids
        trainable = token_files(run, encoded).ids()
        log = run.files(final, "log")[0]
        episode = Episode(pq.read_table(log.path, filesystem=log.fs))
        table = place_picks(ids, episode.picks, with_features, trainable)
        pq.write_table(table, (folder / "scores.parquet").path, filesystem=folder.fs, compression="zstd")
        fates = table[FATE].value_counts().to_pylist()
        counts = {"rows_in": len(table), "kept": final.counts["kept"]}
        return StageResult(
            files={"scores": ["scores.parquet"]},
            counts=counts
            | {"rejected": {line["values"]: line["counts"] for line in fates if line["values"] != "picked"}},
            rows=len(table),
        )

    inputs = {"rows": rows.fingerprint, "features": features.fingerprint, "encoded": encoded.fingerprint}
    manifest = run.stage("order", {}, inputs | {"final": final.fingerprint}, body)
    publish(run.files(manifest, "scores")[0], run.folder / "scores.parquet")
    return manifest


def write_curriculum(files: Sequence[Location], episode: Episode, folder: Location) -> None:
    """Write the batches in order, as a table of (step, id) and as JSON lines of step, id and messages.

    Any trainer can replay the JSON lines with the policy's batch size and without shuffling.
    """
    import orjson

    steps = np.repeat(np.arange(1, episode.steps + 1), [len(batch) for batch in episode.picks])
    ids = np.concatenate(episode.picks)
    pq.write_table(pa.table({"step": steps, ID: ids}), (folder / CURRICULUM).path, filesystem=folder.fs)
    texts = {
        line[ID]: line[MESSAGES]
        for chunk, _ in chosen_chunks(files, np.unique(ids), [ID, MESSAGES])
        for line in chunk.to_pylist()
    }
    with (folder / CURRICULUM_ROWS).open_output() as stream:
        for step, row in zip(steps.tolist(), ids.tolist(), strict=True):
            line = {"step": step, ID: id_text(row), MESSAGES: texts[row]}
            stream.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


def _inputs(run: Run, config: CommonConfig, features: Manifest, encoded: Manifest, target: Manifest) -> dict[str, Any]:
    return {
        "features": features.fingerprint,
        "encoded": encoded.fingerprint,
        "target": target.fingerprint,
        "model": find_model(run, config).identity,
        **adapter_input(config.adapter),
    }


def _headline(found: dict[str, Any]) -> dict[str, Any]:
    """The fields of a round for the run's log."""
    names = ("round", "performance", "report", "distinct_rows", "seconds")
    return {name: round(found[name], 4) for name in names if found[name] is not None}
