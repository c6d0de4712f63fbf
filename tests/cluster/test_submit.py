"""Submitting to a cluster: what is planned, and on a real head with tokens, that the code of now runs there."""

import contextlib
import inspect
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import yaml

from raysift.errors import ConfigError
from raysift.jobs.commands import submit
from raysift.nano.world import WorldConfig, write_pool

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "0123456789abcdef" * 3
UNIFORM = ["uniform", "--pool", "/data/pool.jsonl", "--run", "/data/run"]


def plan(arguments, folder, **environment):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return submit.plan_job(arguments, folder)


# What is planned


def test_the_staged_folder_leads_to_every_source_and_holds_none(tmp_path):
    package = submit.stage_package(tmp_path)
    assert package == tmp_path / "raysift"
    assert all(entry.is_symlink() for entry in package.iterdir())
    for folder, home in {"engine": ".", "actors": "actors", "jobs": "jobs"}.items():
        for source in (ROOT / folder).rglob("*.py"):
            assert (package / home / source.relative_to(ROOT / folder)).samefile(source)


def test_staging_again_forgets_files_that_are_gone(tmp_path):
    submit.stage_package(tmp_path)
    (tmp_path / "raysift" / "gone.py").symlink_to(tmp_path / "nowhere.py")
    assert not (submit.stage_package(tmp_path) / "gone.py").is_symlink()


def test_the_runtime_environment_in_the_repository_is_the_one_that_submit_uses(tmp_path):
    documented = yaml.safe_load((ROOT / "cluster" / "runtime-env.yaml").read_text())
    planned = plan(UNIFORM, tmp_path).runtime_env
    assert documented["excludes"] == planned["excludes"]
    assert [Path(module).name for module in documented["py_modules"]] == ["raysift"]


def test_arguments_reach_the_job_as_they_were_given(tmp_path):
    arguments = ["uniform", "--pool", "/data/my pool's.jsonl", "--run", "s3://b/r?x=1&y=2", "ingest.turns=$HOME"]
    command = plan(arguments, tmp_path).entrypoint.removeprefix("python -m raysift.jobs ")
    printed = subprocess.run(f"printf '%s\\n' {command}", shell=True, capture_output=True, text=True, check=True)
    assert printed.stdout.splitlines() == arguments


def test_the_drivers_share_of_the_cluster_is_asked_of_ray(tmp_path):
    """By the settings file and the command, which wins; without either the driver runs on the head as before."""
    from ray.job_submission import JobSubmissionClient

    settings = tmp_path / "settings.yaml"
    settings.write_text("run: s3://b/r\nresources: {driver: {cpus: 4, gib: 2}, workers: 3}\n")
    asked = {"entrypoint_num_cpus": 2.0, "entrypoint_memory": 2 * 2**30, "entrypoint_num_gpus": 0}
    job = plan(["uniform", "--pool", "/p", "--config", str(settings), "resources.driver.cpus=2"], tmp_path / "job")
    assert job.driver == asked and plan(UNIFORM, tmp_path / "other").driver == {}
    assert asked.keys() <= inspect.signature(JobSubmissionClient.submit_job).parameters.keys()
    sent = []
    client = SimpleNamespace(submit_job=lambda **named: sent.append(named) or "name")
    assert submit._submit(client, job, None) == "name"
    assert {name: sent[0][name] for name in asked} == asked
    with pytest.raises(ConfigError, match=r"resources\.driver\.cpus"):
        plan([*UNIFORM, "resources.driver.cpus=-1"], tmp_path / "wrong")


