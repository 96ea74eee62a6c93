"""Compare the version in the shadow with the one in charge: the job's reports added up and judged.

The job writes, per shard, what both said of the same events since the shadow began. Here the newest
report of each shard is taken, the shards are added up, and the difference of their log likelihoods
is held against its standard error.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from flink_jobs.rollout import Rollout

Verdict = Literal["better", "no difference shown", "worse", "too few events"]

SIDES = ("in_charge", "shadow")
STANDARD_ERRORS = 2.0
FEWEST = 100  # compared events below which the normal law of a mean is not to be trusted
EXAMPLES = 5
# What a likelihood does not show; chosen so that an equal model does not trip over chance.
FAILURE_SHARE = 0.01
PIT_GROWTH = 0.02
SLOWER = 1.5
WARM = 0.95


@dataclass(frozen=True, slots=True)
class KindComparison:
    """Likelihood and calibration on the events of one kind.

    Attributes:
        events: of the kind since the shadow began.
        compared: of them, those that both versions had predicted.
        in_charge: mean negative log likelihood of gap and mark, nats per event.
        shadow: the same.
        difference: shadow less in charge; below 0 the shadow is better.
        standard_error: of the difference, events taken for independent; NaN below two events.
        pit_in_charge: Kolmogorov distance of the gaps' PIT from uniform, 0 to 1; NaN without gaps.
        pit_shadow: the same.
    """

    events: int
    compared: int
    in_charge: float
    shadow: float
    difference: float
    standard_error: float
    pit_in_charge: float
    pit_shadow: float


@dataclass(frozen=True, slots=True)
class Latency:
    """Of one version's requests.

    Attributes:
        requests: answered.
        mean_ms: over all of them; NaN without one.
        p99_ms: the largest of the shards' own; NaN without one.
    """

    requests: int
    mean_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that is known of a shadow beside the version in charge.

    Attributes:
        in_charge: (version, name of its weights).
        shadow: the same of the shadow.
        generation: of the rollout, the newest that reported.
        shards: that reported.
        at: RFC 3339, of the newest report.
        kinds: by entity kind.
        total: all kinds together.
        latency: by side.
        failures: requests without a sound answer, by side and reason.
        missed_batches: that the shadow was not asked about.
        both: alerts that both would write.
        come: alerts that only the shadow would write.
        go: alerts that only the version in charge writes.
        examples: the newest of those that come and go.
        warm: share of the events whose entity has a warm memory of the shadow's encoder.
        verdict: by likelihood, at two standard errors.
        cautions: what else speaks against a promotion, in sentences.
    """

    in_charge: tuple[int, str]
    shadow: tuple[int, str]
    generation: int
    shards: int
    at: str
    kinds: Mapping[str, KindComparison]
    total: KindComparison
    latency: Mapping[str, Latency]
    failures: Mapping[str, Mapping[str, int]]
    missed_batches: int
    both: int
    come: int
    go: int
    examples: Sequence[Mapping[str, Any]]
    warm: float
    verdict: Verdict
    cautions: Sequence[str] = field(default_factory=tuple)


def compare(
    messages: Iterable[Mapping[str, Any]],
    rollout: Rollout | None = None,
    version: int | None = None,
) -> Comparison | None:
    """Add up the newest report of each shard of one pair of versions.

    Args:
        messages: of the topic of models, oldest first; those that are no shadow report are passed
            over.
        rollout: says since when the pair stands, so that reports of an earlier trial of the same
            versions do not count; None takes the newest reports' generation.
        version: only reports of this version in the shadow of the one in charge; None takes the
            shadow of `rollout`, and where there is none the pair that reported last.

    Returns:
        The comparison, or None without a report of the pair.

    Raises:
        ValueError: a report lacks what the contract promises.
    """
    reports = [m for m in messages if m.get("type") == "shadow_report" and m.get("report")]
    try:
        return _compare(reports, rollout, version)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"a shadow report lacks {error}; was it written by this version of eddy?"
        ) from error


