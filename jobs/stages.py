"""The stages that methods share, each one a call of `Run.stage`: what decides its result, what it reads, what it does.

A recipe (see `recipes.py`) is a list of these. They compute nothing themselves: they pass rows to actors and the engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysift.actors.fetched_models import look_at, pin
from raysift.actors.train_checkpoints import loss_curve, template_of
from raysift.config import CommonConfig
from raysift.errors import ConfigError, DataError, StageError
from raysift.evaluation.examples import read_examples
from raysift.evaluation.metrics import EvalConfig
from raysift.jobs.cluster.machines import for_role
from raysift.jobs.runs.models import adapter_input, computing, find_model, number_type, without_models
from raysift.jobs.runs.run import Run, StageResult
from raysift.jobs.runs.selection import publish_selection, rows_of_run, write_selection
from raysift.jobs.runs.tables import count_answers, publish, read_chunks, relative, sum_tokens, with_tokens
from raysift.manifest import Manifest
from raysift.methods import Selector
from raysift.pool.files import find_files, fingerprint_files
from raysift.pool.longest import LONGEST
from raysift.records import ERROR, ID, SCORE, TOKENS
from raysift.settings.budget import Budget, parse_budget
from raysift.settings.generation import GenerationSettings
from raysift.settings.training import TrainConfig
from raysift.storage import Location, extend_name

Asking = TypeVar("Asking", EvalConfig, GenerationSettings)


def ingest(run: Run, config: CommonConfig, dataset: Any = None, pool_name: str | None = None) -> Manifest:
    """Read the pool from files or a Ray dataset into kept rows with ids, and rejected and failed rows with reasons."""
    from raysift.jobs.pool.ingest import VERSION, ingest_dataset, ingest_pool, list_pool

    inputs: dict[str, Any]
    pool = [file for source in config.pool for file in rows_of_run(source)]
    if dataset is None:
        files = list_pool(pool, config.ingest)
        inputs = {"pool": fingerprint_files(files, config.ingest.on_bad_file == "quarantine")}
    else:
        if run.reuse and pool_name is None:
            raise ConfigError(
                "ingest: a dataset has no fingerprint, so nothing tells whether the stages of another run are of the same "
                "rows. Name the data with pool_name='...' in both calls, or leave out reuse."
            )
        inputs = {"dataset": pool_name}

    def body(folder: Location) -> StageResult:
        own = for_role(config, "reduce").resources
        with run.progress(None, "parts") as bar:
            if dataset is None:
                report = ingest_pool(files, folder, config.ingest, own, progress=bar)
            else:
                report = ingest_dataset(dataset, folder, config.ingest, own, progress=bar)
        if report.kept == 0:
            raise DataError(
                f"ingest: none of the {report.rows_in} rows of the pool was kept (rejected {dict(report.rejected)}, "
                f"failed {report.failed}). See {folder}/rejected for the reason of each."
            )
        return StageResult(
            files={"rows": list(report.files), "rejected": list(report.rejected_files)},
            counts={
                "rows_in": report.rows_in,
                "kept": report.kept,
                "rejected": dict(report.rejected),
                "failed": report.failed,
                "bad_files": list(report.bad_files),
            },
            values={"by_source": dict(report.by_source)}
            | ({LONGEST: report.most_tokens} if report.most_tokens else {}),
            rows=report.rows_in,
        )

    manifest = run.stage("ingest", {"ingest": config.ingest}, inputs, body, version=VERSION)
    budget = parse_budget(config.budget)
    if config.method and not budget.counts_tokens:
        budget.rows_of(manifest.counts["kept"])  # refuses a budget above the pool's rows before anything is computed
    return manifest


def lengths(run: Run, config: CommonConfig, rows: Manifest) -> Manifest:
    """Count the tokens of every kept row as the model's trainer will see it."""
    from raysift.actors.lengths import TokenLengths
    from raysift.jobs.on_ray.raydata import map_rows

    model = find_model(run, config, part="tokenizer")

    def body(folder: Location) -> StageResult:
        own = for_role(config, "tokenise").resources
        answers = map_rows(
            run.files(rows, "rows"),
            TokenLengths,
            {"model": model.name, "template": config.train.template, "trust_remote_code": config.trust_remote_code},
            folder,
            own,
            rows=rows.counts["kept"],
            progress=run.progress,
        )
        most = [0]
        counts = count_answers(
            "lengths",
            answers,
            rows.counts["kept"],
            [TOKENS],
            lambda chunk: most.append(max(most.pop(), pc.max(chunk[TOKENS]).as_py() or 0)),
        )
        return StageResult(
            files={"answers": relative(answers, folder)},
            counts=counts,
            values={LONGEST: most[0]} if not counts["failed"] else {},
            rows=rows.counts["kept"],
        )

    settings = {"template": config.train.template}
    inputs = {"rows": rows.fingerprint, "tokenizer": model.identity}
    manifest = run.stage("lengths", settings, inputs, body)
    budget = parse_budget(config.budget)
    if budget.counts_tokens:
        budget.require_tokens(sum_tokens(run.files(manifest, "answers")))
    return manifest


