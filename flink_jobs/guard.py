"""When a promoted model has failed: pure rules on what its probation shows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flink_jobs.pit import kolmogorov
from flink_jobs.trial import IN_CHARGE, SHADOW, Trial

FEWEST_COMPARED = 2_000  # events that both models predicted, before likelihoods are judged
FEWEST_REQUESTS = 50
LOST_NATS = 0.05  # nats an event, beyond four standard errors
LOST_PIT = 0.1  # Kolmogorov distance from uniform, beyond the previous version's
FAILING = 0.05  # of the requests, beyond twice the previous version's share
SLOWER = 3.0
SLOWER_BY_MS = 20.0
FLOOD = 10.0  # alerts of the new version alone, over those of the old one
FEWEST_ALERTS = 20
NEVER_SENT = ("breaker_open", "in_flight_limit", "not_sent", "closed")


@dataclass(frozen=True, slots=True)
class Health:
    """How a version has answered since its probation began.

    Attributes:
        closed: its breaker is closed.
        requests: answered.
        mean_ms: latency of these.
        failures: requests without a sound answer, by reason.
    """

    closed: bool
    requests: int
    mean_ms: float
    failures: Counter[str]

    @property
    def sent_in_vain(self) -> Counter[str]:
        """Failures of requests that were sent."""
        return Counter({why: n for why, n in self.failures.items() if why not in NEVER_SENT})


def no_answer(failed: Health) -> str:
    """Say why a version that does not answer is to go."""
    sent = failed.sent_in_vain.most_common(3)
    found = ", ".join(f"{count} x {reason}" for reason, count in sent)
    return f"it does not answer: {found or 'no request was answered'}"


def slower(new: Health, old: Health, fewest: int) -> str:
    """Say that the version in charge is slower than the one before, which is asked the same.

    Args:
        new: of the version in charge.
        old: of the one before.
        fewest: requests of each, without which nothing is said.
    """
    known = min(new.requests, old.requests) >= fewest
    if not known or new.mean_ms <= SLOWER * old.mean_ms + SLOWER_BY_MS:
        return ""
    return (
        f"latency: a request takes {new.mean_ms:.1f} ms, that of the version before "
        f"{old.mean_ms:.1f} ms"
    )


def unreliable(new: Health, old: Health) -> str:
    """Say that the version in charge fails a part of its requests where the one before does not.

    Args:
        new: of the version in charge.
        old: of the one before, which is asked the same.
    """
    failed = [sum(of.sent_in_vain.values()) for of in (new, old)]
    sent = [of.requests + n for of, n in zip((new, old), failed, strict=True)]
    if min(sent) < FEWEST_REQUESTS:
        return ""
    share, before = (n / of for n, of in zip(failed, sent, strict=True))
    if share <= FAILING + 2.0 * before:
        return ""
    return (
        f"errors: {share:.0%} of {sent[0]:,} requests failed, of the version before {before:.0%}: "
        f"{', '.join(f'{count} x {reason}' for reason, count in new.sent_in_vain.most_common(3))}"
    )


def fault(trials: Sequence[Trial]) -> str:
    """Say what is wrong with the version in charge by what it predicts; "" for nothing.

    Args:
        trials: by shard, of the version before in the shadow of the one in charge.
    """
    tallies = [tally for trial in trials for tally in trial.tallies]
    compared = sum(tally.compared for tally in tallies)
    if compared >= FEWEST_COMPARED:
        nats = np.sum([tally.nats for tally in tallies], axis=0) / compared
        lost = float(nats[IN_CHARGE] - nats[SHADOW])
        spread = sum(tally.square for tally in tallies) / compared - lost**2
        if lost > LOST_NATS + 4.0 * math.sqrt(max(spread, 0.0) / compared):
            return (
                f"likelihood: {nats[IN_CHARGE]:.3f} nats an event, that of the version before "
                f"{nats[SHADOW]:.3f}"
            )
        pit = np.sum([tally.pit for tally in tallies], axis=0)
        mine, before = kolmogorov(pit[IN_CHARGE]), kolmogorov(pit[SHADOW])
        if mine > before + LOST_PIT:
            return (
                f"calibration: its gaps are {mine:.2f} (Kolmogorov) from what it predicts, those "
                f"of the version before {before:.2f}"
            )
    alone, other = (sum(trial.alone[side] for trial in trials) for side in (IN_CHARGE, SHADOW))
    both = sum(trial.both for trial in trials)
    if alone >= FEWEST_ALERTS and alone > FLOOD * (both + other + 1):
        return f"alerts: {alone} that the version before would not give, which gives {both + other}"
    return ""
