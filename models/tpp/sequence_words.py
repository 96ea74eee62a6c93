"""What the sequence statistic found, in plain words for the reason of an alert."""

from __future__ import annotations

import math
from collections.abc import Mapping

from models.tpp.sequence_families import FAMILIES, LOG_WEIGHT

_SHAPE = ("spacing_ks", "dispersion", "bunching", "clustering")


def reason(told: Mapping[str, float]) -> str:
    """Write the sentence of the family that weighs most in the mean of e-values.

    Args:
        told: what the component told, by `sequence_component.TELLS`; NaN where it was not judged.
    """
    evidence = {
        family: told[f"sequence_{family}"] + float(weight)
        for family, weight in zip(FAMILIES, LOG_WEIGHT, strict=True)
    }
    seen, expected = told["sequence_seen"], told["sequence_expected"]
    if not all(map(math.isfinite, (*evidence.values(), seen, expected))):
        return "the timing of its last events, taken together, is unusual for this entity"
    family = max(evidence, key=lambda name: evidence[name])
    events = f"{seen:.0f} events where {expected:.0f} were expected"
    if family == "rate":
        way = "faster" if seen > expected else "slower"
        return f"change of rate: {events}: they come {way} than this entity's do"
    if family in _SHAPE:
        if told["sequence_irregularity"] < 0.0:
            return f"too regular: its last {seen:.0f} events keep apart like a machine's"
        return f"too irregular: its last {seen:.0f} events come in clusters with pauses between"
    return {
        "silence": f"silence: nothing since its last event ({events} before)",
        "lull": f"silence: a pause too long for this entity among its last {seen:.0f} events",
        "place": f"burst: events crowd, or lack, in a part of the time that holds {events}",
        "arrival_ks": f"change of rate: {events}, unevenly over that time",
        "regulation": f"too regular: {events}, never far from it, as if a timer kept count",
        "serial": f"too regular: its last {seen:.0f} gaps, long and short, follow an order",
    }[family]
