"""What an entity's values normally are, kept so that an attack does not become normal.

The local level of `models.baselines.local_level` with a noise variance that is learnt, and two
CUSUMs that stop the learning. The job walks it in `advance`, the training in
`standardised_values`: what the intensity model learns of amounts is what it will be asked.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.baselines.local_level import (
    local_level_step,
    noise_var_step,
    outlier_surprise,
    shift_step,
)

DOF = 4.0
VALUE_PRIOR_EVENTS = 20.0
MAX_EVENTS = 200.0  # memory of the noise variance
# A baseline must not learn an attack. Once a CUSUM passes FREEZE nats the baseline goes back to
# what it was when the CUSUM last stood near zero, and learns nothing until the CUSUM has fallen
# again; after PATIENCE events the new ways are taken for the normal ones.
FREEZE = 8.0
CALM = 0.5
PATIENCE = 200
LEARNING = 30.0  # events before which a baseline always learns


class LevelPrior(NamedTuple):
    """What the population says of an entity's values, on the transformed scale.

    Attributes:
        value_mean: mean of the entities' levels.
        value_between_var: their variance.
        value_within_var: variance of an entity's values about its level.
        level_noise: of the noise variance, gained by the level at each value.
    """

    value_mean: float
    value_between_var: float
    value_within_var: float
    level_noise: float


# The fields of an entity that the steps read and write, for a walk outside the job's table.
LEVEL = np.dtype(
    [
        ("events", np.uint32),
        ("level", np.float32),
        ("level_var", np.float32),
        ("noise_var", np.float32),
        ("shift_up", np.float32),
        ("shift_down", np.float32),
        ("steady_level", np.float32),
        ("value_frozen", np.uint16),
    ],
    align=True,
)
_TOLD = np.dtype(
    [(name, np.float32) for name in
     ("value", "typical", "spread", "amount", "amount_up", "amount_down")]
)  # fmt: skip


@njit(cache=True)
def begin_level(entity, p):  # type: ignore[no-untyped-def]
    """Give an entity the population's level; `p` has the fields of LevelPrior."""
    entity.level = p.value_mean
    entity.level_var = p.value_between_var
    entity.noise_var = p.value_within_var
    entity.shift_up = 0.0
    entity.shift_down = 0.0
    entity.steady_level = p.value_mean
    entity.value_frozen = 0


@njit(cache=True)
def level_step(entity, value, p, out):  # type: ignore[no-untyped-def]
    """Score one value against the entity's level, then learn from it.

    Args:
        entity: fields of LEVEL; changed, except for `events`, those before this one.
        value: transformed; NaN is missing and changes nothing.
        p: fields of LevelPrior.
        out: filled: `value`, `typical` and `spread` (level before it, and the sd of the
            prediction), and unless it is missing the surprises `amount`, `amount_up`,
            `amount_down`, nats.
    """
    events = float(entity.events)
    out.value = value
    out.typical = entity.level
    level_noise = p.level_noise * entity.noise_var
    out.spread = math.sqrt(entity.level_var + level_noise + entity.noise_var)
    if math.isnan(value):
        return
    level, level_var, z, _ = local_level_step(
        value, entity.level, entity.level_var, entity.noise_var, level_noise, DOF
    )
    entity.shift_up = shift_step(entity.shift_up, z)
    entity.shift_down = shift_step(entity.shift_down, -z)
    shift = max(entity.shift_up, entity.shift_down)
    if entity.value_frozen == 0:
        entity.level = level
        entity.level_var = level_var
        rate = 1.0 / (min(events, MAX_EVENTS) + VALUE_PRIOR_EVENTS)
        entity.noise_var = noise_var_step(entity.noise_var, z, rate)
        if shift <= CALM or events <= LEARNING:
            entity.steady_level = entity.level
        elif shift > FREEZE:
            entity.level = entity.steady_level
            entity.value_frozen = 1
    else:
        entity.value_frozen += np.uint16(1)
        if shift <= CALM:
            entity.value_frozen = 0
        elif entity.value_frozen > PATIENCE:
            entity.value_frozen = 0
            entity.level_var = p.value_between_var
            entity.shift_up = 0.0
            entity.shift_down = 0.0
    out.amount = outlier_surprise(z)
    out.amount_up = entity.shift_up
    out.amount_down = entity.shift_down


@njit(cache=True)
def innovation(told):  # type: ignore[no-untyped-def]
    """Return (value - typical) / spread of what `level_step` told; NaN where it is missing."""
    return (told.value - told.typical) / told.spread


@njit(cache=True)
def _walk(entities, told, value, p, out):  # type: ignore[no-untyped-def]
    entity = entities[0]
    begin_level(entity, p)
    for n in range(len(value)):
        level_step(entity, value[n], p, told[0])
        out[n] = innovation(told[0])
        entity.events += np.uint32(1)


def standardised_values(value: NDArray[np.float64], prior: LevelPrior) -> NDArray[np.float32]:
    """Return each value's innovation, float32 [n], walking one entity as the job does.

    Args:
        value: float64 [n], transformed; NaN is missing, and so is its innovation.
        prior: of the entity's kind.
    """
    out = np.empty(len(value), np.float32)
    _walk(np.zeros(1, LEVEL), np.zeros(1, _TOLD), value, prior, out)
    return out
