"""The report of a fit: one HTML page that needs nothing beside it."""

from __future__ import annotations

from html import escape
from pathlib import Path

from deploy import page
from deploy.fit.figures import figures
from deploy.fit.run import FitResult, KindResult
from deploy.fit.words import stream_warnings, warnings_of
from flink_jobs.pit import kolmogorov
from models.prior_diagnosis import em_agreement

EXPLAINED = {
    "Entities and the prior over them": "Bars: the fits of single entities. Line: the prior that "
    "the job starts a new entity from. Estimates scatter more than the entities themselves do, so "
    "the line is the narrower where entities have few events.",
    "Residuals of the level": "Left: what one value says of the next beyond the level; bars within "
    "the dashed lines are chance. Right: points on the line are normal; a tail that leaves it is "
    "heavier.",
    "PIT: where events fell in what was predicted": "Flat is calibrated. A hump: predictions are "
    "too wide; a bowl: too narrow; a slope: too low or too high. On the right the same for the "
    "population's prior: this shape is kept in the file, and the job compares today's with it.",
    "Weekly profile": "Gaps are measured in time that passes by this rate.",
    "Calibration: tails without the model": "Points: how often, per scored event, an entity's week "
    "reaches a surprise. Line: what the job takes for it. Points far to the right of the line are "
    "anomalies in this traffic, or a tail that is heavier than its line.",
    "Calibration: tails with the model": "The same with the intensity model in charge.",
}


def write_report(result: FitResult, path: Path) -> None:
    """Write the page, whole or not at all."""
    title = f"Prior and calibration of {result.prior.origin.get('from', '')}"
    origin = page.table(list(result.prior.origin.items()))
    head = [origin, _warnings(stream_warnings(result))]
    page.write_page(path, title, [*head, *map(_kind, result.kinds)])


def _kind(kind: KindResult) -> str:
    numbers = page.table(_numbers(kind))
    parts = [f"<h2>{escape(kind.kind)}</h2>", _warnings(warnings_of(kind)), numbers]
    for title, png in figures(kind).items():
        note = page.paragraph(EXPLAINED[title], "note")
        parts.append(f"<h3>{escape(title)}</h3>{note}{page.image(png, title)}")
    parts.append(f"<h3>Calibration in numbers</h3>{_tails(kind)}")
    return "\n".join(parts)


def _numbers(kind: KindResult) -> list[tuple[str, str]]:
    prior, fit = kind.prior, kind.fit
    checked, ratio, gain = em_agreement(kind.levels)
    trimmed = sum(one.trimmed for one in kind.levels)
    values = sum(one.count for one in kind.levels)
    rows = [
        ("events, entities", f"{kind.events:,}, {kind.entities:,}"),
        ("entities whose level was fitted", f"{len(kind.levels):,}"),
        ("values left out as outliers", f"{trimmed:,} of {values + trimmed:,}"),
        ("value: mean, variance between, within",
         f"{prior.value_mean:.4g}, {prior.value_between_var:.4g}, {prior.value_within_var:.4g}"),
        ("level noise, of the variance within", f"{prior.level_noise:.2g}"),
        ("log gap: mean, variance between, within",
         f"{prior.gap_mean:.4g}, {prior.gap_between_var:.4g}, {prior.gap_within_var:.4g}"),
        ("entities whose gaps were fitted; gaps left out",
         f"{len(kind.gaps.count):,}; {kind.gaps.trimmed:,}"),
        ("distinct partners in two windows", f"{prior.partner_mean:.2f}"),
    ]  # fmt: skip
    if fit.noise is not None:
        rows.append(("variance of values: spread over entities", _spread(fit.noise.dof)))
    if checked:
        rows.append(
            (f"EM beside maximum likelihood, {checked} entities",
             f"noise variance {ratio:.2f} times (median), log likelihood at most {gain:+.2f} nats")
        )  # fmt: skip
    for name, counts in kind.pits.items():
        rows.append((f"PIT KS, {name}", f"{kolmogorov(counts):.3f}"))
    return rows


def _spread(dof: float) -> str:
    return "none beyond chance" if dof > 1e4 else f"as if each were known from {dof:.1f} values"


def _tails(kind: KindResult) -> str:
    rows = []
    for name, one in kind.unaided.items():
        aided = (kind.aided or {}).get(name)
        with_model = f"{aided.tail.offset:.2f} − {aided.tail.slope:.2f} s" if aided else "–"
        rows.append(
            (name, f"{one.tail.offset:.2f} − {one.tail.slope:.2f} s", with_model,
             f"{one.events:,}", f"{one.clusters:,}")
        )  # fmt: skip
    head = ("detector", "log P, without the model", "with the model", "events", "entity-weeks")
    return page.table(rows, head)


def _warnings(texts: list[str]) -> str:
    if not texts:
        return page.paragraph("Nothing stands out.", "note")
    return '<ul class="warnings">' + "".join(f"<li>{escape(t)}</li>" for t in texts) + "</ul>"