@pytest.mark.parametrize("form", [["--config", "{}"], ["--config={}"]])
def test_a_settings_file_travels(tmp_path, form):
    settings = tmp_path / "my settings.yaml"
    settings.write_text("budget: 5%\nrun: s3://bucket/run\n")
    for number, command in enumerate((["uniform", "--pool", "/p", *form], ["run", "--fresh", "{}"], ["compare", "{}"])):
        job = plan([part.format(settings) for part in command], tmp_path / f"job-{number}")
        assert (Path(job.runtime_env["working_dir"]) / "config.yaml").read_text() == settings.read_text()
        assert job.entrypoint.endswith((" config.yaml", "--config=config.yaml"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command"),
        (["uniform", "--pool", "/a", "b.jsonl", "--run", "/r"], "pool 'b.jsonl' is a relative path"),
        (["uniform", "--pool=/a", "--run=runs/x"], "run 'runs/x' is a relative path"),
        (["ingest", "pool.jsonl", "--run", "/r"], "pool 'pool.jsonl' is a relative path"),
        (["look", "pool.jsonl"], "pool 'pool.jsonl' is a relative path"),
        (["export", "runs/less", "--to", "alpaca"], "RUN 'runs/less' is a relative path"),
        (["export", "/r", "--to", "alpaca", "--out", "x"], "out 'x' is a relative path"),
        (["explain", "--no-text", "runs/less", "00ff"], "RUN 'runs/less' is a relative path"),
        (["compare", "/r/a", "runs/b", "--run", "/r/c"], "RUN 'runs/b' is a relative path"),
        (["check", "runs/less", "--held-out", "/t"], "RUN 'runs/less' is a relative path"),
        (["check", "/r", "--held-out", "/t", "u.jsonl"], "held-out 'u.jsonl' is a relative path"),
        (["check", "--no-report", "runs/less"], "RUN 'runs/less' is a relative path"),
        (["nano", "pool", "p.jsonl", "--rows", "9"], "out 'p.jsonl' is a relative path"),
        (["run", "nowhere.yaml", "--run", "/r"], "there is no file 'nowhere.yaml'"),
        (["uniform", "--pool", "/a"], "no --run"),
        (["uniform", "--pool", "s3://KEY:secret@pool", "--run", "/r"], "s3://...@pool' holds a password"),
        (["uniform", "--config", "missing.yaml", "--pool", "/a", "--run", "/r"], "no file 'missing.yaml'"),
    ],
)
def test_what_cannot_work_on_a_cluster_is_refused_here(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        submit.plan_job(arguments, tmp_path)


def test_relative_paths_in_a_settings_file_are_refused_unless_an_option_replaces_them(tmp_path):
    settings = tmp_path / "run.yaml"
    settings.write_text("pool: [pool.jsonl]\nrun: /r\n")
    with pytest.raises(ConfigError, match=r"pool 'pool\.jsonl' is a relative path"):
        submit.plan_job(["uniform", "--config", str(settings)], tmp_path / "a")
    submit.plan_job(["uniform", "--config", str(settings), "--pool", "/data/pool.jsonl"], tmp_path / "b")


def test_variables_are_passed_on_by_name_and_never_printed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RAYSIFT_SUBMIT_ENV", "MY_SECRET, MY_OTHER")
    monkeypatch.setenv("MY_SECRET", "hunter2")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ConfigError, match="names MY_OTHER, which is not set"):
        submit.plan_job(UNIFORM, tmp_path)
    monkeypatch.setenv("MY_OTHER", "hunter3")
    assert submit.plan_job(UNIFORM, tmp_path).runtime_env["env_vars"] == {"MY_SECRET": "hunter2", "MY_OTHER": "hunter3"}
    assert submit.submit_command(UNIFORM, "http://nowhere:1", None, True, dry_run=True) == 0
    printed = capsys.readouterr()
    assert "MY_SECRET, MY_OTHER" in printed.out
    assert "hunter" not in printed.out + printed.err
    assert "python -m raysift.jobs uniform --pool /data/pool.jsonl --run /data/run" in printed.out


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ({}, "disabled"),
        ({"RAY_AUTH_TOKEN": "x"}, "token"),
        ({"RAY_AUTH_TOKEN_PATH": "x"}, "token"),
        ({"RAY_AUTH_TOKEN": "x", "RAY_AUTH_MODE": "disabled"}, "disabled"),
    ],
)
def test_the_way_to_authenticate_is_decided_here_and_not_by_ray(tmp_path, monkeypatch, given, mode):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert submit.auth_mode() == mode


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 4, 4), ("FAILED", None, 1), ("FAILED", -9, 137), ("STOPPED", None, 130)],
)
def test_the_exit_code_is_that_of_the_job(status, code, expected):
    assert submit.job_exit_code(SimpleNamespace(status=status, driver_exit_code=code)) == expected


class BrokenLog:
    """A job server whose connection breaks twice; each time the log starts from its beginning again."""

    log = ("one\n", "two\n", "three\n")

    def __init__(self):
        self.calls = 0

    async def tail_job_logs(self, name):
        self.calls += 1
        for line in self.log[: self.calls]:
            yield line
        if self.calls < 3:
            raise RuntimeError("connection lost")

    def get_job_info(self, name):
        return SimpleNamespace(status=SimpleNamespace(is_terminal=lambda: self.calls == 3))


def test_each_line_of_the_log_is_printed_once_though_the_connection_breaks(capsys, monkeypatch):
    monkeypatch.setattr(submit, "RECONNECT_S", 0.0)
    submit._follow(BrokenLog(), "job")
    assert capsys.readouterr().out == "one\ntwo\nthree\n"


# On a real head


