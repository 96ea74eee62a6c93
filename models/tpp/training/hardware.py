"""Where training runs and in which precision: CPU in float32, CUDA with autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.tpp.training.errors import TrainingError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Hardware:
    """A device and a precision of the matrix products; all else stays float32.

    Attributes:
        device: "cpu" or "cuda".
        precision: a key of PRECISIONS. Weights, memories and likelihoods are float32 in each.
    """

    device: str = "cpu"
    precision: str = "fp32"

    @classmethod
    def choose(cls, device: str = "auto", precision: str = "auto") -> Hardware:
        """Resolve "auto": CUDA where there is a GPU, and there bf16, or fp16 on older ones.

        On a CPU "auto" is fp32: bf16 gains nothing at these widths and costs likelihood.

        Raises:
            TrainingError: CUDA is asked for and torch sees no GPU.
        """
        there = torch.cuda.is_available()
        if device == "cuda" and not there:
            raise TrainingError(
                "--device cuda: expected an NVIDIA GPU, but torch sees none; train with "
                "--device cpu, or look at `nvidia-smi` and at the driver"
            )
        chosen = device if device != "auto" else "cuda" if there else "cpu"
        if precision != "auto":
            return cls(chosen, precision)
        if chosen == "cpu":
            return cls(chosen)
        return cls(chosen, "bf16" if torch.cuda.is_bf16_supported() else "fp16")

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which the network is evaluated."""
        if self.precision == "fp32":
            return nullcontext()
        context: AbstractContextManager[object] = torch.autocast(
            self.device, PRECISIONS[self.precision]
        )
        return context

    def scaler(self) -> torch.amp.GradScaler:
        """Return the scaler of the loss: fp16's gradients would vanish without it."""
        return torch.amp.GradScaler(self.device, enabled=self.precision == "fp16")


def on(device: torch.device, array: NDArray[np.generic]) -> Tensor:
    """Return an array as a tensor on `device`; on a CPU it shares the memory."""
    return torch.from_numpy(array).to(device)
