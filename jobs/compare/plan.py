"""Plans the selections of a comparison from a YAML or finished runs, and checks all of them before the first stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raysift.config import CommonConfig, lay_over, make_config, make_selector
from raysift.errors import ConfigError, DataError
from raysift.evaluation.entries import BASE, ROWS, UNIFORM, YARDSTICKS, CompareSettings
from raysift.evaluation.examples import read_examples
from raysift.jobs.cluster.machines import gpus_in_reach
from raysift.jobs.gradients.targeting import read_targets
from raysift.jobs.runs import checks
from raysift.jobs.runs.reuse import is_run
from raysift.jobs.runs.run import open_run
from raysift.manifest import read_manifest
from raysift.methods import METHODS
from raysift.methods.gradient import GradientSelector
from raysift.pool.files import find_files, fingerprint_files

SHARED = ("pool", "budget", "model")
"""What every method of a comparison must have in common."""
NOT_OF_ONE = ("method", "seed", "run", "reuse", "compare", "test", "train_on_selection")
"""Settings of a whole comparison or of a single run; no method may set them."""


@dataclass(frozen=True)
class Contender:
    """A method with its settings, or rows that are all trained on."""

    name: str
    settings: Mapping[str, Any]
    """All settings except the seed, in the form of a YAML."""
    takes_all: bool = False
    finished: Mapping[int, str] = field(default_factory=dict)
    """Runs that already hold a selection, by its seed."""
    only_finished: bool = False
    """Whether no other selections can be made, because their settings are unknown."""

    def has(self, seed: int) -> bool:
        """Whether the comparison holds a selection of this seed."""
        return not self.only_finished or seed in self.finished

    def config(self, seed: int) -> CommonConfig:
        """The settings of its run with this seed, which decides every random choice of selection and training."""
        train = {**(self.settings.get("train") or {}), "seed": seed}
        return make_config({**self.settings, "seed": seed, "train": train}, gpus_in_reach)


@dataclass(frozen=True)
class Plan:
    """Everything that a comparison does."""

    shared: CommonConfig
    settings: CompareSettings
    contenders: Sequence[Contender]
    seeds: Sequence[int]

    @property
    def names(self) -> list[str]:
        """Names of the untrained model and of every contender."""
        return [BASE, *(contender.name for contender in self.contenders)]

    def selections_of(self, contender: Contender) -> int:
        """How many seeds get a selection of their own."""
        most = len(self.seeds)
        return (
            most
            if contender.name == UNIFORM or contender.only_finished
            else min(most, self.settings.selections or most)
        )


def make_plan(values: Mapping[str, Any]) -> Plan:
    """The comparison that settings ask for: methods, finished runs, or both. Yardsticks join with the same seeds."""
    asked = make_config({**values, "method": None}).compare or CompareSettings()
    runs = [(folder, _made_with(folder)) for folder in asked.runs]
    common = lay_over(_common_to(runs), {key: value for key, value in values.items() if value is not None})
    shared = make_config(common, gpus_in_reach)
    common = {name: value for name, value in common.items() if name not in NOT_OF_ONE}
    groups = _by_method(runs)
    seeds = {seed for found in groups.values() for seed in found}
    if asked.methods or not runs:
        seeds |= {shared.seed + number for number in range(asked.seeds)}
    entries: dict[str, dict[str, Any]] = {name: {} for name in YARDSTICKS if name not in asked.methods} | asked.methods
    made = [_contender(name, own, common, groups.get(name, {})) for name, own in entries.items()]
    given = [
        Contender(name, common | {"method": UNIFORM, "target": []}, finished=found, only_finished=True)
        for name, found in groups.items()
        if name not in entries
    ]
    return _checked(Plan(shared, asked, [*made, *given], sorted(seeds)))


def _contender(name: str, own: Mapping[str, Any], common: Mapping[str, Any], finished: Mapping[int, str]) -> Contender:
    where = f"compare.methods.{name}"
    if wrong := sorted(own.keys() & (set(NOT_OF_ONE) - {"method"} | {"budget", "model"})):
        raise ConfigError(
            f"config: '{where}.{wrong[0]}' is set, but it is the same for all methods. Set it beside 'compare'."
        )
    if ROWS in own:
        more = {key: value for key, value in own.items() if key != ROWS}
        return Contender(name, lay_over(common, more) | {"pool": own[ROWS], "target": []}, takes_all=True)
    method = str(own.get("method", name))
    if method not in METHODS:
        raise ConfigError(
            f"config: '{where}' names no method: '{method}' is unknown. Known: {', '.join(sorted(METHODS))}. Or name files of "
            f"rows to train on: {where}.rows=FILE"
        )
    settings = lay_over(common, own) | {"method": method}
    settings |= {} if METHODS[method].takes_target else {"target": []}
    return Contender(name, settings, finished=finished)


def _common_to(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """The first run's settings of pool, model, training and testing; raises if another run differs in a shared one."""
    if not runs:
        return {}
    first_name, first = runs[0]
    for folder, made in runs[1:]:
        for name in SHARED:
            if _compared(name, made) != _compared(name, first):
                raise ConfigError(
                    f"compare: {folder} has another {name} than {first_name}: {made.get(name)!r} instead of "
                    f"{first.get(name)!r}. Only runs of one pool, budget and model can be compared."
                )
    common = {name: value for name, value in first.items() if name not in {*NOT_OF_ONE, "target", *METHODS}}
    for section in ("train", "evaluate"):
        common[section] = {key: value for key, value in (first.get(section) or {}).items() if key != "seed"}
    common["seed"] = min(_seed_of(made) for _, made in runs)
    common["target"] = next((made["target"] for _, made in runs if made.get("target")), [])
    common["test"] = next((made["test"] for _, made in runs if made.get("test")), [])
    return common