def score(run: Run, config: CommonConfig, selector: Selector, rows: Manifest, table: Manifest | None) -> Manifest:
    """Compute the selector's score of every kept row, from `table` (an earlier stage's answers) or from its id alone."""
    columns = [ID, *selector.reads]

    def body(folder: Location) -> StageResult:
        place = folder / "scores.parquet"
        files = run.files(table, "answers") if table else run.files(rows, "rows")
        written = missing = 0
        with pq.ParquetWriter(place.path, selector.score_schema(), filesystem=place.fs, compression="zstd") as writer:
            for chunk in read_chunks(files, columns):
                scores = selector.score(chunk)
                own = [chunk[name] for name in selector.columns.names]
                writer.write_table(pa.table([chunk[ID], scores, *own], schema=selector.score_schema()))
                written, missing = written + len(chunk), missing + scores.null_count
        if written != rows.counts["kept"]:
            raise StageError(f"score: {written} rows have a line, ingest kept {rows.counts['kept']}.")
        counts = {"rows_in": written, "kept": written - missing, "failed": missing}
        return StageResult(files={"scores": ["scores.parquet"]}, counts=counts, rows=written)

    inputs = {"rows": rows.fingerprint} | ({"table": table.fingerprint} if table else {})
    settings = {"method": selector.name, selector.name: without_models(selector.config), "seed": config.seed}
    manifest = run.stage("score", settings, inputs, body)
    publish(run.files(manifest, "scores")[0], run.folder / "scores.parquet")
    return manifest


def choose(
    run: Run, config: CommonConfig, selector: Selector, rows: Manifest, scores: Manifest, tokens: Manifest | None
) -> Manifest:
    """Take the best rows that the budget allows; write ranks and scores, the rows, and a summary by source."""
    budget = parse_budget(config.budget)

    def body(folder: Location) -> StageResult:
        files = run.files(scores, "scores")
        chunks: Iterator[pa.Table] = read_chunks(files, [ID, SCORE, *selector.columns.names])
        if budget.counts_tokens:
            if tokens is None:
                raise StageError("choose: a budget in tokens needs the lengths stage.")
            chunks = with_tokens(chunks, run.files(tokens, "answers"))
        ids, best = selector.choose(chunks, budget, rows.counts["kept"])
        result = write_selection(run, config, selector, rows, files, ids, best, folder)
        if budget.counts_tokens and tokens:
            taken = sum_tokens(run.files(tokens, "answers"), ids)
            return replace(result, counts={**result.counts, "tokens_asked": budget.tokens, "tokens": taken})
        asked, without = budget.rows_of(rows.counts["kept"]), scores.counts.get("failed", 0)
        if len(ids) < asked:
            why = f": {without} of {rows.counts['kept']} rows have no score" if without else ""
            run.console.note(f"choose: {asked} rows asked, {len(ids)} chosen{why}")
        return replace(result, counts={**result.counts, "asked": asked})

    settings = {"method": selector.name, "budget": config.budget, "output_format": config.output_format}
    inputs = {"scores": scores.fingerprint} | (
        {"lengths": tokens.fingerprint} if budget.counts_tokens and tokens else {}
    )
    manifest = run.stage(
        "choose", settings, inputs, body, version=3
    )  # 2: RAISE keeps to the budget; 3: hexadecimal ids in exports
    publish_selection(run, manifest)
    return manifest


def count_rows(config: CommonConfig, rows: Manifest) -> int:
    """The budget in rows, for methods that cannot count tokens because they choose by distance or by step."""
    return row_budget(config).rows_of(rows.counts["kept"])


def row_budget(config: CommonConfig) -> Budget:
    """Return the budget; raise if it counts tokens."""
    budget = parse_budget(config.budget)
    if budget.counts_tokens:
        raise ConfigError(
            f"budget: {config.method} takes a number of rows or a share, not tokens: it does not choose row by row."
        )
    return budget


