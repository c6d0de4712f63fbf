"""`raysift submit`: ship this package and a command to a Ray cluster, stream the log, return the job's exit code.

It ships a folder `raysift` of links to the code as imported here (`engine/` as `raysift`, `actors/` as `raysift.actors`,
`jobs/` as `raysift.jobs`). Ray uploads what the links point to and names the upload by its content, so an edit always
arrives. Two other ways do not work: Ray would upload the imported module under its folder's name, `engine`; and it names a
wheel only by its file name, so it would run the code of an earlier upload.

    python -m raysift.jobs.commands.submit --stage build/cluster

makes that folder for `ray job submit --runtime-env cluster/runtime-env.yaml`. The cluster's Python needs raysift's
dependencies. Apart from the code, only settings files are shipped: of
`--config`, and the YAML of `run` and `compare`. Pools, models and runs are read and written
on the cluster, so their paths must mean the same on all its nodes.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import raysift
import raysift.actors
import raysift.jobs
from raysift.config import load_config
from raysift.errors import ConfigError, StageError
from raysift.jobs.commands.options import is_override, spread_multiple
from raysift.jobs.runs.console import Console
from raysift.methods import METHODS
from raysift.storage import refuse_passwords

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

RAY_VERSIONS = ">=2.60,<2.64"
PYTHON_VERSIONS = ">=3.11"
EXCLUDES = ["__pycache__", "*.pyc"]
ENV_NAMES = "RAYSIFT_SUBMIT_ENV"
PATH_OPTIONS = ("pool", "target", "test", "held-out", "run", "reuse", "out", "RUN")
WRITES_A_RUN = ("ingest", "finetune", "evaluate", "demo", "run", "compare", "search", "win-rate")
TAKE_POOL, TAKE_YAML = ("ingest", "look"), ("run", "compare")
TAKE_RUN = ("export", "show", "explain", "rescore", "check")
FLAGS = ("train", "fresh", "json", "pairs", "no-pairs", "text", "no-text", "report", "no-report", "help")
INTERRUPTED = 130
RECONNECT_S = 2.0
MAX_RECONNECTS = 30
_JOB_NAME = re.compile(r"\w[\w.-]{0,199}", re.ASCII)


@dataclass(frozen=True)
class Job:
    """A job to submit: a shell command, and where its code and settings come from."""

    entrypoint: str
    runtime_env: dict[str, Any]
    driver: dict[str, Any] = field(default_factory=dict)
    """What Ray reserves for the command itself, as `submit_job` names it. Empty: it runs on the head, and nothing is reserved."""


def submit_command(
    arguments: list[str], address: str | None, submission_id: str | None, wait: bool, dry_run: bool
) -> int:
    """Submit `raysift ARGUMENTS` and return its exit code, or 0 at once without `wait`."""
    if submission_id is not None and not _JOB_NAME.fullmatch(submission_id):
        raise ConfigError(
            f"submit: --submission-id is {submission_id!r}, expected letters, digits, dots, dashes and underscores: it becomes "
            "part of addresses and of file names."
        )
    console = Console("plain")
    os.environ["RAY_AUTH_MODE"] = auth_mode()
    with tempfile.TemporaryDirectory(prefix="raysift-submit-") as folder:
        job = plan_job(arguments, Path(folder))
        if dry_run:
            _print_plan(job, address)
            return 0
        client = _connect(address)
        _require_versions(client, console)
        name = _submit(client, job, submission_id)
    console.event("submitted", "submit", job=name, cluster=client.get_address())
    if not wait:
        print(name)
        return 0
    return _wait(client, name, console)


def stage_package(folder: Path) -> Path:
    """Make `folder/raysift` with links to the imported code. Repeat it when a file is added at the top of `engine/`."""
    package = folder / "raysift"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    parts = {"actors": Path(raysift.actors.__path__[0]), "jobs": Path(raysift.jobs.__path__[0])}
    for entry in sorted(Path(raysift.__path__[0]).iterdir()):
        if entry.name not in EXCLUDES:
            parts.setdefault(entry.name, entry)
    for name, source in parts.items():
        (package / name).symlink_to(source.resolve())
    return package


def plan_job(arguments: Sequence[str], folder: Path) -> Job:
    """Return the job for a raysift command; put its code and the files of `--config` below `folder`."""
    if not arguments:
        raise ConfigError("submit: no command. Write it after `--`: raysift submit --address URL -- METHOD ...")
    refuse_passwords(" ".join(arguments))
    _require_reachable_paths(arguments)
    runtime_env: dict[str, Any] = {
        "py_modules": [str(stage_package(folder))],
        "excludes": EXCLUDES,
        "env_vars": _passed_on(),
    }
    files = folder / "files"
    shipped = list(_ship_configs(arguments, files))
    if files.is_dir():
        runtime_env["working_dir"] = str(files)
    return Job("python -m raysift.jobs " + shlex.join(shipped), runtime_env, _reserved(arguments))


def auth_mode() -> str:
    """RAY_AUTH_MODE if set; else `token` if there is a token, else `disabled`. So no default of Ray decides."""
    if mode := os.environ.get("RAY_AUTH_MODE"):
        return mode
    has_token = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return "token" if has_token or (Path.home() / ".ray" / "auth_token").is_file() else "disabled"


def job_exit_code(details: JobDetails) -> int:
    """The exit code of a finished job's command; 1 if it never ran, 128 + N if signal N ended it."""
    status = str(details.status)
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return INTERRUPTED
    code = details.driver_exit_code or 1
    return code if code > 0 else 128 - code


