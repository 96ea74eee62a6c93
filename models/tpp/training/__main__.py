"""Command line: `python -m models.tpp.training --seed 7 --out triton_repo/intensity/1`."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path

from models.tpp.training.fit import TrainingConfig
from models.tpp.training.run import train_and_export


def main() -> None:
    """Train on simulated worlds and write the model with its card."""
    default = TrainingConfig()
    parser = argparse.ArgumentParser(prog="python -m models.tpp.training", description=__doc__)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--worlds", type=int, default=default.worlds)
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--out", type=Path, default=Path("triton_repo/intensity/1"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = replace(default, seed=arguments.seed, worlds=arguments.worlds, steps=arguments.steps)
    card = train_and_export(config, arguments.out)
    logging.getLogger(__name__).info("wrote %s: model %s", arguments.out, card["model_version"])


if __name__ == "__main__":
    main()
