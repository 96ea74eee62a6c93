"""The experiment of decision 8: forms of a covariance in single precision, over 10 million updates.

    python -m deploy.bench.covariance_forms [ordinary] [still] [wide]

Each form carries level, slope and three harmonics (8 states) over the same irregular gaps, with
missing observations. States are stored in single precision and computed in double precision, as
in the job; the reference is stored in double precision.
"""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from deploy.bench.report import machine
from models.baselines.state_space import (
    KIND,
    START,
    STEPS,
    TREND,
    condition_cov,
    condition_mean,
    pack,
    predict_cov,
    predict_mean,
    project,
    transition,
    unpack,
)
from models.baselines.structural_spec import (
    Level,
    Noise,
    Parameters,
    Season,
    StructuralSpec,
    Trend,
    compile_spec,
)

UPDATES = 10_000_000
CHUNK = 10_000  # updates between two looks at the covariance ...
EARLY = 10  # ... and within the first chunk, where it changes most
MISSING = 0.05
DOWNDATE, JOSEPH, SQUARE_ROOT = 0, 1, 2
_KNOWN = Noise(1.0, learns=False)
PROBLEMS = {
    # As in the job: everything wanders, and the covariance settles.
    "ordinary": StructuralSpec(
        level=Level(0.01, mean=0.0, var=100.0),
        trend=Trend(1e-6, var=0.01),
        seasons=(Season(86_400.0, 3, noise_var=1e-6, var=10.0),),
        interval_s=300.0,
        noise=_KNOWN,
    ),
    # Nothing wanders, and two seasons are nearly one: some directions stay unknown while others
    # are known to one in 10 million.
    "still": StructuralSpec(
        level=Level(0.0, mean=0.0, var=1e3),
        trend=Trend(0.0, var=1.0),
        seasons=(
            Season(86_400.0, 2, noise_var=0.0, var=1e3),
            Season(86_700.0, 1, noise_var=0.0, var=1e3),
        ),
        interval_s=300.0,
        noise=_KNOWN,
    ),
    # The same with priors as wide as nothing known.
    "wide": StructuralSpec(
        level=Level(0.0, mean=0.0, var=1e8),
        trend=Trend(0.0, var=1e4),
        seasons=(
            Season(86_400.0, 2, noise_var=0.0, var=1e8),
            Season(86_700.0, 1, noise_var=0.0, var=1e8),
        ),
        interval_s=300.0,
        noise=_KNOWN,
    ),
}
Floats = NDArray[np.float64]


@njit(cache=True)
def joseph(mean, cov, loading, pull, innovation, innovation_var):  # type: ignore[no-untyped-def]
    """Update with (I - K h') cov (I - K h')' + K K', K = cov h / innovation_var (Joseph 1968).

    Args:
        mean: float64[d], changed in place.
        cov: float64[d, d], changed in place.
        loading: float64[d], the h above.
        pull: float64[d], cov h.
        innovation: observation less expectation.
        innovation_var: h' cov h + 1.
    """
    d = len(mean)
    gain = pull / innovation_var
    for i in range(d):
        mean[i] += gain[i] * innovation
        for j in range(d):
            cov[i, j] -= gain[i] * pull[j]
    for i in range(d):
        left = 0.0
        for j in range(d):
            left += cov[i, j] * loading[j]
        for j in range(d):
            cov[i, j] += (gain[i] - left) * gain[j]


@njit(cache=True)
def triangular(array):  # type: ignore[no-untyped-def]
    """Make an array float64[n, m], m >= n, lower triangular by Householder reflections, in place.

    The product of the array with its transpose stays as it is; the diagonal becomes >= 0.
    """
    n, m = array.shape
    for k in range(n):
        norm = 0.0
        for j in range(k, m):
            norm += array[k, j] * array[k, j]
        norm = math.sqrt(norm)
        if norm == 0.0:
            continue
        head = array[k, k]
        target = -norm if head > 0.0 else norm
        array[k, k] = head - target
        scale = target * (target - head)
        for i in range(k + 1, n):
            along = 0.0
            for j in range(k, m):
                along += array[i, j] * array[k, j]
            along /= scale
            for j in range(k, m):
                array[i, j] -= along * array[k, j]
        array[k, k] = target
        array[k, k + 1 :] = 0.0
        if target < 0.0:
            for i in range(k, n):
                array[i, k] = -array[i, k]


