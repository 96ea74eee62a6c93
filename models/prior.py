"""What is known of an entity before its first event: the population's prior, and calibration.

Fitted by `eddy fit` on a user's own stream, or by `eddy train` on a simulated one, and stored as
JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from models.baselines.renewal import HOURS

PRIOR_VERSION = 2  # 1 had no level noise, no PIT histograms and no origin
DEFAULT_KIND = "default"
LEVEL_NOISE = 2e-5  # where it was not fitted
PIT_BINS = 20


@dataclass(frozen=True, slots=True)
class Tail:
    """Tail of a detector's surprise s on normal data: P(S > s) = min(1, exp(offset - slope s)).

    Attributes:
        offset: log of the extrapolated exceedance at s = 0.
        slope: rate of decay per nat of surprise, > 0; 1 with offset 0 takes s at its word.
    """

    offset: float = 0.0
    slope: float = 1.0


@dataclass(frozen=True, slots=True)
class KindPrior:
    """Prior of one entity kind.

    Attributes:
        value_mean: mean over entities of the mean transformed value (payments: log amount).
        value_between_var: variance of that mean from entity to entity.
        value_within_var: variance of the value within an entity.
        gap_mean: mean over entities of the mean log gap, gaps in operational seconds.
        gap_between_var: variance of that mean from entity to entity.
        gap_within_var: variance of the log gap within an entity.
        partner_mean: expected number of distinct partners in two windows.
        level_noise: variance that an entity's level gains at each of its values, over the variance
            within an entity.
        profile: 168 relative rates by hour of the week, from Monday 00:00 UTC.
        tails: by detector, with the intensity model in charge.
        degraded_tails: by detector, with baselines alone.
        value_pit: PIT_BINS shares, what part of the values that the prior was fitted on fell into
            each of as many equally likely parts of the population's normal; empty if not counted.
        gap_pit: the same of the log gaps.
    """

    value_mean: float = 8.0
    value_between_var: float = 4.0
    value_within_var: float = 1.0
    gap_mean: float = 9.0
    gap_between_var: float = 9.0
    gap_within_var: float = 3.0
    partner_mean: float = 3.0
    level_noise: float = LEVEL_NOISE
    profile: tuple[float, ...] = (1.0,) * HOURS
    tails: Mapping[str, Tail] = field(default_factory=dict)
    degraded_tails: Mapping[str, Tail] = field(default_factory=dict)
    value_pit: tuple[float, ...] = ()
    gap_pit: tuple[float, ...] = ()

    def tail(self, detector: str, degraded: bool) -> Tail:
        """Return the calibration of `detector`; an uncalibrated one takes its surprise at half."""
        known = self.degraded_tails if degraded else self.tails
        return known.get(detector, Tail(0.0, 0.5))


@dataclass(frozen=True, slots=True)
class Prior:
    """Priors by entity kind; kinds that were not fitted take the one named `default`.

    Attributes:
        kinds: by name.
        origin: what it was fitted on, in words for people; the job does not read it.
    """

    kinds: Mapping[str, KindPrior]
    origin: Mapping[str, str] = field(default_factory=dict)

    def of(self, kind: str) -> KindPrior:
        """Return the prior of `kind`, or the default."""
        return self.kinds.get(kind) or self.kinds.get(DEFAULT_KIND) or KindPrior()


def save_prior(prior: Prior, path: Path) -> None:
    """Write `prior` as JSON of the current version, whole or not at all."""
    body = {
        "version": PRIOR_VERSION,
        "origin": dict(prior.origin),
        "kinds": {k: asdict(p) for k, p in prior.kinds.items()},
    }
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(body, indent=1) + "\n")
    unfinished.replace(path)


def load_prior(path: Path) -> Prior:
    """Read a prior file of this version or of version 1.

    Raises:
        ValueError: the file is no JSON, its version is not known, a kind's numbers are missing,
            unknown or not finite, or a profile has not 168 hours.
    """
    body = json.loads(path.read_text())
    version = body.get("version") if isinstance(body, dict) else None
    if version not in (1, PRIOR_VERSION):
        raise ValueError(
            f"{path.name}: expected prior version {PRIOR_VERSION}, found {version}; "
            "fit the prior again with `eddy fit`"
        )
    # Version 1 lacks fields only, and what it lacks has the meaning of the defaults.
    kinds = {kind: _read_kind(f"{path.name}, kind {kind}", f) for kind, f in body["kinds"].items()}
    return Prior(kinds, body.get("origin", {}))


def _read_kind(where: str, fields: dict[str, Any]) -> KindPrior:
    again = "fit the prior again with `eddy fit`"
    for key in ("tails", "degraded_tails"):
        fields[key] = {name: Tail(**tail) for name, tail in fields[key].items()}
    for key, expected in (("profile", HOURS), ("value_pit", PIT_BINS), ("gap_pit", PIT_BINS)):
        column = fields[key] = tuple(fields.get(key, ()))
        if len(column) != expected and (column or key == "profile"):
            hours = "hours" if key == "profile" else "parts"
            raise ValueError(
                f"{where}: expected a {key} of {expected} {hours}, found {len(column)}; {again}"
            )
    try:
        prior = KindPrior(**fields)
    except TypeError as error:
        raise ValueError(f"{where}: {error}; {again}") from None
    tails = (*prior.tails.values(), *prior.degraded_tails.values())
    numbers = [
        *((name, getattr(prior, name)) for name in _NUMBERS),
        *(("tails", number) for tail in tails for number in (tail.offset, tail.slope)),
        *(("profile", rate) for rate in prior.profile),
    ]
    for name, number in numbers:
        good = isinstance(number, int | float) and math.isfinite(number)
        if not good or (name in _POSITIVE and number <= 0.0):
            expected_number = "a number above 0" if name in _POSITIVE else "a finite number"
            raise ValueError(f"{where}: expected {expected_number} as {name}, found {number}")
    return prior


_POSITIVE = (
    "value_between_var",
    "value_within_var",
    "gap_between_var",
    "gap_within_var",
    "partner_mean",
    "profile",
)
_NUMBERS = ("value_mean", "gap_mean", "level_noise", *_POSITIVE[:-1])
