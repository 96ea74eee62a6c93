"""Ask the running jobs how well their priors fit, by Flink's metrics."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote

from deploy.stack import jobs, rest
from deploy.stack.options import StackError
from deploy.stack.record import StackState
from models.prior_check import BLOCK, FEWEST, MISFIT, PERIOD

# As `flink_jobs.misfit` registers them; the operator's name stands before.
_METRIC = re.compile(r"(?:^|\.)eddy\.prior_misfit_(value|gap)\.([a-z][a-z0-9_]*)$")


@dataclass(frozen=True)
class PriorMisfit:
    """How far the events of one kind are from those that the prior was fitted on.

    Attributes:
        job: name of the job.
        kind: entity kind.
        value: Kolmogorov distance of the values, 0 to 1; None until enough were seen.
        gap: the same of the gaps.
    """

    job: str
    kind: str
    value: float | None = None
    gap: float | None = None

    @property
    def condition(self) -> str:
        """Say "fits", "misfit", or "unknown"."""
        known = [distance for distance in (self.value, self.gap) if distance is not None]
        if not known:
            return "unknown"
        return "misfit" if max(known) > MISFIT else "fits"

    @property
    def detail(self) -> str:
        """Say it in words."""
        parts = [
            f"{what} {'–' if distance is None else f'{distance:.2f}'}"
            for what, distance in (("values", self.value), ("gaps", self.gap))
        ]
        told = ", ".join(parts) + " from what it was fitted on"
        if self.condition == "misfit":
            return f"{told}, more than {MISFIT:g}: fit it again with `eddy fit`"
        if self.condition == "fits":
            return told
        needed = round(FEWEST / BLOCK * PERIOD, -3)
        return f"too few events yet: some {needed:,.0f} of a kind are needed"


def prior_misfits(state: StackState) -> list[PriorMisfit]:
    """Ask each running job; none where Flink does not answer, for `eddy status` says that already.

    Args:
        state: the stack.
    """
    try:
        running = [job for job in jobs.jobs(state) if job.state == "RUNNING"]
        return [found for job in running for found in _of_job(state, job)]
    except StackError:
        return []


def _of_job(state: StackState, job: jobs.JobInfo) -> list[PriorMisfit]:
    found: dict[str, dict[str, float | None]] = {}
    for vertex in rest.get(state, f"/jobs/{job.job_id}").get("vertices", []):
        base = f"/jobs/{job.job_id}/vertices/{vertex['id']}/subtasks/metrics"
        known = {name: match for name in jobs.metric_names(state, base)
                 if (match := _METRIC.search(name))}  # fmt: skip
        names = list(known)
        for first in range(0, len(names), jobs.METRICS_PER_REQUEST):
            part = ",".join(quote(n, safe="") for n in names[first:][: jobs.METRICS_PER_REQUEST])
            for entry in rest.get_list(state, f"{base}?get={part}&agg=max"):
                what, kind = known[entry["id"]].groups()
                thousandths = float(entry["max"])
                distance = None if thousandths < 0.0 else thousandths / 1000.0
                found.setdefault(kind, {})[what] = distance
    return [PriorMisfit(job.name, kind, **parts) for kind, parts in found.items()]