@njit(cache=True)
def predict_root(p, steps, root, array):  # type: ignore[no-untyped-def]
    """Lay [F L, Q^1/2] below the first row of the array.

    Args:
        p: parameters.
        steps: of `transition`.
        root: float64[d, d], L, lower triangular.
        array: float64[d + 1, 2 d + 1], filled.
    """
    d = len(root)
    array[:] = 0.0
    array[1:, 1 : d + 1] = root
    for b in range(len(p.blocks)):
        at = int(p.blocks[b, START])
        row, noise = at + 1, at + d + 1
        if p.blocks[b, KIND] == TREND:
            for j in range(1, d + 1):
                array[row, j] += steps[b, 0] * array[row + 1, j]
                array[row + 1, j] *= steps[b, 1]
            slope = math.sqrt(steps[b, 4])
            cross = steps[b, 3] / slope if slope > 0.0 else 0.0
            array[row + 1, noise + 1] = slope
            array[row, noise + 1] = cross
            array[row, noise] = math.sqrt(max(steps[b, 2] - cross * cross, 0.0))
        else:
            cosine, sine = steps[b, 0], steps[b, 1]
            for j in range(1, d + 1):
                first, second = array[row, j], array[row + 1, j]
                array[row, j] = cosine * first + sine * second
                array[row + 1, j] = cosine * second - sine * first
            array[row, noise] = math.sqrt(steps[b, 2])
            array[row + 1, noise + 1] = array[row, noise]


@njit(cache=True)
def update_root(loading, mean, root, array, innovation):  # type: ignore[no-untyped-def]
    """Update in one triangularisation, the array form (Kailath, Sayed and Hassibi 2000, ch. 12).

    The rows of [[1, h' F L, h' Q^1/2], [0, F L, Q^1/2]] become [[S^1/2, 0, 0], [K S^1/2, L, 0]].

    Args:
        loading: float64[d], the h above.
        mean: float64[d], predicted; changed in place.
        root: float64[d, d], filled.
        array: float64[d + 1, 2 d + 1], of `predict_root`; changed in place.
        innovation: observation less expectation; NaN is missing.

    Returns:
        The variance of the innovation; NaN where it is missing.
    """
    d = len(mean)
    if math.isnan(innovation):
        triangular(array[1:, 1:])
        root[:] = array[1:, 1 : d + 1]
        return math.nan
    array[0, 0] = 1.0
    for j in range(1, 2 * d + 1):
        for i in range(d):
            array[0, j] += loading[i] * array[i + 1, j]
    triangular(array)
    root[:] = array[1:, 1 : d + 1]
    for i in range(d):
        mean[i] += array[i + 1, 0] / array[0, 0] * innovation
    return array[0, 0] * array[0, 0]


@njit(cache=True)
def carry(p, form, gaps, values, mean_of, packed, rounding, expected, variances):  # type: ignore[no-untyped-def]
    """Carry a stored state through a chunk of updates; each loads and stores it.

    Args:
        p: parameters.
        form: DOWNDATE, JOSEPH or SQUARE_ROOT.
        gaps: float64[n], intervals.
        values: float64[n], NaN is missing.
        mean_of: float[d], stored state, changed in place.
        packed: float[1, d (d + 1) / 2], stored covariance or root, changed in place.
        rounding: by which the stored diagonal is made larger.
        expected: float64[n], filled with what was expected.
        variances: float64[n], of the innovations, filled; NaN where nothing is seen.
    """
    d = len(p.loading)
    mean, pull, cov = np.empty(d), np.empty(d), np.empty((d, d))
    array = np.empty((d + 1, 2 * d + 1))
    steps = np.zeros((len(p.blocks), STEPS))
    for n in range(len(gaps)):
        for j in range(d):
            mean[j] = mean_of[j]
        unpack(packed, 0, cov)
        transition(p.blocks, gaps[n], p.longest_gap, steps)
        predict_mean(p.blocks, p.powers, steps, mean)
        if form == SQUARE_ROOT:
            for i in range(d):
                cov[i, i + 1 :] = 0.0
            predict_root(p, steps, cov, array)
            expected[n] = np.dot(p.loading, mean)
            innovation = values[n] - expected[n]
            variances[n] = update_root(p.loading, mean, cov, array, innovation)
        else:
            predict_cov(p.blocks, p.powers, p.noises, steps, 1.0, cov)
            expected[n] = np.dot(p.loading, mean)
            innovation = values[n] - expected[n]
            variances[n] = math.nan
            if not math.isnan(innovation):
                variances[n] = project(cov, p.loading, pull) + 1.0
                if form == JOSEPH:
                    joseph(mean, cov, p.loading, pull, innovation, variances[n])
                else:
                    condition_mean(mean, pull, innovation, variances[n])
                    condition_cov(cov, pull, variances[n])
        pack(cov, rounding, packed, 0)
        for j in range(d):
            mean_of[j] = mean[j]


def full(packed: NDArray[np.floating[Any]], form: int, d: int) -> Floats:
    """Return the stored covariance, float64[d, d]."""
    lower = np.zeros((d, d))
    lower[np.tril_indices(d)] = packed[0]
    return lower @ lower.T if form == SQUARE_ROOT else lower + np.tril(lower, -1).T


def least_eigenvalue(cov: Floats) -> float:
    """Return the least eigenvalue of a covariance whose variances are scaled to 1.

    Minus infinity where a number in it is none.
    """
    if not np.isfinite(cov).all():
        return -math.inf
    scale = np.sqrt(np.maximum(np.diag(cov), 1e-300))
    return float(np.linalg.eigvalsh(cov / np.outer(scale, scale))[0])