def _compare(
    reports: list[Mapping[str, Any]], rollout: Rollout | None, version: int | None
) -> Comparison | None:
    wanted = _wanted_pair(rollout, version)
    reports = [r for r in reports if wanted is None or _pair(r) == wanted]
    if not reports:
        return None
    last = reports[-1]
    since = _since(rollout, _pair(last))
    if since is None:
        since = max(int(r["generation"]) for r in reports if _pair(r) == _pair(last))
    newest: dict[tuple[str, int], Mapping[str, Any]] = {}
    for report in reports:
        if _pair(report) == _pair(last) and int(report["generation"]) >= since:
            newest[report["source"], int(report["shard"])] = report
    if not newest:
        return None
    return _added_up(list(newest.values()), last)


def _pair(message: Mapping[str, Any]) -> tuple[int, int]:
    return int(message["version"]), int(message["other"]["version"])


def _wanted_pair(rollout: Rollout | None, version: int | None) -> tuple[int, int] | None:
    if rollout is None:
        return None
    shadow = version or rollout.shadow
    return None if shadow is None else (rollout.in_charge, shadow)


def _since(rollout: Rollout | None, pair: tuple[int, int]) -> int | None:
    """Return the generation in which a pair came together, None where the rollout forgot it."""
    if rollout is None or rollout.in_charge != pair[0]:
        return None
    for change in reversed(rollout.history):
        began = change.action == "shadow" and change.version == pair[1]
        if began or (change.action in ("promote", "rollback") and change.version == pair[0]):
            return change.generation
    return None


def _added_up(messages: list[Mapping[str, Any]], last: Mapping[str, Any]) -> Comparison:
    reports = [m["report"] for m in messages]
    names = sorted({kind for r in reports for kind in r["events"]})
    kinds = {kind: _kind(reports, [kind]) for kind in names}
    total = _kind(reports, names)
    latency = {side: _latency([r["latency_ms"][side] for r in reports]) for side in SIDES}
    failures: dict[str, Mapping[str, int]] = {
        side: dict(sum((Counter(r["failures"][side]) for r in reports), Counter()))
        for side in SIDES
    }
    seen = sum(sum(r["events"].values()) for r in reports)
    warm = sum(r["warm"] * sum(r["events"].values()) for r in reports) / seen if seen else 0.0
    examples = sorted(
        (e for r in reports for e in r["alerts"]["examples"]), key=lambda e: str(e["event_time"])
    )
    verdict = _verdict(total)
    return Comparison(
        in_charge=(int(last["version"]), str(last["weights"])),
        shadow=(int(last["other"]["version"]), str(last["other"]["weights"])),
        generation=max(int(m["generation"]) for m in messages),
        shards=len(messages),
        at=max(str(m["at"]) for m in messages),
        kinds=kinds,
        total=total,
        latency=latency,
        failures=failures,
        missed_batches=sum(int(r["missed_batches"]) for r in reports),
        both=sum(int(r["alerts"]["both"]) for r in reports),
        come=sum(int(r["alerts"]["come"]) for r in reports),
        go=sum(int(r["alerts"]["go"]) for r in reports),
        examples=examples[-EXAMPLES:],
        warm=warm,
        verdict=verdict,
        cautions=tuple(_cautions(verdict, kinds, latency, failures, warm)),
    )


