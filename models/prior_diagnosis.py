"""Numbers and plain words about a fit: residuals, predictive calibration, tails."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.level_fit import LevelFit
from models.prior import Tail
from models.prior_fit import FEWEST_TAIL_EVENTS, TAIL_CLUSTERS

LAGS = 20
PIT_WARNING = 0.1  # Kolmogorov distance
ACF_WARNING = 0.1
FAR = 4.0  # standard deviations
FAR_SHARE_WARNING = 1e-3  # a normal has 6e-5 beyond FAR
EM_BETTER_WARNING = 1.0  # nats
UNEXPECTED = 0.01  # expected number of maxima beyond the largest, below which it is pointed out


def pooled_acf(series: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return float64[LAGS], autocorrelation at lags 1 to LAGS, over all entities.

    Args:
        series: standardised innovations of each entity; about mean 0, so none is taken off.
    """
    power = sum(float(np.sum(z * z)) for z in series)
    count = sum(len(z) for z in series)
    out = np.zeros(LAGS)
    for lag in range(1, LAGS + 1):
        product = sum(float(np.sum(z[lag:] * z[:-lag])) for z in series if len(z) > lag)
        pairs = sum(max(0, len(z) - lag) for z in series)
        if pairs and power > 0.0:
            out[lag - 1] = (product / pairs) / (power / count)
    return out


def em_agreement(levels: Sequence[LevelFit]) -> tuple[int, float, float]:
    """Compare EM with maximum likelihood where both were asked.

    Returns:
        (entities, median of EM's noise variance over that of maximum likelihood, largest gain of
        EM's log likelihood over that of maximum likelihood in nats); NaN where there are none.
    """
    both = [fit for fit in levels if not math.isnan(fit.em_log_likelihood)]
    if not both:
        return 0, math.nan, math.nan
    ratio = np.median([fit.em_noise_var / max(fit.noise_var, 1e-12) for fit in both])
    gain = max(fit.em_log_likelihood - fit.log_likelihood for fit in both)
    return len(both), float(ratio), gain


def level_warnings(
    levels: Sequence[LevelFit], innovations: Sequence[NDArray[np.float64]]
) -> list[str]:
    """Say in what the values of the sampled entities are not as the local level has them."""
    found = []
    moments = sum(fit.how == "moments" for fit in levels)
    if moments:
        found.append(f"{moments} of {len(levels)} fits did not converge and are those of moments")
    _, _, gain = em_agreement(levels)
    if gain > EM_BETTER_WARNING:
        found.append(
            f"EM found a log likelihood {gain:.1f} nats better than maximum likelihood: the fits "
            "of single entities are not to be relied on"
        )
    pooled = np.concatenate([*innovations, np.empty(0)])
    if len(pooled) < 100:
        return found
    acf = pooled_acf(innovations)
    worst = int(np.argmax(np.abs(acf)))
    if abs(acf[worst]) > max(ACF_WARNING, 4.0 / math.sqrt(len(pooled))):
        found.append(
            f"values depend on those before beyond their level: autocorrelation {acf[worst]:+.2f} "
            f"at lag {worst + 1}"
        )
    far = float(np.mean(np.abs(pooled) > FAR))
    if far > FAR_SHARE_WARNING:
        found.append(
            f"values have heavier tails than a normal: {100.0 * far:.2f}% lie beyond {FAR:.0f} "
            "standard deviations, .006% would; calibration makes up for it"
        )
    return found


def pit_warning(what: str, model: str, distance: float) -> list[str]:
    """Say where predictions are not calibrated.

    Args:
        what: "values", "gaps".
        model: what they were taken for, "normal about their level".
        distance: Kolmogorov distance of the PIT from uniform; NaN says nothing.
    """
    if not distance > PIT_WARNING:
        return []
    return [f"{what} are not {model} here: PIT KS {distance:.2f}"]


def tail_warning(
    detector: str, tail: Tail, maxima: NDArray[np.float32], events: int, clusters: int
) -> list[str]:
    """Say where a detector could not be calibrated, or its largest surprises do not fit its line.

    Args:
        detector: its name.
        tail: fitted.
        maxima: float32[m], largest of the clusters' maxima, falling.
        events: scored.
        clusters: entity-weeks.
    """
    if not events:
        return []
    if events < FEWEST_TAIL_EVENTS:
        few = f"{detector}: {events:,} scored events, fewer than {FEWEST_TAIL_EVENTS:,}"
        return [f"{few}: not calibrated, taken at half its word"]
    if clusters <= TAIL_CLUSTERS:
        few = f"{detector}: {clusters} entity-weeks, no more than {TAIL_CLUSTERS}"
        return [f"{few}: not calibrated, taken at its word"]
    expected = events * np.exp(np.minimum(tail.offset - tail.slope * maxima.astype(float), 0.0))
    beyond = int(np.count_nonzero(expected < UNEXPECTED))
    if not beyond:
        return []
    largest = f"{float(maxima[0]):.0f} nats, expected {float(expected[0]):.1g} times"
    told = f"{detector}: {beyond} entity-weeks lie beyond the fitted tail (up to {largest})"
    return [f"{told}: anomalies in this traffic, or a tail heavier than its line"]
