"""What is known of an entity before its first event: the population's prior, and calibration.

Fitted by `eddy train` on a stream without anomalies and stored beside the model as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from models.baselines.renewal import HOURS

PRIOR_VERSION = 1
DEFAULT_KIND = "default"


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
        profile: 168 relative rates by hour of the week, from Monday 00:00 UTC.
        tails: by detector, with the intensity model in charge.
        degraded_tails: by detector, with baselines alone.
    """

    value_mean: float = 8.0
    value_between_var: float = 4.0
    value_within_var: float = 1.0
    gap_mean: float = 9.0
    gap_between_var: float = 9.0
    gap_within_var: float = 3.0
    partner_mean: float = 3.0
    profile: tuple[float, ...] = (1.0,) * HOURS
    tails: Mapping[str, Tail] = field(default_factory=dict)
    degraded_tails: Mapping[str, Tail] = field(default_factory=dict)

    def tail(self, detector: str, degraded: bool) -> Tail:
        """Return the calibration of `detector`; an uncalibrated one takes its surprise at half."""
        known = self.degraded_tails if degraded else self.tails
        return known.get(detector, Tail(0.0, 0.5))


@dataclass(frozen=True, slots=True)
class Prior:
    """Priors by entity kind; kinds that were not fitted take the one named `default`."""

    kinds: Mapping[str, KindPrior]

    def of(self, kind: str) -> KindPrior:
        """Return the prior of `kind`, or the default."""
        return self.kinds.get(kind) or self.kinds.get(DEFAULT_KIND) or KindPrior()


def save_prior(prior: Prior, path: Path) -> None:
    """Write `prior` as JSON of the current version."""
    body = {"version": PRIOR_VERSION, "kinds": {k: asdict(p) for k, p in prior.kinds.items()}}
    path.write_text(json.dumps(body, indent=1) + "\n")


def load_prior(path: Path) -> Prior:
    """Read a prior file.

    Raises:
        ValueError: the file's version is not known, or a profile has not 168 hours.
    """
    body = json.loads(path.read_text())
    if body.get("version") != PRIOR_VERSION:
        raise ValueError(
            f"{path.name}: expected prior version {PRIOR_VERSION}, found {body.get('version')}; "
            "fit the prior again with `eddy train`"
        )
    kinds = {}
    for kind, fields in body["kinds"].items():
        for key in ("tails", "degraded_tails"):
            fields[key] = {name: Tail(**tail) for name, tail in fields[key].items()}
        if len(fields["profile"]) != HOURS:
            raise ValueError(
                f"{path.name}, kind {kind}: expected a profile of {HOURS} hours, "
                f"found {len(fields['profile'])}; fit the prior again with `eddy train`"
            )
        kinds[kind] = KindPrior(**{**fields, "profile": tuple(fields["profile"])})
    return Prior(kinds)