def _by_method(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, dict[int, str]]:
    """Runs by name and seed; the name is the method, or the folder if two runs of a method share a seed."""
    groups: dict[str, dict[int, str]] = {}
    for folder, made in runs:
        seed, method = _seed_of(made), str(made["method"])
        name = folder.rstrip("/").rpartition("/")[2] if seed in groups.get(method, {}) else method
        if seed in groups.setdefault(name, {}):
            raise ConfigError(f"compare: {folder} and {groups[name][seed]} have one name, '{name}', and one seed.")
        groups[name][seed] = folder
    return groups


def _seed_of(made: Mapping[str, Any]) -> int:
    return int(made.get("seed") or 0)


def _made_with(folder: str) -> dict[str, Any]:
    if not is_run(folder):
        raise ConfigError(f"compare: '{folder}' is no run folder. Name finished runs, or one YAML file.")
    made = open_run(folder).made_with() or {}
    if not made.get("method") or read_manifest(open_run(folder).folder / "choose") is None:
        raise ConfigError(f"compare: '{folder}' holds no finished selection. Finish it with the command that began it.")
    return made


def _compared(name: str, made: Mapping[str, Any]) -> Any:
    """The value by which a shared setting is compared; files are compared by their content."""
    return fingerprint_files(find_files(made["pool"])) if name == "pool" and made.get("pool") else made.get(name)


def _checked(plan: Plan) -> Plan:
    """Refuses now, at no cost, what a later stage would refuse."""
    if not plan.shared.test:
        raise ConfigError(
            "config: 'test' is missing. A comparison scores the trained models: name examples with --test FILE..."
        )
    checks.check_evaluation(plan.shared)
    checks.check_pool(plan.shared)
    for contender in plan.contenders:
        for seed in plan.seeds:
            config = contender.config(seed)
            if contender.takes_all:
                checks.check_pool(config)
            elif METHODS[str(config.method)].takes_target and seed not in contender.finished:
                _check_target(contender.name, config)
    return plan


def _check_target(name: str, config: CommonConfig) -> None:
    if not config.target:
        raise ConfigError(
            f"config: '{name}' needs a target: compare.methods.{name}.target=FILE, or --target FILE for all."
        )
    selector = make_selector(config)
    try:
        if isinstance(selector, GradientSelector):
            read_targets(config, selector)
        else:
            read_examples(config.target)
    except (ConfigError, DataError) as error:
        raise type(error)(f"{name}: {error}") from None


__all__ = ["Contender", "Plan", "make_plan"]
