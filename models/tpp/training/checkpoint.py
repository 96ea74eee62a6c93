"""Checkpoints of a training: whole or not at all, and only gone on with where they belong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from models.tpp.training.errors import TrainingError

FORM = 1


def save(path: Path, job: str, tensors: dict[str, Any], told: dict[str, Any]) -> None:
    """Write a checkpoint in place of the one before.

    Args:
        path: of the file.
        job: what the training depends on; another one will not go on from here.
        tensors: states of modules and optimisers.
        told: whatever JSON holds.
    """
    body = {"form": FORM, "job": job, "tensors": tensors, "told": json.dumps(told)}
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("wb") as file:
        torch.save(body, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def load(path: Path, job: str, device: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the tensors and what was told; None where there is no checkpoint.

    Raises:
        TrainingError: the file is no checkpoint, or one of another training.
    """
    if not path.exists():
        return None
    again = "begin anew without --resume"
    try:
        # Weights only: a checkpoint is data and must not run code.
        body = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise TrainingError(f"{path} cannot be read ({error}); {again}") from None
    except Exception as error:  # noqa: BLE001
        # What the restricted unpickler raises has a class of its own in each release.
        raise TrainingError(f"{path} is no checkpoint ({type(error).__name__}); {again}") from None
    if not isinstance(body, dict) or body.get("form") != FORM:
        raise TrainingError(f"{path}: expected a checkpoint of form {FORM}; {again}")
    if body["job"] != job:
        raise TrainingError(f"{path} is the checkpoint of another training; {again}")
    return body["tensors"], json.loads(body["told"])
