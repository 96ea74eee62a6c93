"""What a person should know of a fit, in plain words."""

from __future__ import annotations

from deploy.fit.run import FitResult, KindResult
from flink_jobs.pit import kolmogorov
from models.prior_diagnosis import level_warnings, pit_warning, tail_warning

BAD_SHARE = 0.01


def stream_warnings(result: FitResult) -> list[str]:
    """Say what was wrong with the stream as a whole."""
    found = []
    bad = sum(result.rejected.values())
    if bad:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in sorted(result.rejected.items()))
        share = "" if bad <= BAD_SHARE * result.messages else ": check [event] of the settings"
        found.append(
            f"{bad:,} of {result.messages:,} messages are no events ({reasons}){share}; "
            f"the first: {result.first_bad}"
        )
    if result.dropped:
        found.append(f"{result.dropped:,} older events are beyond --max-events and were left out")
    return found


def warnings_of(kind: KindResult) -> list[str]:
    """Say where one kind was given a fallback, or is not as the models have it."""
    found = [*kind.fit.notes, *level_warnings(kind.levels, kind.innovations)]
    found += pit_warning("values", "normal about their level", kolmogorov(kind.pits["value"]))
    found += pit_warning("gaps", "log-normal", kolmogorov(kind.pits["gap"]))
    if "gap, model" in kind.pits:
        distance = kolmogorov(kind.pits["gap, model"])
        found += pit_warning("gaps", "as the intensity model has them", distance)
    for mode, tails in (("with the model", kind.aided), ("without the model", kind.unaided)):
        for name, one in (tails or {}).items():
            told = tail_warning(name, one.tail, one.maxima, one.events, one.clusters)
            found += [f"{text} ({mode})" for text in told]
    return found
