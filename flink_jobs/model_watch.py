"""How a worker's versions answer: counted since the last switch, and looked at each second."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from flink_jobs.guard import FEWEST_REQUESTS, Health, fault, no_answer, slower, unreliable
from flink_jobs.intensity_protocol import LATENCY_BOUNDS_MS, IntensityClient, IntensityCounters
from flink_jobs.trial import Trial

# At so many looks a version must be found at fault, with none between at which it is not: what
# passes within a second or two is the network's or the machine's.
LOOKS = 3


class PooledClient(IntensityClient, Protocol):
    """A client as the pool needs it; `flink_jobs.intensity.TritonClient` is the one."""

    counters: IntensityCounters
    last_error: str

    def poll(self) -> None:
        """Send a probe if one is due."""

    def health(self) -> bool:
        """Return True if the model answers a canary; waits for it."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """What a client had counted at some time."""

    requests: int
    latency_s: float
    latency_counts: tuple[int, ...]
    failures: Counter[str]

    @classmethod
    def of(cls, counters: IntensityCounters) -> _Mark:
        counts = tuple(counters.latency_counts)
        return cls(sum(counts), counters.latency_s, counts, Counter(counters.failures))

    def since(self, client: PooledClient) -> Health:
        """Return what has come since."""
        now = _Mark.of(client.counters)
        requests = now.requests - self.requests
        mean_ms = 1e3 * (now.latency_s - self.latency_s) / max(requests, 1)
        return Health(client.state == "closed", requests, mean_ms, now.failures - self.failures)

    def p99_ms(self, client: PooledClient) -> float:
        """Return a bound of the 99th percentile of latency: the end of its class."""
        new = [
            b - a for a, b in zip(self.latency_counts, client.counters.latency_counts, strict=True)
        ]
        total, seen = sum(new), 0
        if not total:
            return 0.0
        for count, bound in zip(new, (*LATENCY_BOUNDS_MS, 2 * LATENCY_BOUNDS_MS[-1]), strict=True):
            seen += count
            if seen >= 0.99 * total:
                return bound
        return 0.0


_NOTHING = _Mark(0, 0.0, (0,) * (len(LATENCY_BOUNDS_MS) + 1), Counter())


class Watch:
    """Watches the version in charge and the one before.

    Args:
        clients: by version; the pool's own, which come and go.
    """

    def __init__(self, clients: Mapping[int, PooledClient]) -> None:
        self._clients = clients
        self._checks = ThreadPoolExecutor(1, "model-guard")
        self.begin()

    def begin(self) -> None:
        """Count from here on: versions have changed places."""
        self._marks = {version: _Mark.of(of.counters) for version, of in self._clients.items()}
        self._looked = dict(self._marks)
        self._check: Future[tuple[bool, bool]] | None = None
        self._sent_in_vain = self._failed = self._doubted = 0

    def close(self) -> None:
        """Ask no more."""
        self._checks.shutdown(wait=False)

    def look(self, version: int, previous: int, trials: Sequence[Trial] | None) -> str:
        """Say why the version in charge is to go; "" while there is no reason.

        To be called each second: a reason must have stood for some looks.

        Args:
            version: in charge.
            previous: to be gone back to.
            trials: by shard, of these two; None where the previous version is not asked.
        """
        since = {
            v: self._looked.get(v, _NOTHING).since(self._clients[v]) for v in (version, previous)
        }
        self._looked = {v: _Mark.of(self._clients[v].counters) for v in since}
        if self._does_not_answer(version, previous, since[version]):
            return no_answer(self.health(version))
        if trials is None:
            return ""
        new, old = self.health(version), self.health(previous)
        why = (
            slower(new, old, FEWEST_REQUESTS) if slower(since[version], since[previous], 1) else ""
        )
        why = why or unreliable(new, old) or fault(trials)
        self._doubted = self._doubted + 1 if why else 0
        return why if self._doubted >= LOOKS else ""

    def _does_not_answer(self, version: int, previous: int, since: Health) -> bool:
        """Return True if at enough looks requests failed, or a canary, while the other answers."""
        failed = sum(since.sent_in_vain.values())
        if since.requests > failed:
            self._sent_in_vain = self._failed = 0
            self._check = None
            return False
        self._sent_in_vain += failed
        if since.closed and not self._sent_in_vain and self._check is None:
            return False
        if self._check is not None and self._check.done():
            check, self._check = self._check, None
            other_answers, answers = check.result()
            if not other_answers:
                self._failed = 0  # the server is away: nobody is to blame
            elif self._sent_in_vain or not answers:
                self._failed += 1
            self._sent_in_vain = 0
        if self._check is None and self._failed < LOOKS:
            both = self._clients[previous], self._clients[version]
            self._check = self._checks.submit(lambda: (both[0].health(), both[1].health()))
        return self._failed >= LOOKS

    def health(self, version: int) -> Health:
        """Return how a version has answered since the last switch."""
        return self._marks.get(version, _NOTHING).since(self._clients[version])

    def answers(self, version: int, idle: bool = False) -> dict[str, object]:
        """Return latency and failures since the last switch, as a report tells them.

        `idle` tells of none: a worker's shards share its clients, and readers add shards up.
        """
        if idle or version not in self._clients:
            return {"latency_ms": {"requests": 0, "mean": 0.0, "p99": 0.0}, "failures": {}}
        health = self.health(version)
        p99 = self._marks.get(version, _NOTHING).p99_ms(self._clients[version])
        return {
            "latency_ms": {
                "requests": health.requests, "mean": round(health.mean_ms, 3), "p99": p99
            },
            "failures": dict(health.failures),
        }  # fmt: skip