def finetune(run: Run, config: CommonConfig, rows: Manifest, name: str = "final") -> Manifest:
    """Fine-tune the model on the rows of a stage, which may belong to another run."""
    from raysift.jobs.training.finetune import FinetuneReport
    from raysift.jobs.training.finetune import finetune as train

    model = find_model(run, config)

    def body(folder: Location) -> StageResult:
        from raysift.jobs.on_ray.fitting import longest_row, with_room
        from raysift.jobs.training.sharding import need_to_finetune

        def work(own: CommonConfig) -> FinetuneReport:
            return train(
                run.files(rows, "rows"),
                folder,
                own.train,
                model.name,
                own.resources,
                adapter=own.adapter,
                gradient_checkpointing=own.resources.gradient_checkpointing,
                trust_remote_code=own.trust_remote_code,
                progress=run.progress,
            )

        need = need_to_finetune(run.console, name, config, model.name, longest_row(run, rows, config.train))
        report = with_room(run, name, config, need, work, "train")
        return StageResult(
            files={"epochs": [f"epoch-{record.epoch}" for record in report.epochs]},
            counts=report.counts,
            values={
                "mean_learning_rates": [record.mean_learning_rate for record in report.epochs],
                "mean_losses": [record.mean_loss for record in report.epochs],
                "losses": loss_curve(report.epochs),
                "steps": report.steps,
                "tokens_per_second": report.tokens_per_second,
            }
            | ({"toys": run.toys} if run.toys else {}),
            rows=report.counts["rows_in"],
        )

    inputs = {"rows": rows.fingerprint, "model": model.identity} | adapter_input(config.adapter)
    return run.stage(name, {"train": config.train}, inputs, body)


def evaluate(run: Run, config: CommonConfig, trained: Manifest | None, name: str = "evaluate") -> Manifest:
    """Answer and score the examples of `config.test` with the fine-tuned model of `trained`, or with the model as it is."""
    from raysift.jobs.on_ray.fitting import need_to_answer, with_room
    from raysift.jobs.training.evaluate import evaluate as test

    base = find_model(run, config)
    model: str = base.name
    adapter: str | Location | None = config.adapter
    if trained:
        model, adapter = trained_model(run, trained, base.name)

    asked = asked_as_trained(run, name, "evaluate", config.evaluate, model, adapter, config.train)

    def body(folder: Location) -> StageResult:
        examples = read_examples(config.test, split=config.evaluate.split, scored=True)

        def work(own: CommonConfig) -> Any:
            return test(
                examples,
                model,
                folder,
                asked,
                own.resources,
                adapter=adapter,
                dtype=number_type(own, base.name),
                trust_remote_code=own.trust_remote_code,
                progress=run.progress,
            )

        report = with_room(run, name, config, need_to_answer(config, base.name), work, "generate")
        return StageResult(
            files={"answers": list(report.files)}, counts=dict(report.counts), values=report.values, rows=len(examples)
        )

    inputs: dict[str, Any] = {
        "test": fingerprint_files(find_files(config.test)),
        "model": computing(config, base),
    }
    inputs |= {"trained": trained.fingerprint} if trained else adapter_input(config.adapter)
    return run.stage(name, {"evaluate": asked.deciding()}, inputs, body)


def asked_as_trained(
    run: Run, stage: str, section: str, settings: Asking, model: str, adapter: str | Location | None, train: TrainConfig
) -> Asking:
    """Return the settings with the chat template of the model's training, unless they name one; print a note if it changes."""
    template = template_of(settings.template, model, adapter, train.template)
    if settings.template != template:
        run.console.note(f"{stage}: asked under the chat template of the training, '{template}' ({section}.template)")
    return settings.model_copy(update={"template": template})


def trained_model(run: Run, trained: Manifest, base: str) -> tuple[str, Location | None]:
    """Model and adapter from the last epoch of a fine-tune."""
    last = run.files(trained, "epochs")[-1]
    full = last / "model"
    if not full.exists():
        return base, last / "adapter"
    if full.is_local:
        return full.path, None
    home = extend_name(trained.reused_from or run.name, f"/{trained.stage}/{trained.files['epochs'][-1]}/model")
    return pin(look_at(home)), None


def placing(config: CommonConfig) -> dict[str, Any]:
    """Where an actor loads its model, and whether code shipped with the model may run."""
    own = config.resources
    return {"device": own.placed_on, "threads": own.threads, "trust_remote_code": config.trust_remote_code}


def loading(config: CommonConfig, model: str) -> dict[str, Any]:
    """`placing`, and the number type of a model that scores, embeds or answers."""
    return placing(config) | {"dtype": number_type(config, model)}


def require_answers(
    stage: str, run: Run, answers: Sequence[Location], counts: Mapping[str, int], folder: Location
) -> None:
    """Print how many rows of a stage have no answer, and why the first has none. Raise if no row has an answer."""
    if not counts["failed"]:
        return
    errors = [
        chunk.filter(chunk[ERROR].is_valid()).sort_by(ID).slice(0, 1) for chunk in read_chunks(answers, [ID, ERROR])
    ]
    first = pa.concat_tables(errors).sort_by(ID)[ERROR][0].as_py()
    found = f"{stage}: {counts['failed']} of {counts['rows_in']} rows have no answer; the first: {first}"
    if not counts["kept"]:
        raise StageError(
            f"{found}. No row is left. Fix the cause or change the stage's settings, delete {folder}, which holds these "
            "failures, and run again."
        )
    run.console.note(f"{found}; see {folder}")
