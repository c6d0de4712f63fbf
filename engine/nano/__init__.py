"""The embedded default: a synthetic instruction corpus with known ground truth, and three small models trained on it.

`raysift.nano.world` generates pools, preference pairs and examples (stdlib only); `nano_path` gives a model's folder. With them
every command runs without a network or a GPU, and a selection can be measured against the truth.
"""

from pathlib import Path

NANO_MODELS = ("encoder", "foundation", "reward")

__all__ = ["NANO_MODELS", "is_nano", "nano_path"]


def is_nano(model: str) -> bool:
    """Whether the name is a nano model (`nano`, `nano:PART`) rather than a path or hub id."""
    return model == "nano" or model.startswith("nano:")


def nano_path(name: str) -> Path:
    """The folder of a shipped checkpoint, loadable by transformers' Auto classes."""
    if name not in NANO_MODELS:
        raise ValueError(f"nano: unknown model {name!r}; known: {', '.join(NANO_MODELS)}")
    path = Path(__file__).parent / "weights" / name
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"nano: {path} holds no config.json; build it with 'raysift nano build --out {path.parent}'"
        )
    return path
