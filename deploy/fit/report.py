"""The report of a fit: one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from deploy.fit.figures import figures
from deploy.fit.run import FitResult, KindResult
from deploy.fit.words import stream_warnings, warnings_of
from flink_jobs.pit import kolmogorov
from models.prior_diagnosis import em_agreement

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1120px; margin: 2em auto; padding: 0 1em;
       color: #222; }
h1 { font-size: 1.5em; } h2 { border-top: 1px solid #ccc; padding-top: .8em; }
h3 { font-size: 1em; margin-bottom: .2em; }
table { border-collapse: collapse; margin: .5em 0 1em; }
td, th { padding: .15em .8em .15em 0; text-align: left; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
tr:nth-child(even) { background: #f6f6f6; }
img { max-width: 100%; }
ul.warnings { background: #fff4e0; border-left: 4px solid #d9822b; padding: .6em 1em .6em 2em; }
p.note { color: #555; }
"""
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
    body = [_head(result), *(_kind(kind) for kind in result.kinds)]
    page = (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>eddy fit</title>"
        f"<style>{STYLE}</style></head><body>\n{''.join(body)}</body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(path)


def _head(result: FitResult) -> str:
    rows = [(name, value) for name, value in result.prior.origin.items()]
    return (
        f"<h1>Prior and calibration of {escape(result.prior.origin.get('from', ''))}</h1>"
        f"{_table(rows)}{_warnings(stream_warnings(result))}"
    )


def _kind(kind: KindResult) -> str:
    parts = [f"<h2>{escape(kind.kind)}</h2>", _warnings(warnings_of(kind)), _table(_numbers(kind))]
    for title, png in figures(kind).items():
        data = base64.b64encode(png).decode()
        parts.append(
            f"<h3>{escape(title)}</h3><p class='note'>{escape(EXPLAINED[title])}</p>"
            f"<img alt='{escape(title)}' src='data:image/png;base64,{data}'>"
        )
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
    return _table(rows, head)


def _warnings(texts: list[str]) -> str:
    if not texts:
        return "<p class='note'>Nothing stands out.</p>"
    return "<ul class='warnings'>" + "".join(f"<li>{escape(t)}</li>" for t in texts) + "</ul>"


def _table(rows: Sequence[tuple[str, ...]], head: tuple[str, ...] = ()) -> str:
    lines = ["".join(f"<th>{escape(name)}</th>" for name in head)] if head else []
    lines += [
        "".join(f"<td{' class=n' if i else ''}>{escape(cell)}</td>" for i, cell in enumerate(row))
        for row in rows
    ]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
