"""Structural baseline of up to four values that are measured together.

The matrix normal model (West and Harrison 1997, sec. 16.4; Harvey's homogeneous system): each
value has its own level, season and so on, all of one form, and the noises of the values are
correlated in one matrix, which the entity learns. So one covariance of the state serves all
values, an event costs little more than with one value, and what breaks the correlation is as
surprising as what breaks a level. The predictive distribution is a multivariate Student-t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.baselines.calendar import fill_regressors
from models.baselines.component import Component
from models.baselines.local_level import CLIP
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
from models.baselines.structural import (
    EVENTS_LIMIT,
    NEVER_LEARNED,
    RATIO_LIMIT,
    RELATIVE_SD,
    VALUE_LIMIT,
)
from models.baselines.structural_spec import Parameters, StructuralSpec, compile_spec
from models.baselines.student_t import cut_off, normal_score, radial_surprise

VERSION = 1
VALUES_LIMIT = 4
# Columns of `out`; then expected and expected_sd of each value.
SURPRISE, SCORE, WHICH, SHIFTED, EXPECTED = range(5)

# Where the squared distance is cut, for 1 to 4 values: a normal goes beyond it in 27 of 10,000.
CUT_AT = (9.0, 11.829, 14.156, 16.251)
# values / E min(D, CUT_AT): makes up for the cut; `test_structural_vector.py` integrates it.
CUT_VALUES = (1.0050, 1.0027, 1.0019, 1.0015)

# Places in `learned`; the newest scores of the values follow.
DOF, SCORED, LOG_RATIO, RUN, LAST_SCORES = range(5)
UNKNOWN = -1.0  # in SCORED: no value was seen
RUN_STEP = 1000
PIVOT = 1e-6  # of a variance, that must be left once the other values are known


class VectorParameters(NamedTuple):
    """What the kernel reads: the form that all values share, and the noise between them."""

    form: Parameters
    noise_cov: NDArray[np.float64]
    cut_at: float
    cut: float


@njit(cache=True)
def observed_root(noise_cov, active, root):  # type: ignore[no-untyped-def]
    """Fill the Cholesky root of the noise covariance of the active values, in their places.

    Rows and columns of the other values are those of a unit matrix. A pivot below PIVOT of its
    variance counts as that: values that move as one must not divide by zero.
    """
    k = len(active)
    for i in range(k):
        for j in range(i + 1):
            total = noise_cov[i, j] if active[i] and active[j] else (1.0 if i == j else 0.0)
            for n in range(j):
                total -= root[i, n] * root[j, n]
            if i == j:
                least = PIVOT * noise_cov[i, i] if active[i] else 1.0
                root[i, i] = math.sqrt(max(total, least))
            else:
                root[i, j] = total / root[j, j]


@njit(cache=True)
def whiten(root, innovation, active, white):  # type: ignore[no-untyped-def]
    """Solve root white = innovation over the active values; return the squared length."""
    distance = 0.0
    for i in range(len(white)):
        total = innovation[i] if active[i] else 0.0
        for j in range(i):
            total -= root[i, j] * white[j]
        white[i] = total / root[i, i]
        distance += white[i] * white[i]
    return distance


@njit(cache=True)
def impute(noise_cov, root, white, active, known, innovation, left):  # type: ignore[no-untyped-def]
    """Give values that are missing their expectation given those present.

    Args:
        noise_cov: float64[k, k].
        root: float64[k, k], of `observed_root`.
        white: float64[k], of `whiten`.
        active: bool[k], values present.
        known: bool[k], values that have a variance; the others stay 0.
        innovation: float64[k], changed in place where a value is missing.
        left: float64[k, k], filled with the covariance that stays unexplained; 0 where present.
    """
    k = len(active)
    solved = np.zeros((k, k))
    left[:] = 0.0
    for i in range(k):
        if active[i] or not known[i]:
            continue
        innovation[i] = 0.0
        for j in range(k):
            total = noise_cov[i, j] if active[j] else 0.0
            for n in range(j):
                total -= root[j, n] * solved[i, n]
            solved[i, j] = total / root[j, j]
            innovation[i] += solved[i, j] * white[j]
    for i in range(k):
        for j in range(k):
            if known[i] and known[j] and not active[i] and not active[j]:
                left[i, j] = noise_cov[i, j]
                for n in range(k):
                    left[i, j] -= solved[i, n] * solved[j, n]


@njit(cache=True)
def learn(rules, cuts, innovation, ratio_var, distance, left, active, noise_cov, learned):  # type: ignore[no-untyped-def]
    """Move the noise covariance, its degrees of freedom and the process noise by one event.

    The inverse Wishart's mean under exponential forgetting, with the innovation shortened where
    it is longer than the cut, as in `structural.learn_noise`.

    Args:
        rules: of the spec.
        cuts: (cut_at, cut) of the parameters.
        innovation: float64[k], missing ones imputed.
        ratio_var: variance of an innovation in multiples of the noise.
        distance: squared length of the whitened innovation, over ratio_var.
        left: float64[k, k], of `impute`.
        active: bool[k], values present.
        noise_cov: float64[k, k], changed in place.
        learned: float64, changed in place.
    """
    k = len(innovation)
    learned[SCORED] += 1.0
    correlation = 0.0
    for i in range(k):
        sd = math.sqrt(noise_cov[i, i] * ratio_var)
        score = innovation[i] / sd if active[i] and sd > 0.0 else 0.0
        score = min(max(score, -CLIP), CLIP)
        correlation += score * learned[LAST_SCORES + i] / k
        learned[LAST_SCORES + i] = score
    change = rules.ratio_rate * correlation
    learned[LOG_RATIO] = min(max(learned[LOG_RATIO] + change, -RATIO_LIMIT), RATIO_LIMIT)
    if not rules.learns:
        return
    prior = rules.prior_events if rules.noise_var > 0.0 else float(k)
    rate = 1.0 / min(learned[SCORED] + prior, rules.memory_events)
    limit = cut_off(cuts[0], learned[DOF])
    weight = cuts[1] * min(1.0, limit / max(distance, 1e-300)) / ratio_var
    for i in range(k):
        for j in range(k):
            square = weight * innovation[i] * innovation[j] + left[i, j]
            noise_cov[i, j] += rate * (square - noise_cov[i, j])
    kept = 1.0 - rate
    learned[DOF] = 1.0 / (kept * kept / learned[DOF] + rate * rate)


@njit(cache=True)
def worst(rules, innovation, ratio_var, noise_cov, active, learned, told):  # type: ignore[no-untyped-def]
    """Tell which value is farthest off; return whether a run of outliers makes a true shift."""
    which, furthest = 0, 0.0
    for i in range(len(active)):
        if active[i]:
            deviate = innovation[i] / math.sqrt(noise_cov[i, i] * ratio_var)
            if abs(deviate) >= abs(furthest):
                which, furthest = i, deviate
    score = normal_score(furthest, learned[DOF])
    told[SCORE] = score
    told[WHICH] = which
    if rules.shift_events == 0.0:
        return False
    if abs(score) <= rules.shift_score:
        learned[RUN] = 0.0
        return False
    # A run belongs to one value and one side: the value is kept in steps of RUN_STEP.
    run, side = learned[RUN], math.copysign(1.0, score)
    same = run * side > 0.0 and int(abs(run)) // RUN_STEP == which
    count = (int(abs(run)) % RUN_STEP if same else 0) + 1
    shifted = count >= rules.shift_events
    learned[RUN] = 0.0 if shifted else side * (RUN_STEP * which + count)
    return shifted


@njit(cache=True)
def innovations(y, origin, loading, means, active, innovation):  # type: ignore[no-untyped-def]
    """Fill what each value says beyond its expectation; return how many are present.

    A value's first observation begins its level, so that it says nothing yet.
    """
    present = 0
    for i in range(len(y)):
        active[i] = abs(y[i]) <= VALUE_LIMIT  # false for NaN as well
        innovation[i] = 0.0
        if not active[i]:
            continue
        present += 1
        expected = 0.0
        for j in range(len(loading)):
            expected += loading[j] * means[i, j]
        if math.isnan(origin[i]):
            origin[i] = y[i] - expected
        innovation[i] = (y[i] - origin[i]) - expected
    return present


@njit(cache=True)
def scales(rules, innovation, ratio_var, origin, means, active, known, noise_cov):  # type: ignore[no-untyped-def]
    """Hold variances above what can be told apart, and take unknown ones from an innovation.

    Values whose variance is not known are no longer `active`: they are learned, not scored.
    Returns how many values are left to score.
    """
    scored = 0
    for i in range(len(active)):
        size = 0.0 if math.isnan(origin[i]) else RELATIVE_SD * (origin[i] + means[i, 0])
        smallest = max(rules.smallest_var, size * size)
        known[i] = noise_cov[i, i] > 0.0
        if known[i]:
            noise_cov[i, i] = max(noise_cov[i, i], smallest)
            scored += active[i]
        else:
            if active[i] and innovation[i] * innovation[i] > smallest * ratio_var:
                noise_cov[i, i] = innovation[i] * innovation[i] / ratio_var
            active[i] = False
    return scored


@njit(cache=True)
def score_and_learn(  # type: ignore[no-untyped-def]
    rules, cuts, innovation, ratio_var, active, known, scored, noise_cov, learned, told
):
    """Score the active values together; learn from them unless they are a true shift.

    Returns:
        The robust weight of the event: with k values (dof + k) / (dof + distance).
    """
    k = len(active)
    root, left, white = np.zeros((k, k)), np.empty((k, k)), np.empty(k)
    observed_root(noise_cov, active, root)
    distance = whiten(root, innovation, active, white) / ratio_var
    # Hotelling: a learned covariance of n events leaves n - k + 1 degrees of freedom.
    dof = max(learned[DOF] - scored + 1.0, 1.0)
    told[SURPRISE] = radial_surprise(distance * dof / max(learned[DOF], 1.0), dof, scored)
    for i in range(k):
        if active[i]:
            told[EXPECTED + 2 * i + 1] = math.sqrt(noise_cov[i, i] * ratio_var)
    shifted = worst(rules, innovation, ratio_var, noise_cov, active, learned, told)
    told[SHIFTED] = 1.0 if shifted else 0.0
    impute(noise_cov, root, white, active, known, innovation, left)
    if shifted:
        return 1.0
    learn(rules, cuts, innovation, ratio_var, distance, left, active, noise_cov, learned)
    dof = rules.robust_dof
    return 1.0 if dof == 0.0 else (dof + scored) / (dof + distance)


@njit(cache=True)
def observe(rules, cuts, y, origin, loading, means, cov, noise_cov, learned, told):  # type: ignore[no-untyped-def]
    """Score the values of one event and update with them.

    Missing values are given their expectation, which is exact for the means. The covariance is
    one for all values, and cannot know that one was missing: the event counts for as large a part
    as values are present.

    Args:
        rules: of the spec.
        cuts: (cut_at, cut) of the parameters.
        y: float64[k]; NaN, infinite or beyond VALUE_LIMIT is missing.
        origin: float64[k], what each level is relative to; NaN until the value's first.
        loading: float64[d], of this event.
        means: float64[k, d], predicted; changed in place.
        cov: float64[d, d], predicted, of every value; changed in place.
        noise_cov: float64[k, k], changed in place; a variance of 0 is not known yet.
        learned: float64[5 + k], changed in place.
        told: float32[4 + 2 k], filled where the event is scored.
    """
    k, d = means.shape
    pull, innovation = np.empty(d), np.empty(k)
    active, known = np.empty(k, np.bool_), np.empty(k, np.bool_)
    present = innovations(y, origin, loading, means, active, innovation)
    if present == 0:
        return
    if learned[SCORED] == UNKNOWN:
        start_level(loading, 0, 0.0, means[0], cov, pull)
        learned[SCORED] = 0.0
        return
    state_var = project(cov, loading, pull)
    scored = scales(rules, innovation, state_var + 1.0, origin, means, active, known, noise_cov)
    weight = 1.0
    if scored > 0:
        for i in range(k):
            if active[i]:
                told[EXPECTED + 2 * i] = y[i] - innovation[i]
        weight = score_and_learn(
            rules,
            cuts,
            innovation,
            state_var + 1.0,
            active,
            known,
            scored,
            noise_cov,
            learned,
            told,
        )
        if told[SHIFTED] == 1.0:
            which = int(told[WHICH])
            cov[0, 0] += innovation[which] * innovation[which] / noise_cov[which, which]
            state_var = project(cov, loading, pull)
    for i in range(k):
        condition_mean(means[i], pull, innovation[i], state_var + 1.0 / weight)
    condition_cov(cov, pull, state_var + k / (present * weight))


@njit(cache=True, nogil=True)
def vector_walk(state, row, fresh, time_ms, value, mark, partner, p, out):  # type: ignore[no-untyped-def]  # noqa: ARG001
    """Walk a batch; as `Component.walk`, but `value` is float64[m, k]."""
    # The fields as arrays: records of another size are another type, and would compile it all anew.
    walk_columns(
        state["time_ms"],
        state["origin"],
        state["events"],
        state["learned"],
        state["noise_cov"],
        state["mean"],
        state["cov"],
        row,
        fresh,
        time_ms,
        value,
        p,
        out,
    )


@njit(cache=True)
def begin(p, origin, means, cov, noise_cov, learned):  # type: ignore[no-untyped-def]
    """Set an entity to the prior."""
    k = len(means)
    for i in range(k):
        means[i] = p.form.prior_mean
        origin[i] = p.form.origin if p.form.level_known else math.nan
    unpack(p.form.prior_cov, 0, cov)
    noise_cov[:] = p.noise_cov
    learned[:] = 0.0
    learned[DOF] = NEVER_LEARNED
    if p.form.rules.learns:
        learned[DOF] = max(p.form.rules.prior_events, k) if p.form.rules.noise_var > 0.0 else k
    learned[SCORED] = 0.0 if p.form.level_known else UNKNOWN


@njit(cache=True, nogil=True)
def walk_columns(  # type: ignore[no-untyped-def]
    newest_ms,
    origin_of,
    events,
    learned_of,
    noise_cov_of,
    means_of,
    cov_of,
    row,
    fresh,
    time_ms,
    value,
    p,
    out,
):
    """Walk a batch over the fields of the records; see `vector_walk`."""
    form = p.form
    k, d = value.shape[1], len(form.loading)
    means, cov, noise_cov = np.empty((k, d)), np.empty((d, d)), np.empty((k, k))
    learned, loading = np.empty(LAST_SCORES + k), form.loading.copy()
    steps = np.zeros((len(form.blocks), STEPS))
    # Taken out of `p` once: each time would count a reference.
    blocks, powers, noises, rules = form.blocks, form.powers, form.noises, form.rules
    regressors, regressor_values, cuts = form.regressors, form.regressor_values, (p.cut_at, p.cut)
    steps_of = -1.0
    for n in range(len(row)):
        r = row[n]
        out[n, :] = np.nan
        out[n, SURPRISE] = 0.0
        elapsed = 0.0
        if fresh[n] or events[r] == 0:
            begin(p, origin_of[r], means, cov, noise_cov, learned)
            newest_ms[r], events[r] = time_ms[n], 0
        else:
            unpack(cov_of, r, cov)
            unpack(noise_cov_of, r, noise_cov)
            means[:] = means_of[r]
            learned[:] = learned_of[r]
            passed = (time_ms[n] - newest_ms[r]) / form.interval_ms
            elapsed = 1.0 if form.by_event else passed
        if elapsed > 0.0:
            if elapsed != steps_of:
                transition(blocks, elapsed, form.longest_gap, steps)
                steps_of = elapsed
            for i in range(k):
                predict_mean(blocks, powers, steps, means[i])
            ratio = math.exp(learned[LOG_RATIO])
            predict_cov(blocks, powers, noises, steps, ratio, cov)
            newest_ms[r] = max(time_ms[n], newest_ms[r])
        fill_regressors(time_ms[n], regressors, regressor_values, loading)
        observe(
            rules, cuts, value[n], origin_of[r], loading, means, cov, noise_cov, learned, out[n]
        )
        events[r] = min(events[r] + 1, EVENTS_LIMIT)
        means_of[r] = means
        learned_of[r] = learned
        pack(cov, form.rounding, cov_of, r)
        pack(noise_cov, 0.0, noise_cov_of, r)


def structural_vector(
    spec: StructuralSpec,
    values: int,
    name: str = "structural_vector",
    noise_cov: Sequence[Sequence[float]] | None = None,
    precision: Literal["single", "double"] = "single",
) -> Component:
    """Build the component of a structural model of several values.

    Its walk takes `value` as float64[m, values]; an event with all values missing is not scored.

    Args:
        spec: the form that every value has. `noise.var` and `level.mean` hold for each value;
            without `noise.var` each takes its variance from its own first innovation.
        values: 1 to 4.
        name: as the settings name it.
        noise_cov: covariance of the observation's noise before the first event, in place of
            `noise.var`, which then only says by not being None that one is known.
        precision: of the stored state; "double" is for oracles.

    Raises:
        ValueError: too many values, or a noise covariance that is none.
    """
    if not 1 <= values <= VALUES_LIMIT:
        raise ValueError(f"values: expected 1 to {VALUES_LIMIT}, found {values}")
    start = np.eye(values) * (spec.noise.var or 0.0)
    if noise_cov is not None:
        start = np.array(noise_cov, np.float64)
        _check_noise_cov(start, values, spec)
    number = np.float32 if precision == "single" else np.float64
    d = spec.states
    tells = ["surprise", "score", "which", "shift"]
    for i in range(values):
        tells += [f"expected_{i}", f"expected_sd_{i}"]
    fields = [
        ("time_ms", np.int64),
        ("origin", np.float64, (values,)),
        ("events", np.int32),
        ("learned", number, (LAST_SCORES + values,)),
        ("noise_cov", number, (values * (values + 1) // 2,)),
        ("mean", number, (values, d)),
        ("cov", number, (d * (d + 1) // 2,)),
    ]
    return Component(
        name=name,
        version=VERSION,
        state=np.dtype(fields, align=True),
        tells=tuple(tells),
        surprises=("surprise",),
        parameters=VectorParameters(
            form=compile_spec(spec, 24 if precision == "single" else None),
            noise_cov=start,
            cut_at=CUT_AT[values - 1],
            cut=CUT_VALUES[values - 1],
        ),
        walk=vector_walk,
    )


def _check_noise_cov(found: NDArray[np.float64], values: int, spec: StructuralSpec) -> None:
    if spec.noise.var is None:
        raise ValueError("noise_cov: expected noise.var beside it, found None; set it to 1")
    if found.shape != (values, values) or not np.isfinite(found).all():
        raise ValueError(f"noise_cov: expected {values} x {values} finite numbers, found {found}")
    if (found != found.T).any() or np.linalg.eigvalsh(found)[0] <= 0.0:
        raise ValueError(f"noise_cov: expected symmetric and positive definite, found {found}")