def _reserved(arguments: Sequence[str]) -> dict[str, Any]:
    """The driver's share of the cluster by `resources.driver`, from the settings file and the command; never a GPU."""
    file, overrides = {}, []
    for option, argument in _meanings(arguments):
        name = argument.removeprefix("--config=")
        if option == "config" and Path(name).expanduser().is_file():
            file = _read_settings(name)
        elif not option and argument.startswith("resources.driver") and is_override(argument):
            overrides.append(argument)
    resources = file.get("resources")
    asked = {"driver": resources["driver"]} if isinstance(resources, dict) and "driver" in resources else {}
    own = load_config(None, {"resources": asked}, overrides).resources.driver
    memory = None if own.gib is None else int(own.gib * 2**30)
    found = {"entrypoint_num_cpus": own.cpus, "entrypoint_memory": memory}
    given = {name: amount for name, amount in found.items() if amount}
    return given | {"entrypoint_num_gpus": 0} if given else {}


def _ship_configs(arguments: Sequence[str], files: Path) -> Iterator[str]:
    """Copy each settings file to `files`; yield the arguments with its name in the job."""
    for option, argument in _meanings(arguments):
        name = argument.removeprefix("--config=")
        if option == "config" and "://" not in name:
            source = Path(name).expanduser()
            if not source.is_file():
                raise ConfigError(f"submit: there is no file '{name}' (--config, or the YAML of `run` and `compare`).")
            files.mkdir(exist_ok=True)
            shutil.copyfile(source, files / "config.yaml")
            yield argument.removesuffix(name) + "config.yaml"
        else:
            yield argument


