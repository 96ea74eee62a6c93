"""What scoring needs to know of one entity kind, put together once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flink_jobs.advance import AdvanceModel
from flink_jobs.components import NO_COMPONENTS, KindComponents
from flink_jobs.decide import DecideModel
from models.prior import LEVEL_NOISE
from models.prior_check import CheckModel


@dataclass(frozen=True, slots=True)
class KindModel:
    """The models of one entity kind.

    Attributes:
        kind: its name.
        advance: baselines and encoder.
        decide: thresholds and calibration.
        partner: index of the kind whose entities are this one's partners, or None.
        check: what the prior expects of the kind's events.
        components: those that the settings name for the kind.
        hashed_partner: index of the kind whose hashes they read as partners, or None.
    """

    kind: str
    advance: AdvanceModel
    decide: DecideModel
    partner: int | None
    check: CheckModel
    components: KindComponents = NO_COMPONENTS
    hashed_partner: int | None = None

    def digest(self) -> str:
        """Return a digest of the weights and moments that a replay of the log would use."""
        encoder, baselines = self.advance.encoder, self.advance
        numbers = tuple(baselines.parameters)
        if baselines.parameters.level_noise == LEVEL_NOISE:
            numbers = numbers[:-1]  # as before it could be fitted: savepoints of then still fit
        data = (
            *(w.tobytes() for w in (encoder.w1, encoder.b1, encoder.w2, encoder.b2)),
            repr(numbers).encode(),
            baselines.cumulative.tobytes(),
        )
        return hashlib.blake2b(b"".join(data), digest_size=8).hexdigest()


class Observer(Protocol):
    """Sees every decided event; the fitting of priors listens here."""

    def __call__(self, kind: int, advanced: NDArray[np.void], decided: NDArray[np.void]) -> None:
        """Take the records of one kind in one batch."""