def _kind(reports: list[Mapping[str, Any]], kinds: list[str]) -> KindComparison:
    def summed(part: Mapping[str, Any]) -> float:
        return math.fsum(part.get(kind, 0) for kind in kinds)

    n = int(sum(summed(r["compared"]) for r in reports))
    nats = {side: math.fsum(summed(r["nats"][side]) for r in reports) for side in SIDES}
    squares = math.fsum(summed(r["difference_squares"]) for r in reports)
    difference = (nats["shadow"] - nats["in_charge"]) / n if n else math.nan
    pit = {
        side: _pit_distance([r["pit"][side].get(kind, ()) for r in reports for kind in kinds])
        for side in SIDES
    }
    return KindComparison(
        events=int(sum(summed(r["events"]) for r in reports)),
        compared=n,
        in_charge=nats["in_charge"] / n if n else math.nan,
        shadow=nats["shadow"] / n if n else math.nan,
        difference=difference,
        standard_error=_standard_error(n, difference, squares),
        pit_in_charge=pit["in_charge"],
        pit_shadow=pit["shadow"],
    )


def _standard_error(n: int, mean: float, squares: float) -> float:
    """Return the standard error of a mean from n values' sum of squares.

    >>> round(_standard_error(4, 2.5, 1.0 + 4.0 + 9.0 + 16.0), 4)  # of 1, 2, 3, 4
    0.6455
    """
    if n < 2:
        return math.nan
    # Rounding may leave less than nothing where all differences are the same.
    variance = max(squares - n * mean * mean, 0.0) / (n - 1)
    return math.sqrt(variance / n)


def _pit_distance(histograms: list[Sequence[int]]) -> float:
    """Return the largest distance of the shares' running sum from that of a uniform law.

    >>> _pit_distance([[10, 0], [0, 10]]), _pit_distance([[4, 0]])
    (0.0, 0.5)
    """
    counts = [sum(bin_) for bin_ in zip(*(h for h in histograms if h), strict=True)]
    n = sum(counts)
    if not n:
        return math.nan
    worst, seen = 0.0, 0
    for k, count in enumerate(counts, 1):
        seen += count
        worst = max(worst, abs(seen / n - k / len(counts)))
    return worst


def _latency(parts: list[Mapping[str, Any]]) -> Latency:
    told = [part for part in parts if part["requests"]]
    requests = sum(int(part["requests"]) for part in told)
    if not requests:
        return Latency(0, math.nan, math.nan)
    mean = math.fsum(part["requests"] * part["mean"] for part in told) / requests
    return Latency(requests, mean, max(float(part["p99"]) for part in told))


def _verdict(total: KindComparison) -> Verdict:
    if total.compared < FEWEST:
        return "too few events"
    if abs(total.difference) <= STANDARD_ERRORS * total.standard_error:
        return "no difference shown"
    return "better" if total.difference < 0.0 else "worse"


def _cautions(
    verdict: Verdict,
    kinds: Mapping[str, KindComparison],
    latency: Mapping[str, Latency],
    failures: Mapping[str, Mapping[str, int]],
    warm: float,
) -> list[str]:
    found = []
    for kind, of in kinds.items():
        known = of.compared >= FEWEST
        if verdict != "worse" and known and of.difference > STANDARD_ERRORS * of.standard_error:
            found.append(f"{kind}: its likelihood is worse")
        if known and of.pit_shadow > of.pit_in_charge + PIT_GROWTH:
            found.append(
                f"{kind}: its calibration is worse (PIT distance {of.pit_shadow:.3f}, "
                f"in charge {of.pit_in_charge:.3f})"
            )
    failed = sum(failures["shadow"].values())
    asked = latency["shadow"].requests + failed
    if failed > FAILURE_SHARE * asked:
        words = ", ".join(f"{reason} {n:,}" for reason, n in sorted(failures["shadow"].items()))
        found.append(f"{failed:,} of {asked:,} requests had no sound answer ({words})")
    if latency["shadow"].p99_ms > SLOWER * latency["in_charge"].p99_ms:
        found.append(
            f"it is slower: p99 {latency['shadow'].p99_ms:.0f} ms, "
            f"in charge {latency['in_charge'].p99_ms:.0f} ms"
        )
    if warm < WARM:
        found.append(f"its memories are warm for {warm:.0%} of the events only")
    return found
