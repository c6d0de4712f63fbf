"""Checks before the first stage: everything that can be found wrong without running a stage is refused here, at no cost.

Each check looks at one thing and raises an error that explains what to do. Checks read names, small files and example
files, never the pool's rows, and need neither Ray nor a model library.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from typing import Any

from raysift.actors.language_model import pinned_name, resolve_model
from raysift.config import CommonConfig
from raysift.errors import ConfigError, DataError, ModelError, StaleRunError
from raysift.evaluation.examples import read_examples
from raysift.evaluation.metrics import CHOICE_METRICS, JUDGED_ELSEWHERE, METRICS
from raysift.jobs.runs.run import Run
from raysift.jobs.runs.selection import rows_of_run
from raysift.manifest import read_manifest
from raysift.methods import find_method
from raysift.pool.files import find_files
from raysift.pool.formats import find_layout
from raysift.storage import open_location

CARD = "config.json"
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
DECIDES_A_RUN = ("method", "budget", "seed", "model")
READ_ONLY = "ingest"  # the stage shared by all methods


def check_selection(run: Run, config: CommonConfig, has_dataset: bool) -> None:
    """Checks that every method needs. Recipes add their own for the models and targets they read."""
    check_run(run, config)
    if not has_dataset:
        check_pool(config)
    if _trains(config):
        check_training(config)


def check_named(config: CommonConfig, target: object, test: object) -> None:
    """Refuses arguments that have no effect. A settings file may contain them, since it can serve several methods."""
    if target and not find_method(str(config.method)).takes_target:
        raise ConfigError(f"config: 'target' is named, but {config.method} selects for no target. Leave it out.")
    if test and not _trains(config):
        raise ConfigError(f"config: 'test' is named, but {config.method} alone trains no model to test. Add --train.")


def _trains(config: CommonConfig) -> bool:
    return config.train_on_selection or find_method(str(config.method)).trains_itself


def check_training(config: CommonConfig) -> None:
    """Checks before a fine-tune and the evaluation after it."""
    check_models(config)
    if config.test:
        check_tests(config)


def check_evaluation(config: CommonConfig) -> None:
    """Checks before evaluating a model as it is."""
    if not config.test:
        raise ConfigError("config: 'test' is missing. Name the examples: --test FILE...")
    check_models(config)
    check_tests(config)


def check_run(run: Run, config: CommonConfig) -> None:
    """Refuses a run that holds results of another method, or a selection made with another budget, seed or model."""
    made_with = run.made_with()
    if config.method is None or made_with is None or made_with.get("method") is None:
        return
    wanted = config.model_dump(mode="json", include=set(DECIDES_A_RUN))
    others = [manifest for manifest in run.manifests() if manifest.stage != READ_ONLY]
    compared = DECIDES_A_RUN if read_manifest(run.folder / "choose") else DECIDES_A_RUN[:1] if others else ()
    differs = [name for name in compared if name in made_with and _named(made_with[name]) != _named(wanted[name])]
    if differs:
        lines = "\n".join(f"  {name}: {made_with[name]!r} -> {wanted[name]!r}" for name in differs)
        raise StaleRunError(
            f"run: {run.name} holds results of other settings:\n{lines}\nGive the run another name (--run, or --fresh for the "
            f"next free one). With --reuse {run.name} its stages that are the same are not done again."
        )


def check_pool(config: CommonConfig) -> None:
    """Refuses a pool with missing files, or an unknown layout."""
    if not config.pool:
        raise ConfigError("config: 'pool' is missing. Name what to read: --pool FILE...")
    if config.ingest.format != "auto":
        find_layout(config.ingest.format)
    for name in config.pool:
        try:
            find_files(rows_of_run(name))
        except DataError as error:
            word, equals, _ = name.partition("=")
            near = difflib.get_close_matches(word.split(".")[0], type(config).model_fields, n=1) if equals else []
            hint = f" If a setting is meant: it is '{near[0]}'." if near else ""
            raise DataError(f"{error}{hint}") from None


def check_tests(config: CommonConfig) -> None:
    """Refuses test files that are missing or hold no examples."""
    for name in config.test:
        try:
            examples = read_examples(name, split=config.evaluate.split, scored=True)
        except DataError as error:
            raise DataError(f"test: {str(error).removeprefix('examples: ')}") from None
        require_known_metrics(name, {example.metric for example in examples})


def require_known_metrics(name: str, metrics: set[str]) -> None:
    """Refuses metrics that nothing can score: a misspelt one would cost all answers and give no number."""
    scored = sorted([*METRICS, *CHOICE_METRICS])
    if unknown := sorted(metrics - {*scored, *JUDGED_ELSEWHERE}):
        near = difflib.get_close_matches(unknown[0], scored, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise DataError(
            f"test: {name}: metric '{unknown[0]}' is unknown.{hint} Scored here: {', '.join(scored)}. Answered but not scored: "
            f"{', '.join(JUDGED_ELSEWHERE)}."
        )


def check_models(config: CommonConfig, own: Mapping[str, str] | None = None) -> None:
    """Refuses missing or incomplete models and adapters; `own` holds the models named in the method's sections."""
    names = {"model": config.model} | {f"{config.method}.{key}.model": name for key, name in (own or {}).items()}
    for setting, name in names.items():
        try:
            check_model(name)
        except ModelError as error:
            raise ModelError(f"{setting}: {str(error).removeprefix('model: ')}") from None
    if config.adapter and not (open_location(config.adapter) / "adapter_config.json").exists():
        raise ModelError(f"adapter: '{config.adapter}' holds no adapter_config.json, so it is no PEFT adapter.")


def check_model(name: str) -> None:
    """Refuses a model without a readable config or without a tokenizer; a hub id must resolve to a commit."""
    folder = resolve_model(name, "tokenizer")
    if not os.path.isdir(folder):
        pinned_name(folder)
        return
    try:
        with open(os.path.join(folder, CARD), encoding="utf-8") as file:
            described = json.load(file)
    except (OSError, ValueError) as error:
        raise ModelError(f"model: '{name}' has no {CARD} that can be read: {error}. Is it a model's folder?") from None
    if not isinstance(described, dict):
        raise ModelError(f"model: {CARD} of '{name}' holds a {type(described).__name__}, expected an object.")
    if not any(os.path.isfile(os.path.join(folder, file)) for file in TOKENIZERS):
        raise ModelError(f"model: '{name}' has no tokenizer: none of {', '.join(TOKENIZERS)} is in its folder.")


def _named(value: Any) -> Any:
    """Ignore names of folders here: the stages that read a model compare it by content."""
    is_folder = isinstance(value, str) and (value.startswith(("/", ".", "~")) or os.path.isdir(value))
    return None if is_folder else value