class Carried:
    """One form with its stored state, and what was found of it."""

    def __init__(
        self, spec: StructuralSpec, form: int, number: type[np.floating[Any]], margin: bool
    ) -> None:
        self.parameters: Parameters = compile_spec(spec, None)
        d = spec.states
        self.form = form
        self.rounding = (d + 1) * 2.0**-24 if margin else 0.0
        cov = np.zeros((d, d))
        cov[np.tril_indices(d)] = self.parameters.prior_cov[0]
        start = np.sqrt(cov) if form == SQUARE_ROOT else cov  # the prior is diagonal
        self.mean = np.zeros(d, number)
        self.packed = start[np.tril_indices(d)][None].astype(number)
        self.expected, self.variances = np.empty(0), np.empty(0)
        self.seconds, self.least = 0.0, math.inf
        self.mean_error, self.variance_error, self.broken, self.looks = 0.0, 0.0, 0, 0

    def advance(self, gaps: Floats, values: Floats) -> None:
        """Carry a chunk, and time it."""
        self.expected, self.variances = np.empty(len(gaps)), np.empty(len(gaps))
        begin = time.perf_counter()
        carry(
            self.parameters,
            self.form,
            gaps,
            values,
            self.mean,
            self.packed,
            self.rounding,
            self.expected,
            self.variances,
        )
        self.seconds += time.perf_counter() - begin
        least = least_eigenvalue(full(self.packed, self.form, len(self.mean)))
        self.least = min(self.least, least)
        self.broken += least < 0.0
        self.looks += 1

    def compare(self, reference: Carried) -> None:
        """Take the largest errors: of expectations in sd, of innovation variances relative."""
        seen = ~np.isnan(reference.variances)
        ratio = self.variances[seen] / reference.variances[seen] - 1.0
        off = np.abs(self.expected - reference.expected)[seen] / np.sqrt(reference.variances[seen])
        # A state that is no number any more is infinitely wrong.
        self.variance_error = max(self.variance_error, _largest(ratio))
        self.mean_error = max(self.mean_error, _largest(off))

    def figures(self, updates: int) -> dict[str, float]:
        """Return what was measured, to three digits."""
        found = {
            "us_per_update": 1e6 * self.seconds / updates,
            "expectation_error_sd": self.mean_error,
            "innovation_var_relative_error": self.variance_error,
            "least_scaled_eigenvalue": self.least,
            "looks": self.looks,
            "looks_not_positive": self.broken,
        }
        return {
            name: value if name.startswith("looks") else float(f"{value:.3g}")
            for name, value in found.items()
        }


def _largest(errors: Floats) -> float:
    return float(np.abs(errors).max()) if np.isfinite(errors).all() else math.inf


def experiment(
    spec: StructuralSpec, updates: int = UPDATES, seed: int = 1
) -> dict[str, dict[str, float]]:
    """Carry all forms side by side.

    Args:
        spec: of 8 states.
        updates: a multiple of CHUNK.
        seed: of gaps and observations.

    Returns:
        Figures by form.
    """
    rng = np.random.default_rng(seed)
    reference = Carried(spec, JOSEPH, np.float64, margin=False)
    forms = {
        "downdate": Carried(spec, DOWNDATE, np.float32, margin=False),
        "downdate with margin": Carried(spec, DOWNDATE, np.float32, margin=True),
        "joseph": Carried(spec, JOSEPH, np.float32, margin=False),
        "joseph with margin": Carried(spec, JOSEPH, np.float32, margin=True),
        "square root": Carried(spec, SQUARE_ROOT, np.float32, margin=False),
    }
    _compile(spec, rng)
    level = 0.0
    chunks = [EARLY] * (CHUNK // EARLY) + [CHUNK] * (updates // CHUNK - 1)
    for size in chunks:
        gaps = rng.exponential(1.0, size)
        walked = level + np.cumsum(rng.normal(0.0, np.sqrt(spec.level.noise_var * gaps)))
        level = float(walked[-1])
        values = walked + rng.normal(0.0, 1.0, size)
        values[rng.uniform(size=size) < MISSING] = np.nan
        reference.advance(gaps, values)
        for carried in forms.values():
            carried.advance(gaps, values)
            carried.compare(reference)
    found = {name: carried.figures(updates) for name, carried in forms.items()}
    return {"joseph in double precision": reference.figures(updates), **found}


def _compile(spec: StructuralSpec, rng: np.random.Generator) -> None:
    """Compile every form before the clock runs."""
    for form in (DOWNDATE, JOSEPH, SQUARE_ROOT):
        for number in (np.float32, np.float64):
            Carried(spec, form, number, margin=False).advance(
                rng.exponential(1.0, CHUNK), rng.normal(size=CHUNK)
            )


if __name__ == "__main__":
    found = {name: experiment(PROBLEMS[name]) for name in sys.argv[1:] or PROBLEMS}
    print(json.dumps({"machine": machine(), "problems": found}, indent=2))  # noqa: T201
