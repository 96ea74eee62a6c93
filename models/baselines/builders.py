"""How the components of the registry follow from the population's prior.

What the prior does not hold is a constant here, with its reason. A component is built before any
event, so nothing here may depend on the stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from models.baselines.change_point import ChangeParameters, change_point_component
from models.baselines.component import Component
from models.baselines.counts import counts_component
from models.baselines.distinct_partners import partners_component
from models.baselines.exceedance import ExceedanceParameters, exceedance_component
from models.baselines.gaps import gamma_gaps, log_normal_gaps, weibull_gaps
from models.baselines.marks import markov_component, variable_order_component
from models.baselines.metric import metric_component
from models.baselines.registry import Context
from models.baselines.structural import structural
from models.baselines.structural_spec import (
    PRIOR_VAR_LIMIT,
    Level,
    Noise,
    Season,
    StructuralSpec,
    Trend,
)
from models.baselines.value import ValueParameters, value_component
from models.prior import KindPrior
from models.tpp.sequence_component import SEQUENCE_COMPONENT

DAY_S = 86_400.0
DAY_MS = 86_400_000
# The core's own: the prior of the variance counts for 20 events, that of the mean gap for 3.
VALUE_PRIOR_EVENTS = 20.0
GAP_PRIOR_EVENTS = 3.0
DISCOUNT = 1.0 - 1.0 / 200.0  # the core's memory of the variance: 200 events
VAR_FLOOR = 1e-6  # as the core's: a constant series divides by nothing
CLIP = 3.0
HAZARD = 1.0 / 500.0  # a change of level once in 500 events
RECENT = 10
TAIL_QUANTILE = 0.95
SHAPES = (0.3, 0.5, 0.7, 1.0, 1.5, 2.5, 4.0, 8.0)  # of gaps, from bursts to clockwork
MARK_STRENGTH = 8.0  # events that equal odds of the marks are worth in each context


def _conjugate(prior: KindPrior) -> dict[str, float]:
    """Return the prior of a value's mean and variance, by the names of the components' fields."""
    shape = 0.5 * VALUE_PRIOR_EVENTS
    return {
        "mean": prior.value_mean,
        "mean_events": prior.value_within_var / prior.value_between_var,
        "shape": shape,
        "scale": shape * prior.value_within_var,
        "var_floor": VAR_FLOOR,
    }


def _value(context: Context, name: str) -> Component:
    conjugate = _conjugate(context.prior)
    parameters = ValueParameters(**conjugate, discount=DISCOUNT, clip=CLIP)
    return value_component(parameters, name)


def _tail(context: Context, name: str) -> Component:
    prior = context.prior
    sd = math.sqrt(prior.value_between_var + prior.value_within_var)
    # Of a normal, the .95 quantile and its mean excess, in standard deviations.
    shape = 0.5 * VALUE_PRIOR_EVENTS
    parameters = ExceedanceParameters(
        quantile=TAIL_QUANTILE,
        threshold=prior.value_mean + 1.645 * sd,
        shape=shape,
        rate=shape * 0.418 * math.sqrt(prior.value_within_var),
        memory=200.0,
        discount=DISCOUNT,
    )
    return exceedance_component(parameters, name)


def _change(context: Context, name: str) -> Component:
    conjugate = _conjugate(context.prior)
    parameters = ChangeParameters(**conjugate, hazard=HAZARD, recent=RECENT)
    return change_point_component(parameters, name)


def _counts(context: Context, name: str) -> Component:
    prior = context.prior
    # Rates differ between entities as exp of a normal with the variance of the mean log gap: a
    # gamma of the same mean and variance has this shape. At most 100, or nothing would be learned.
    shape = min(max(1.0 / math.expm1(min(prior.gap_between_var, 50.0)), 0.05), 100.0)
    gap_s = math.exp(prior.gap_mean + 0.5 * prior.gap_within_var)
    rate_hours = shape * gap_s / 3600.0
    profile = np.array(prior.profile)
    return counts_component(DAY_MS, shape, rate_hours, DISCOUNT, profile, name)


def _log_normal_gaps(context: Context, name: str) -> Component:
    prior = context.prior
    return log_normal_gaps(
        prior.gap_mean,
        prior.gap_within_var / prior.gap_between_var,
        GAP_PRIOR_EVENTS,
        GAP_PRIOR_EVENTS * prior.gap_within_var,
        DISCOUNT,
        np.array(prior.profile),
        name,
    )


def _gamma_gaps(context: Context, name: str) -> Component:
    prior = context.prior
    profile = np.array(prior.profile)
    return gamma_gaps(SHAPES, math.exp(prior.gap_mean), GAP_PRIOR_EVENTS, DISCOUNT, profile, name)


def _weibull_gaps(context: Context, name: str) -> Component:
    prior = context.prior
    profile = np.array(prior.profile)
    return weibull_gaps(SHAPES, math.exp(prior.gap_mean), GAP_PRIOR_EVENTS, DISCOUNT, profile, name)


def _even(context: Context) -> tuple[float, ...]:
    """Return equal odds of the marks: the prior does not know them."""
    return (1.0 / max(context.marks, 1),) * context.marks


def _markov(context: Context, name: str) -> Component:
    return markov_component(_even(context), MARK_STRENGTH, DISCOUNT, name)


def _variable_markov(context: Context, name: str) -> Component:
    return variable_order_component(_even(context), MARK_STRENGTH, DISCOUNT, name=name)


def _distinct_partners(context: Context, name: str) -> Component:
    # The prior counts the partners of two windows; beside the first, of one.
    beside = max(0.5 * context.prior.partner_mean, 0.1)
    return partners_component(context.partner_window_ms, beside, 3.0, 0.9, name)


def _level_spec(prior: KindPrior) -> StructuralSpec:
    ratio = prior.value_between_var / prior.value_within_var
    # Beyond the limit (metrics of unlike units) the population says nothing of an entity's level: a
    # capped variance would call ordinary levels odd, so the first value starts it, unscored.
    known = ratio <= PRIOR_VAR_LIMIT
    return StructuralSpec(
        level=Level(prior.level_noise, prior.value_mean, ratio)
        if known
        else Level(prior.level_noise),
        interval_s=math.exp(prior.gap_mean),
        noise=Noise(prior.value_within_var, VALUE_PRIOR_EVENTS),
    )


def _level(context: Context, name: str) -> Component:
    return structural(_level_spec(context.prior), name)


def _trend(context: Context, name: str) -> Component:
    return structural(replace(_level_spec(context.prior), trend=Trend()), name)


def _season(context: Context, name: str) -> Component:
    spec = _level_spec(context.prior)
    return structural(replace(spec, trend=Trend(), seasons=(Season(DAY_S, 3),)), name)


def _metric(context: Context, name: str) -> Component:  # noqa: ARG001 (one set serves every metric)
    return replace(metric_component(), name=name)


def _sequence(context: Context, name: str) -> Component:  # noqa: ARG001 (its null needs no prior)
    return replace(SEQUENCE_COMPONENT, name=name)


BUILDERS: Mapping[str, Callable[[Context, str], Component]] = {
    "level": _level,
    "trend": _trend,
    "season": _season,
    "metric": _metric,
    "value": _value,
    "tail": _tail,
    "change": _change,
    "counts": _counts,
    "log_normal_gaps": _log_normal_gaps,
    "gamma_gaps": _gamma_gaps,
    "weibull_gaps": _weibull_gaps,
    "markov": _markov,
    "variable_markov": _variable_markov,
    "distinct_partners": _distinct_partners,
    "sequence": _sequence,
}