def _meanings(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each argument with the option it is a value of, or with what its place means; empty for the rest."""
    command, option, place = arguments[0], "", 0
    yield "", command
    for argument in arguments[1:]:
        if argument.startswith("--"):
            name, equals, _ = argument[2:].partition("=")
            yield (name if equals else ""), argument
            option = "" if equals or name in FLAGS else name
        elif option:
            yield option, argument
            option = ""
        else:
            yield ("" if is_override(argument) else _meaning(command, argument, place)), argument
            place += 1


def _meaning(command: str, argument: str, place: int) -> str:
    """What an argument without an option names."""
    if command in TAKE_POOL:
        return "pool"
    if command == "nano" and place == 1:
        return "out"
    if command in TAKE_YAML and argument.endswith((".yaml", ".yml")):
        return "config"
    return "RUN" if command == "compare" or (command in TAKE_RUN and place == 0) else ""


def _require_reachable_paths(arguments: Sequence[str]) -> None:
    """Refuse relative paths: on the cluster they would mean a folder that disappears with the job."""
    named = _named_paths(arguments)
    for option, paths in named.items():
        for path in paths:
            if "://" not in path and not path.startswith(("/", "~")):
                raise ConfigError(
                    f"submit: {option} '{path}' is a relative path, which means another folder on the cluster. Name "
                    "an absolute path on storage that all nodes share, or a URI (s3://, gs://)."
                )
    writes = arguments[0] in WRITES_A_RUN or arguments[0] in METHODS
    if writes and "--help" not in arguments and not named["run"]:
        raise ConfigError(
            "submit: no --run, and the default would be a folder that goes with the job. Name one on storage that all "
            "nodes share: --run s3://BUCKET/runs/NAME."
        )


def _named_paths(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Paths by option, from the command or, for options it omits, from its settings file."""
    named: dict[str, list[str]] = {option: [] for option in PATH_OPTIONS}
    settings: dict[str, Any] = {}
    for option, argument in _meanings(spread_multiple(arguments)):
        value = argument.removeprefix(f"--{option}=")
        if value and option in named:
            named[option].append(value)
        elif value and option == "config" and "://" not in value and Path(value).expanduser().is_file():
            settings = _read_settings(value)
    for option in PATH_OPTIONS:
        given = settings.get(option) or []
        named[option] = named[option] or ([given] if isinstance(given, str) else [str(path) for path in given])
    return named


def _read_settings(file: str) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(Path(file).expanduser().read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"submit: '{file}' is not YAML: {error}") from None
    return settings if isinstance(settings, dict) else {}


def _passed_on() -> dict[str, str]:
    """Variables named in RAYSIFT_SUBMIT_ENV, with their local values."""
    names = [name.strip() for name in os.environ.get(ENV_NAMES, "").split(",") if name.strip()]
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ConfigError(f"submit: {ENV_NAMES} names {', '.join(missing)}, which is not set here.")
    return {name: os.environ[name] for name in names}


def _connect(address: str | None) -> JobSubmissionClient:
    # For Ray its variables win over the given address; here the command line wins.
    if address:
        for variable in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
            os.environ.pop(variable, None)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray.dashboard.modules.job.sdk").addFilter(lambda record: record.levelno > logging.INFO)
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    where = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or "this machine"
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise ConfigError(
            f"submit: {where} refuses this client (RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']}). Set "
            f"RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH. Ray says: {str(error).splitlines()[0]}"
        ) from None
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"submit: no Ray job server answers at {where}: {error} Name it with --address http://HOST:8265 or "
            "RAY_ADDRESS."
        ) from None


def _require_versions(client: JobSubmissionClient, console: Console) -> None:
    """Stop before the upload if the cluster's Ray or Python cannot run this package."""
    from packaging.specifiers import SpecifierSet

    answer = client._do_request("GET", "/api/v0/cluster_metadata")
    found = answer.json().get("data", {}) if answer.status_code == 200 else {}
    for what, key, wanted in (("Ray", "rayVersion", RAY_VERSIONS), ("Python", "pythonVersion", PYTHON_VERSIONS)):
        version = found.get(key)
        if version is None:
            console.note(f"submit: the cluster does not tell its {what} version; raysift needs {wanted}.")
        elif not SpecifierSet(wanted).contains(version, prereleases=True):
            raise ConfigError(
                f"submit: the cluster runs {what} {version}, raysift {raysift.__version__} needs {wanted}. Use "
                "another cluster or image."
            )