class Head(NamedTuple):
    address: str
    environment: dict[str, str]


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_until_it_answers(address, process, log):
    deadline = time.monotonic() + 90
    request = urllib.request.Request(f"{address}/api/version", headers={"Authorization": f"Bearer {TOKEN}"})
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"the head did not answer: {log.read_text()}")


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head that asks for a token, ended by process group; the folder's name is short for the sake of its sockets."""
    folder = Path(tempfile.mkdtemp(prefix="rs", dir="/tmp"))
    port, dashboard, client, agent = free_ports(4)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = ["ray", "start", "--head", "--block", "--num-cpus=4", "--include-dashboard=true", "--disable-usage-stats"]
    command += [f"--port={port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    command += [f"--dashboard-agent-listen-port={agent}"]
    command += ["--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={folder}", "--object-store-memory=200000000"]
    log = folder / "head.log"
    address = f"http://127.0.0.1:{dashboard}"
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=out, stderr=out, start_new_session=True)
    try:
        wait_until_it_answers(address, process, log)
        yield Head(address, environment)
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        if group_lives(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def group_lives(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the project to edit, with a pool."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in ("engine", "actors", "jobs", "cluster"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    write_pool(copy / "pool.jsonl", 200, 0, WorldConfig())
    return copy


def client_environment(checkout, head):
    """As after `pip install -e .` in the copy. RAY_ADDRESS leads nowhere: what is said on the command line counts."""
    package = checkout / "build" / "installed" / "raysift"
    if not package.exists():
        package.mkdir(parents=True)
        for entry in [*(checkout / "engine").iterdir(), checkout / "actors", checkout / "jobs"]:
            (package / entry.name).symlink_to(entry)
    return head.environment | {"PYTHONPATH": str(package.parent), "RAY_ADDRESS": "http://127.0.0.1:9"}


def run_here(command, checkout, environment):
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=240)
    print(done.stdout, done.stderr)
    return done


def raysift_submit(checkout, head, *arguments):
    command = [sys.executable, "-m", "raysift.jobs", "submit", "--address", head.address, "--", *arguments]
    return run_here(command, checkout, client_environment(checkout, head))


def ray_job_submit(checkout, head, *arguments):
    environment = client_environment(checkout, head) | {"RAY_ADDRESS": head.address}
    command = ["ray", "job", "submit", "--runtime-env", "cluster/runtime-env.yaml", "--"]
    return run_here([*command, "python", "-m", "raysift.jobs", *arguments], checkout, environment)


def uniform_arguments(checkout, run, *more):
    return ["uniform", "--pool", str(checkout / "pool.jsonl"), "--run", str(checkout / run), *more]


def edit(checkout, mark):
    """Change what the code says when it is loaded, in the middle of the package."""
    file = checkout / "engine" / "methods" / "uniform.py"
    text = re.sub(r"\nprint\('mark .*\n", "", file.read_text())
    file.write_text(f"{text}\nprint('mark {mark}', flush=True)\n")


def selected_rows(checkout, run):
    from raysift.jobs.api import load_run

    return len(load_run(str(checkout / run)).selection)


@pytest.mark.slow
@pytest.mark.ray
def test_raysift_submit_runs_the_code_of_now_with_the_settings_of_here(head, checkout):
    settings = checkout / "settings.yaml"
    settings.write_text("budget: 20\nseed: 3\n")
    for mark in ("first", "second"):
        edit(checkout, mark)
        done = raysift_submit(checkout, head, *uniform_arguments(checkout, f"run-{mark}", "--config", str(settings)))
        assert done.returncode == 0
        assert set(re.findall(r"mark (\w+)", done.stdout)) == {mark}
        assert selected_rows(checkout, f"run-{mark}") == 20


@pytest.mark.slow
@pytest.mark.ray
def test_ray_job_submit_runs_the_code_of_now_from_one_stage(head, checkout):
    stage = [sys.executable, "-m", "raysift.jobs.commands.submit", "--stage", "build/cluster"]
    assert run_here(stage, checkout, client_environment(checkout, head)).returncode == 0
    for mark in ("third", "fourth"):
        edit(checkout, mark)
        done = ray_job_submit(checkout, head, *uniform_arguments(checkout, f"run-{mark}", "--budget", "10"))
        assert done.returncode == 0
        assert set(re.findall(r"mark (\w+)", done.stdout)) == {mark}
        assert selected_rows(checkout, f"run-{mark}") == 10


@pytest.mark.slow
@pytest.mark.ray
def test_a_job_that_fails_gives_its_own_exit_code_and_message(head, checkout):
    done = raysift_submit(checkout, head, "uniform", "--pool", "/no/such/pool.jsonl", "--run", str(checkout / "run-x"))
    assert done.returncode == 3
    assert "/no/such/pool.jsonl" in done.stdout


@pytest.mark.slow
@pytest.mark.ray
def test_without_the_token_nothing_is_submitted(head, checkout):
    stranger = Head(head.address, {k: v for k, v in head.environment.items() if not k.startswith("RAY_AUTH")})
    stranger.environment["HOME"] = str(checkout)
    done = raysift_submit(checkout, stranger, "show", "/tmp")
    assert done.returncode == 2
    assert "refuses this client (RAY_AUTH_MODE=disabled)" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.ray
def test_a_cluster_that_does_not_answer_is_named(checkout):
    [port] = free_ports(1)
    nobody = Head(f"http://127.0.0.1:{port}", dict(os.environ))
    done = raysift_submit(checkout, nobody, "show", "/tmp")
    assert done.returncode == 2
    assert f"no Ray job server answers at http://127.0.0.1:{port}" in done.stderr
