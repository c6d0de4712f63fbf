"""`python -m raysift.jobs.nano_build` trains the nano models, by default with as many steps as the shipped ones."""

from __future__ import annotations

import argparse
from pathlib import Path

from raysift.jobs.nano_build import BuildConfig, build


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the nano models.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*")
    for name in ("foundation_steps", "reward_steps", "encoder_steps"):
        value = getattr(BuildConfig(), name)
        parser.add_argument(f"--{name}", type=type(value), default=value)
    arguments = vars(parser.parse_args())
    out, seed, only = arguments.pop("out"), arguments.pop("seed"), arguments.pop("only")
    build(out, seed, only, lambda line: print(line, flush=True), BuildConfig(**arguments))


if __name__ == "__main__":
    main()