def _submit(client: JobSubmissionClient, job: Job, submission_id: str | None) -> str:
    try:
        name: str = client.submit_job(
            entrypoint=job.entrypoint,
            runtime_env=job.runtime_env,
            submission_id=submission_id,
            metadata={"raysift": raysift.__version__},
            **job.driver,
        )
    except RuntimeError as error:
        taken = submission_id is not None and "already exists" in str(error)
        hint = f"A job named '{submission_id}' exists; take another --submission-id. " if taken else ""
        lines = [line for line in str(error).splitlines() if line.strip(" .")]  # Ray appends the server's traceback
        raise ConfigError(f"submit: the cluster refused the job. {hint}Ray says: {lines[-1]}") from None
    return name


def _wait(client: JobSubmissionClient, name: str, console: Console) -> int:
    """Print the job's log until it ends. An interrupt does not stop the job."""
    try:
        details = _follow(client, name)
    except KeyboardInterrupt:
        where = f"--address {client.get_address()} {name}"
        console.note(f"the job goes on. Watch it: ray job logs --follow {where}. End it: ray job stop {where}.")
        return INTERRUPTED
    code = job_exit_code(details)
    console.event(str(details.status).lower(), "submit", job=name, exit_code=code)
    if details.driver_exit_code is None and code:
        console.error(str(details.message or "the command never ran").strip())
    return code


def _follow(client: JobSubmissionClient, name: str) -> JobDetails:
    """Stream the log until the job ends. After a broken connection, reconnect and continue after the printed part."""
    from aiohttp import ClientError

    log, failures = JobLog(), 0
    while True:
        try:
            asyncio.run(log.print_rest(client, name))
            details = client.get_job_info(name)
            if details.status is not None and details.status.is_terminal():
                return details
        except (RuntimeError, OSError, ClientError) as error:
            failures += 1
            if failures > MAX_RECONNECTS:
                raise StageError(
                    f"submit: lost the connection to {client.get_address()} {failures} times: {error} The job may go "
                    f"on: ray job status --address {client.get_address()} {name}."
                ) from None
        time.sleep(RECONNECT_S)


class JobLog:
    """Remembers how much of a job's log is printed, since the server sends it from the beginning each time."""

    def __init__(self) -> None:
        self.printed = 0

    async def print_rest(self, client: JobSubmissionClient, name: str) -> None:
        seen = 0
        async for text in client.tail_job_logs(name):
            seen += len(text)
            if seen > self.printed:
                print(text[self.printed - seen :], end="", flush=True)
                self.printed = seen


def _print_plan(job: Job, address: str | None) -> None:
    """Print files, environment and command; of passed-on variables only the names."""
    [module] = job.runtime_env["py_modules"]
    files = [
        Path(parent, name)
        for parent, _, names in os.walk(module, followlinks=True)
        for name in names
        if "__pycache__" not in parent and not name.endswith(".pyc")
    ]
    size = sum(file.stat().st_size for file in files) / 1e6
    print(f"address      {address or os.environ.get('RAY_API_SERVER_ADDRESS') or os.environ.get('RAY_ADDRESS')}")
    print(f"package      raysift {raysift.__version__}: {len(files)} files, {size:.1f} MB, from {raysift.__path__[0]}")
    if "working_dir" in job.runtime_env:
        print(f"files        {', '.join(sorted(os.listdir(job.runtime_env['working_dir'])))}")
    print(f"environment  {', '.join(job.runtime_env['env_vars']) or 'nothing added'}")
    print(f"driver       {', '.join(f'{name}={amount}' for name, amount in job.driver.items()) or 'nothing reserved'}")
    print(f"command      {job.entrypoint}")


def main() -> None:
    """Entry point of `python -m raysift.jobs.commands.submit --stage FOLDER`."""
    parser = argparse.ArgumentParser(prog="python -m raysift.jobs.commands.submit", description="For `ray job submit`.")
    parser.add_argument("--stage", required=True, metavar="FOLDER", help="where to make the folder `raysift`")
    print(stage_package(Path(parser.parse_args().stage)))


if __name__ == "__main__":
    main()
