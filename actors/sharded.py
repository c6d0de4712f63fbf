"""A model whose weights, gradients and moments are divided among the ranks of a training (torch's FSDP2).

A rank holds 1/n of each weight. Before a layer computes, its weights are gathered, and freed after it; gradients are
summed over the ranks pass by pass, each rank keeping its share. Products and sums are those of a whole model.
"""

from __future__ import annotations

import inspect
from typing import Any

from raysift.actors.language_model import _explained as explained
from raysift.actors.language_model import source_of
from raysift.errors import ModelError


def load_sharded(model: str, ranks: int, trust_remote_code: bool = False) -> Any:
    """The model in float32, divided among all `ranks` of torch's process group; each reads only its share of the files."""
    import torch
    from transformers import AutoModelForCausalLM, Trainer

    if "is_distributed_loading_by_transformers" not in inspect.getsource(Trainer.__init__):
        import transformers

        raise ModelError(
            f"model: transformers {transformers.__version__} cannot train a model that is divided among workers; 5.19 can. "
            "Install it, or set resources.shard to none, with which each worker holds the whole model."
        )
    from transformers.distributed import DistributedConfig

    with explained(model, "language model"):
        source, revision = source_of(model)
        loaded = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            dtype=torch.float32,
            trust_remote_code=trust_remote_code,
            distributed_config=DistributedConfig(fsdp_size=ranks),
        )
    whole = [name for name, weight in loaded.named_parameters() if not hasattr(weight, "full_tensor")]
    if whole:
        raise ModelError(
            f"model: {len(whole)} weights of '{model}' would not be divided among the workers, first {whole[0]}: its class "
            "has no plan for it. Set resources.shard to none, with which each worker holds the whole model."
        )
    return loaded


def is_sharded(model: Any) -> bool:
    """Whether ranks hold shares of the model's weights."""
    return any(hasattr(weight, "full_tensor") for weight in model.parameters())


def save_whole(model: Any, folder: str, writes: bool) -> None:
    """Write the whole weights as `save_pretrained` does; all ranks give their shares, and the one that `writes` holds all.

    transformers' own gathering writes tied weights twice.
    """
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    own = {name for name, _ in model.named_parameters()}
    found = {}
    for name, share in model.state_dict().items():
        if name in tied and name not in own:
            continue
        whole = share.full_tensor() if hasattr(share, "full_tensor") else share
        if writes:
            found[name] = whole.cpu()
    if not writes:
        return
    divided, model.config.distributed_config = model.config.distributed_config, None
    try:
        model.save_pretrained(folder, state_dict=found)
    finally:
        model.config.distributed_config = divided
