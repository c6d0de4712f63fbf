"""Finding and loading causal language models, their tokenizers and adapters; heavy libraries load inside functions.

A model's name is `nano` (also `nano:foundation`, `nano:reward`, `nano:encoder`; all ship with the package), a local
folder, a folder on an object store (`s3://bucket/model`), or an id on the Hugging Face hub: `owner/name`, or
`owner/name@revision` for a branch, tag or commit.

The device `spread` divides the layers among all GPUs that the process sees, and a pass goes from one to the next: this
makes room for a large base but adds no speed. A base in four bits is QLoRA's: NF4, with its scales quantised as well.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from typing import Any

from raysift.actors.fetched_models import fetched, is_remote
from raysift.actors.hub import HUB_S, why_offline
from raysift.actors.smol import is_smol, smol_path
from raysift.errors import ModelError
from raysift.fingerprint import Part
from raysift.nano import NANO_MODELS, is_nano, nano_path
from raysift.storage import Location, open_location

DTYPES = ("auto", "bf16", "fp16", "fp32")
SPREAD = "spread"


def resolve_model(name: str, part: Part = "all") -> str:
    """Where a model is: a folder of this machine, or the id itself for one on the hub.

    Of a model on an object store this may fetch a part alone: `tokenizer` is everything but the weights.
    """
    if is_remote(name):
        return fetched(name, part)
    if is_smol(name):
        return str(smol_path(name))
    if is_nano(name):
        kind = name.partition(":")[2] or "foundation"
        if kind not in NANO_MODELS:
            raise ModelError(f"model: '{name}' is unknown; known: nano, {', '.join(f'nano:{m}' for m in NANO_MODELS)}.")
        try:
            return str(nano_path(kind))
        except FileNotFoundError as error:
            raise ModelError(f"model: {error}") from error
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        return os.path.abspath(path)
    if path.startswith(("/", ".")) or path.count("/") > 1:
        raise ModelError(
            f"model: there is no folder '{name}'. Give a folder that transformers can load, also on a store (s3://...), an id "
            "on the Hugging Face hub (owner/name), 'nano', or 'smol'."
        )
    return name


def pinned_name(name: str) -> str:
    """A hub id pinned to its current commit, as the hub has it or, if the hub cannot be asked, this machine's cache."""
    repo, _, revision = name.partition("@")
    if re.fullmatch("[0-9a-f]{40}", revision):
        return name
    from huggingface_hub import HfApi, constants
    from huggingface_hub.file_download import repo_folder_name

    reason = f"the hub is offline ({why_offline()})"
    if not why_offline():
        try:
            return f"{repo}@{HfApi().model_info(repo, revision=revision or None, timeout=HUB_S).sha}"
        except Exception as error:  # network libraries raise different errors in different versions
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    folder = repo_folder_name(repo_id=repo, repo_type="model")
    ref = os.path.join(constants.HF_HUB_CACHE, folder, "refs", revision or "main")
    if not os.path.isfile(ref):
        raise ModelError(
            f"model: nothing tells which commit '{name}' is: {reason}, and the cache of this machine has none of it ({ref}). "
            "Check the name, download the model first, give a folder that transformers can load, or use 'nano'."
        )
    with open(ref, encoding="utf-8") as file:
        return f"{repo}@{file.read().strip()}"


def source_of(model: str, part: Part = "all") -> tuple[str, str]:
    """Folder or hub id, and the revision, as `from_pretrained` takes them; for a folder the revision means nothing."""
    place = resolve_model(model, part)
    repo, _, revision = (place, "", "") if os.path.isdir(place) else place.partition("@")
    if not os.path.isdir(place):
        why_offline()
    return repo, revision or "main"


def portable_name(name: str) -> str:
    """The model's name for a process in another folder: a local path made absolute, any other name unchanged."""
    path = os.path.expanduser(name)
    is_shipped = name.partition(":")[0] == "nano"
    return os.path.abspath(path) if os.path.isdir(path) and not is_shipped else name


def pick_device(device: str = "auto") -> str:
    """`cuda` if there is a GPU, unless another device is named; the first GPU for whatever `spread` does not divide."""
    if device == SPREAD:
        spread_over_gpus()
        return "cuda"
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def spread_over_gpus() -> Any:
    """The `device_map` that fills all GPUs of this process evenly; raises if there is none."""
    import torch

    if not torch.cuda.is_available():
        raise ModelError(
            "model: resources.device is 'spread', but this process sees no GPU. Ask for some "
            "(resources.gpus_per_worker), or set resources.device to auto or cpu."
        )
    return "auto"


def load_tokenizer(model: str, trust_remote_code: bool = False) -> Any:
    """The model's tokenizer, with a padding token: its own, else the end-of-sequence token, else the unknown token."""
    from transformers import AutoTokenizer

    with _explained(model, "tokenizer"):
        source, revision = source_of(model, "tokenizer")
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token_id is None:
        stand_in = tokenizer.eos_token or tokenizer.unk_token
        if stand_in is None:
            raise ModelError(f"model: the tokenizer of '{model}' has no pad, end or unknown token to pad batches with.")
        tokenizer.pad_token = stand_in
    return tokenizer


