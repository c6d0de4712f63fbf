"""Every actor on this machine's GPU against the CPU, with speed and memory; about ten minutes, into RESULTS-gpu.json.

    python tests/gpu/run.py                  all checks on the GPU
    python tests/gpu/run.py --only reward    one of them
    python tests/gpu/run.py --device cpu     the same checks, small, on the CPU; shows that the script itself works

It runs from a plain checkout: no network, no Ray, no pytest, raysift need not be installed. What it needs is listed in
`checkout.py` and named if it is missing. Each check is a process of its own with its own limit of seconds, so neither a
crash nor a lost CUDA context stops the others. The exit code is 1 if a check failed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import checkout

CHECKS = {
    # name: module, function, seconds at most
    "prepare": ("worlds", "prepare", 90),
    "row_gradients": ("gradients", "row_gradients", 60),
    "targets_and_match": ("gradients", "targets_and_match", 60),
    "reward": ("answering", "reward", 40),
    "embedder": ("answering", "embedder", 40),
    "likelihood": ("answering", "likelihood", 40),
    "generator": ("answering", "generator", 60),
    "centers": ("choosing", "centers", 60),
    "picking": ("choosing", "picking", 40),
    "trainee": ("training", "trainee", 60),
    "steps": ("training", "steps", 60),
    "repeats": ("card", "repeats", 60),
    "wide_gradients": ("gradients", "wide_gradients", 90),
    "wide_training": ("training", "wide_training", 90),
    "out_of_memory": ("card", "out_of_memory", 60),
    "answers_out_of_memory": ("card", "answers_out_of_memory", 40),
    "two_ranks": ("training", "two_ranks", 90),
    "widest_gradients": ("gradients", "widest_gradients", 120),
}
LONGEST_S = 600


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--only", action="append", choices=list(CHECKS), help="may be given several times")
    parser.add_argument("--out", default="RESULTS-gpu.json")
    parser.add_argument("--seconds", type=float, default=LONGEST_S, help="for all checks together")
    asked = parser.parse_args(arguments)
    lacking = checkout.missing()
    if lacking:
        print(
            f"These packages are missing: {', '.join(lacking)}. Install them: pip install {' '.join(checkout.NEEDED)}"
        )
        return 2
    # Set before torch is loaded, here and in the checks: nothing is fetched, and cuBLAS repeats its results.
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    os.environ.update(quiet)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch.set_num_threads gives each check its share
    began, machine = time.monotonic(), describe(asked.device)
    device = machine["device"]
    print(f"{machine.get('card', 'no card')}, torch {machine['torch']}, {machine['python']}", flush=True)
    if asked.device == "cuda" and device == "cpu":
        print("torch sees no CUDA device; --device cpu checks the script alone.")
        return 2
    if device == "cpu":
        _load_once()
    names = [name for name in CHECKS if not asked.only or name in asked.only or name == "prepare"]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="raysift-gpu-") as folder:
        for name in names:
            left = asked.seconds - (time.monotonic() - began)
            limit = min(CHECKS[name][2], left)
            results[name] = run_apart(name, machine, folder, limit) if left > 5 else _not_run("no time was left")
            _tell(name, results[name])
            _write(asked.out, machine, results, time.monotonic() - began)
    failed = [name for name, result in results.items() if result["status"] == "failed"]
    print(f"{len(results) - len(failed)} of {len(results)} checks did not fail; figures in {asked.out}")
    return 1 if failed else 0


def describe(device: str) -> dict[str, Any]:
    """The machine as the results name it; a process of its own asks, so that this one holds no card."""
    from importlib.metadata import version

    card = None if device == "cpu" else _apart(_probe, (), 60)[1]
    driver = None
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        pass
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": "cuda" if card else "cpu",
        **(card or {}),
        "driver": driver,
        "torch": version("torch"),
        "transformers": version("transformers"),
        "peft": version("peft"),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
    }


def run_apart(name: str, machine: dict[str, Any], folder: str, limit: float) -> dict[str, Any]:
    """One check in a process of its own, ended at its limit."""
    began = time.monotonic()
    ended, found = _apart(_check, (name, machine, folder), limit)
    if not ended:
        found = {"status": "failed", "messages": [f"it was not done after {limit:.0f} s and was ended"]}
    elif found is None:
        found = {"status": "failed", "messages": ["its process died without a word; the system's log may say why"]}
    return {**found, "seconds": round(time.monotonic() - began, 1)}


def _apart(work: Callable[..., None], arguments: tuple[Any, ...], limit: float) -> tuple[bool, Any]:
    """Whether the work ended within the limit, and what it sent. A card cannot be used after a fork, so it is spawned."""
    forked = work is _check and arguments[1]["device"] == "cpu"
    context = multiprocessing.get_context("fork" if forked else "spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(theirs, *arguments))
    process.start()
    theirs.close()
    try:
        found = ours.recv() if ours.poll(limit) else None
        ended = found is not None or not process.is_alive()
    except EOFError:
        found, ended = None, True
    if not ended:
        process.kill()
    process.join(10)
    return ended, found


def _probe(answer: Connection) -> None:
    from lab import card_of

    answer.send(card_of())


def _check(answer: Connection, name: str, machine: dict[str, Any], folder: str) -> None:
    """In the check's own process: run it, and send what it noted, whatever happens."""
    checkout.use_checkout()
    import importlib

    from lab import ON_A_CARD, ON_CPU, Lab, Skipped

    on_card = machine["device"] != "cpu"
    threads = min(8, machine["cores"]) if on_card else 1
    sizes = ON_A_CARD if on_card else ON_CPU
    lab = Lab(machine["device"], sizes, Path(folder), machine.get("peak_tflops_bf16"), threads)
    module, function, _ = CHECKS[name]
    status, messages = "passed", lab.failures
    try:
        import torch
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.set_num_threads(threads)
        getattr(importlib.import_module(module), function)(lab)
    except Skipped as why:
        status, messages = "skipped", [str(why)]
    except Exception:  # whatever a library raises is a failure of this check alone
        lab.fail(traceback.format_exc(limit=-6))
    if lab.failures:
        status, messages = "failed", lab.failures
    sent = {"status": status, "figures": lab.figures, "deviations": lab.deviations, "messages": messages}
    answer.send(sent)
    answer.close()


def _load_once() -> None:
    """On the CPU checks are forks of this process, so libraries are loaded once; nothing is computed in it."""
    checkout.use_checkout()
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, Trainer

    assert all((AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, Trainer))
    import raysift.actors.row_gradients
    import raysift.actors.trainee  # noqa: F401


def _not_run(why: str) -> dict[str, Any]:
    return {"status": "skipped", "messages": [why], "seconds": 0.0}


def _tell(name: str, result: dict[str, Any]) -> None:
    print(f"{result['status']:8} {name:24} {result['seconds']:6.1f} s", flush=True)
    for what, value in result.get("figures", {}).items():
        print(f"         {what}: {value}")
    for what, value in result.get("deviations", {}).items():
        print(f"         {what}: {value['found']:g} (at most {value['limit']:g})")
    for message in result["messages"]:
        print(f"         {message}", flush=True)


def _write(out: str, machine: dict[str, Any], results: dict[str, Any], seconds: float) -> None:
    whole = {"machine": machine, "seconds": round(seconds, 1), "checks": results}
    Path(out).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
