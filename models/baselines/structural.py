"""Structural baseline: what an entity's values normally are, with honest predictive p-values.

A Kalman filter over the parts of a `StructuralSpec`, in continuous time. All variances are
multiples of the observation's noise variance, which each entity learns: with the conjugate
inverse-gamma prior the predictive distribution is a Student-t (West and Harrison 1997, sec. 4.5;
the rate of forgetting is theirs too), so that p-values hold from the second event on.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numba import njit

from models.baselines.calendar import fill_regressors
from models.baselines.component import Component
from models.baselines.local_level import CLIP, CUT
from models.baselines.state_space import (
    STEPS,
    condition_cov,
    condition_mean,
    pack,
    predict_cov,
    predict_mean,
    project,
    start_level,
    transition,
    unpack,
)
from models.baselines.structural_spec import StructuralSpec, compile_spec
from models.baselines.student_t import (
    SQUARE_LIMIT,
    cut_off,
    normal_score,
    robust_weight,
    two_sided_surprise,
)

VERSION = 1
TELLS = ("surprise", "score", "expected", "expected_sd", "level", "shift")
SURPRISE, SCORE, EXPECTED, EXPECTED_SD, LEVEL_NOW, SHIFTED = range(6)

VALUE_LIMIT = 1e15  # beyond it a value counts as missing: its square would leave single precision
RELATIVE_SD = 1e-6  # of the expected value: below it single precision tells nothing apart
EVENTS_LIMIT = 2_000_000_000  # where the count of events stops
NEVER_LEARNED = 1e9  # degrees of freedom of a known variance
RATIO_LIMIT = math.log(1000.0)  # of the learned factor of the process noise, either way

# Places in `learned`, what an entity has learned beside its state.
NOISE_VAR, DOF, SCORED, LOG_RATIO, LAST_SCORE, RUN = range(6)
LEARNED = 6
UNKNOWN = -1.0  # in SCORED: not even the level is known


@njit(cache=True)
def begin(p, mean, cov, learned):  # type: ignore[no-untyped-def]
    """Set an entity to the prior."""
    mean[:] = p.prior_mean
    unpack(p.prior_cov, 0, cov)
    learned[:] = 0.0
    learned[NOISE_VAR] = p.rules.noise_var
    learned[DOF] = p.rules.prior_events if p.rules.learns else NEVER_LEARNED
    learned[SCORED] = 0.0 if p.level_known else UNKNOWN


@njit(cache=True)
def find_scale(rules, innovation, ratio_var, smallest, learned):  # type: ignore[no-untyped-def]
    """Take the noise variance of an entity of which none is known from an innovation.

    A series without any noise so far stays without scale, and is scored neither; after
    `constant_events` it counts as constant, with the smallest variance that can be told.

    Args:
        rules: of the spec.
        innovation: observation less what was expected.
        ratio_var: variance of the innovation, in multiples of the noise variance.
        smallest: variance below which nothing is told apart.
        learned: float64[LEARNED], changed in place.
    """
    if innovation * innovation > smallest * ratio_var:
        learned[NOISE_VAR] = innovation * innovation / ratio_var
        learned[DOF] = 1.0
        learned[SCORED] = 1.0
        return
    learned[SCORED] += 1.0
    if learned[SCORED] >= rules.constant_events:
        learned[NOISE_VAR] = smallest
        learned[DOF] = learned[SCORED]


@njit(cache=True)
def learn_noise(rules, deviate, score, noise_var, learned):  # type: ignore[no-untyped-def]
    """Learn noise variance, its degrees of freedom and the process noise from one score.

    The variance is the mean of squared innovations under exponential forgetting; `dof`, the
    number of events that this mean is worth, is one over the sum of its squared weights. Squares
    are cut where the score passes CLIP, so that no event multiplies the variance by more than
    1 + 8 rate once it is learned. Cut at the same deviate while few events are known, the variance
    comes out too small, for a Student-t of few degrees of freedom goes there often: the rate at
    a nominal .01 was 5 times as high in the first ten events, and 2.7 times in the next forty.

    The process noise is right when successive innovations are uncorrelated (Mehra 1970): a
    positive correlation says that the level follows too slowly. Its factor takes one step of
    stochastic approximation on that correlation.

    Args:
        rules: of the spec.
        deviate: innovation over its standard deviation.
        score: standard normal under the prediction.
        noise_var: variance that the score was made with.
        learned: float64[LEARNED], changed in place.
    """
    learned[SCORED] += 1.0
    cut = min(max(score, -CLIP), CLIP)
    if rules.learns:
        events = learned[SCORED] + (rules.prior_events if rules.noise_var > 0.0 else 0.0)
        rate = 1.0 / min(events, rules.memory_events)
        square = min(deviate * deviate, SQUARE_LIMIT)
        if abs(score) > CLIP:
            square = min(square, cut_off(CLIP * CLIP, learned[DOF]))
        learned[NOISE_VAR] = noise_var * (1.0 + rate * (CUT * square - 1.0))
        kept = 1.0 - rate
        learned[DOF] = 1.0 / (kept * kept / learned[DOF] + rate * rate)
    change = rules.ratio_rate * cut * learned[LAST_SCORE]
    learned[LOG_RATIO] = min(max(learned[LOG_RATIO] + change, -RATIO_LIMIT), RATIO_LIMIT)
    learned[LAST_SCORE] = cut


@njit(cache=True)
def count_run(rules, score, learned):  # type: ignore[no-untyped-def]
    """Count outliers in a row on one side (signed); return whether they make a true shift."""
    if rules.shift_events == 0.0:
        return False
    run = learned[RUN]
    if score > rules.shift_score:
        run = max(run, 0.0) + 1.0
    elif score < -rules.shift_score:
        run = min(run, 0.0) - 1.0
    else:
        run = 0.0
    shifted = abs(run) >= rules.shift_events
    learned[RUN] = 0.0 if shifted else run
    return shifted


@njit(cache=True)
def observe(rules, y, origin, loading, mean, cov, pull, learned, out, n):  # type: ignore[no-untyped-def]
    """Score an observation and update with it.

    Args:
        rules: of the spec.
        y: the observation, finite.
        origin: what the state is relative to.
        loading: float64[d], of this observation.
        mean: float64[d], predicted; changed in place.
        cov: float64[d, d], predicted; changed in place.
        pull: float64[d], scratch.
        learned: float64[LEARNED], changed in place.
        out: float32[m, len(TELLS)], of which a row is filled where the event is scored.
        n: the row.
    """
    expected = 0.0
    for j in range(len(mean)):
        expected += loading[j] * mean[j]
    innovation = (y - origin) - expected
    if learned[SCORED] == UNKNOWN:
        start_level(loading, 0, innovation, mean, cov, pull)
        learned[SCORED] = 0.0
        return
    state_var = project(cov, loading, pull)
    size = RELATIVE_SD * (origin + expected)
    smallest = max(rules.smallest_var, size * size)
    if learned[NOISE_VAR] == 0.0:
        find_scale(rules, innovation, state_var + 1.0, smallest, learned)
        condition_mean(mean, pull, innovation, state_var + 1.0)
        condition_cov(cov, pull, state_var + 1.0)
        return
    noise_var = max(learned[NOISE_VAR], smallest)
    expected_sd = math.sqrt(noise_var * (state_var + 1.0))
    deviate = innovation / expected_sd
    score = normal_score(deviate, learned[DOF])
    out[n, SURPRISE] = two_sided_surprise(score)
    out[n, SCORE] = score
    out[n, EXPECTED] = origin + expected
    out[n, EXPECTED_SD] = expected_sd
    shifted = count_run(rules, score, learned)
    weight = 1.0
    if shifted:
        # The level is set free by what the last outlier says of the shift's size.
        cov[0, 0] += innovation * innovation / noise_var
        state_var = project(cov, loading, pull)
    else:
        # Of the deviate: the score rises by a logarithm only, and would leave the pull unbounded.
        weight = robust_weight(deviate, rules.robust_dof)
        learn_noise(rules, deviate, score, noise_var, learned)
    out[n, SHIFTED] = 1.0 if shifted else 0.0
    condition_mean(mean, pull, innovation, state_var + 1.0 / weight)
    condition_cov(cov, pull, state_var + 1.0 / weight)
    out[n, LEVEL_NOW] = origin + mean[0]


@njit(cache=True, nogil=True)
def structural_walk(state, row, fresh, time_ms, value, mark, partner, p, out):  # type: ignore[no-untyped-def]  # noqa: ARG001
    """Walk a batch; see `models.baselines.component.Component` for the arguments."""
    # The fields as arrays: records of another size are another type, and would compile it all anew.
    walk_columns(
        state["time_ms"],
        state["origin"],
        state["events"],
        state["learned"],
        state["mean"],
        state["cov"],
        row,
        fresh,
        time_ms,
        value,
        p,
        out,
    )


@njit(cache=True, nogil=True)
def walk_columns(  # type: ignore[no-untyped-def]
    newest_ms, origin, events, learned_of, mean_of, cov_of, row, fresh, time_ms, value, p, out
):
    """Walk a batch over the fields of the records; see `structural_walk`."""
    d = len(p.loading)
    mean, pull, cov = np.empty(d), np.empty(d), np.empty((d, d))
    learned, loading = np.empty(LEARNED), p.loading.copy()
    steps = np.zeros((len(p.blocks), STEPS))
    # Taken out of `p` once: each time would count a reference.
    blocks, powers, noises, rules = p.blocks, p.powers, p.noises, p.rules
    regressors, regressor_values = p.regressors, p.regressor_values
    steps_of = -1.0  # the elapsed time that `steps` are of: regular streams compute them once
    for i in range(len(row)):
        r = row[i]
        out[i, SURPRISE] = 0.0
        for j in range(SURPRISE + 1, len(TELLS)):
            out[i, j] = math.nan
        elapsed = 0.0
        if fresh[i] or events[r] == 0:
            begin(p, mean, cov, learned)
            newest_ms[r], origin[r], events[r] = time_ms[i], p.origin, 0
        else:
            unpack(cov_of, r, cov)
            for j in range(d):
                mean[j] = mean_of[r, j]
            for j in range(LEARNED):
                learned[j] = learned_of[r, j]
            elapsed = 1.0 if p.by_event else (time_ms[i] - newest_ms[r]) / p.interval_ms
        if elapsed > 0.0:
            if elapsed != steps_of:
                transition(blocks, elapsed, p.longest_gap, steps)
                steps_of = elapsed
            predict_mean(blocks, powers, steps, mean)
            predict_cov(blocks, powers, noises, steps, math.exp(learned[LOG_RATIO]), cov)
            newest_ms[r] = max(time_ms[i], newest_ms[r])
        if abs(value[i]) <= VALUE_LIMIT:  # false for NaN as well
            if learned[SCORED] == UNKNOWN:
                origin[r] = value[i]
            fill_regressors(time_ms[i], regressors, regressor_values, loading)
            observe(rules, value[i], origin[r], loading, mean, cov, pull, learned, out, i)
        events[r] = min(events[r] + 1, EVENTS_LIMIT)
        for j in range(d):
            mean_of[r, j] = mean[j]
        for j in range(LEARNED):
            learned_of[r, j] = learned[j]
        pack(cov, p.rounding, cov_of, r)


def state_dtype(states: int, precision: Literal["single", "double"]) -> np.dtype[np.void]:
    """Return the record of an entity with `states` state variables.

    Fields: time_ms (of the newest event), origin (what the level is relative to: single precision
    would lose small changes of large values), events, mean, cov (lower triangle by rows, in
    multiples of the noise variance), learned.
    """
    number = np.float32 if precision == "single" else np.float64
    return np.dtype(
        [
            ("time_ms", np.int64),
            ("origin", np.float64),
            ("events", np.int32),
            ("learned", number, (LEARNED,)),
            ("mean", number, (states,)),
            ("cov", number, (states * (states + 1) // 2,)),
        ],
        align=True,
    )


def structural(
    spec: StructuralSpec,
    name: str = "structural",
    precision: Literal["single", "double"] = "single",
) -> Component:
    """Build the component of a structural model.

    Args:
        spec: the model.
        name: as the settings name it.
        precision: of the stored state; "double" is for oracles.
    """
    return Component(
        name=name,
        version=VERSION,
        state=state_dtype(spec.states, precision),
        tells=TELLS,
        surprises=("surprise",),
        parameters=compile_spec(spec, 24 if precision == "single" else None),
        walk=structural_walk,
    )