def load_language_model(
    model: str,
    adapter: str | Location | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    quantization: str = "none",
) -> Any:
    """A causal language model in eval mode; `adapter`, if given, is a local or remote folder with a PEFT adapter."""
    from transformers import AutoModelForCausalLM

    settings: dict[str, Any] = {"dtype": torch_dtype(dtype), "trust_remote_code": trust_remote_code}
    if quantization != "none":
        settings |= {"quantization_config": four_bits(dtype), "device_map": {"": pick_device(device)}}
    if device == SPREAD:
        settings["device_map"] = spread_over_gpus()
    with _explained(model, "language model"):
        source, revision = source_of(model)
        loaded = AutoModelForCausalLM.from_pretrained(source, revision=revision, **settings)
    if device == SPREAD:
        _refuse_offloaded(loaded, model)
    if quantization != "none":
        _keep_differentiable(loaded, model)
    if adapter is not None:
        loaded = load_adapter(loaded, adapter)
    return move(loaded, device).eval()


def move(model: Any, device: str) -> Any:
    """The model on that device; a model that is spread or in four bits cannot be moved and stays where it is."""
    if device == SPREAD or getattr(model, "is_quantized", False):
        return model
    return model.to(pick_device(device))


def four_bits(dtype: str) -> Any:
    """Settings with which transformers loads a base in four bits; matrix products use `dtype`."""
    import importlib.util

    import torch
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            "model: a base in four bits needs the package bitsandbytes, which is not installed: "
            "pip install 'raysift[4bit]'. Or set train.quantization to none."
        )
    products = torch_dtype(dtype)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32 if products == "auto" else products,
    )


def _refuse_offloaded(loaded: Any, model: str) -> None:
    """Raise if transformers left layers on the host or on disk, as it silently does when the GPUs are full."""
    weights = dict(loaded.named_parameters())
    outside = [name for name, weight in weights.items() if weight.device.type in ("cpu", "meta")]
    if outside:
        raise ModelError(
            f"model: '{model}' does not fit on the GPUs of this process: {len(outside)} of its {len(weights)} weights would "
            f"lie outside them, first {outside[0]}. Ask for more GPUs (resources.gpus_per_worker), or set "
            "train.quantization to 4bit."
        )


def _keep_differentiable(loaded: Any, model: str) -> None:
    """Keep gradients correct on CPUs with bfloat16 instructions.

    There, the first pass without gradient through a bitsandbytes linear layer permanently repacks its weights into a
    form that propagates no gradients; torch only warns. Seen with 0.50.2.
    """
    from bitsandbytes.nn import Linear4bit

    layers = [module for module in loaded.modules() if isinstance(module, Linear4bit)]
    if not layers:
        raise ModelError(
            f"model: '{model}' has no linear layer that can be held in four bits; set quantization to none."
        )
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False


def load_adapter(model: Any, adapter: str | Location, trainable: bool = False) -> Any:
    """The model, wrapped by PEFT with the adapter in that folder."""
    from peft import PeftModel

    place = open_location(adapter)
    if not (place / "adapter_config.json").exists():
        raise ModelError(
            f"model: '{place}' holds no adapter_config.json, so it is no PEFT adapter. A fine-tune writes "
            "epoch-N/adapter after each epoch."
        )
    with local_copy(place) as folder:
        try:
            return PeftModel.from_pretrained(model, folder, is_trainable=trainable)
        except Exception as error:  # damaged files raise whatever the library that reads them does
            reason = " ".join(str(error).split())[:300] or "no message"
            raise ModelError(
                f"model: cannot load the adapter {place} over this base model: {type(error).__name__}: {reason} Give "
                "an adapter that PEFT saved over the same model, with the model that it was trained on."
            ) from error


def torch_dtype(name: str) -> Any:
    """Torch's dtype of that name; `auto` stays as it is, and transformers then follows the checkpoint."""
    import torch

    known = {"auto": "auto", "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    if name not in known:
        raise ModelError(f"model: unknown dtype '{name}'; known: {', '.join(DTYPES)}.")
    return known[name]


@contextlib.contextmanager
def local_copy(place: Location) -> Iterator[str]:
    """The folder itself if it is on this disk, else a copy that lasts as long as the block."""
    if place.is_local:
        yield place.path
        return
    import pyarrow.fs as pafs

    with tempfile.TemporaryDirectory() as folder:
        pafs.copy_files(place.path, folder, source_filesystem=place.fs, destination_filesystem=pafs.LocalFileSystem())
        yield folder


@contextlib.contextmanager
def _explained(model: str, what: str) -> Iterator[None]:
    """Turn any loading failure into one error that names what was looked for, and where."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # damaged files raise whatever the library that reads them does
        tried = resolve_model(model, "tokenizer") if not os.path.isdir(model) else model
        where = f"the folder {tried}"
        if not os.path.isdir(tried):
            why = why_offline()
            where = f"the Hugging Face hub (offline: {why})" if why else "the Hugging Face hub"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        raise ModelError(
            f"model: cannot load the {what} of '{model}' from {where}: {type(error).__name__}: {reason} "
            "Give a folder that transformers can load, download the model first, or use 'nano'."
        ) from error
