"""`eddy models list` and `compare` for people."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.models.listing import Row, in_words
from deploy.models.report import STANDARD_ERRORS, Comparison, KindComparison
from flink_jobs.rollout import Change

SHOWN_CHANGES = 6
MISSING = "–"
VERDICTS = {
    "better": ("green", "better: the shadow gives what happened more probability"),
    "worse": ("red", "worse: the shadow gives what happened less probability"),
    "no difference shown": ("yellow", "no difference shown"),
    "too few events": ("yellow", "too few events to judge"),
}


def list_table(rows: Sequence[Row], served_known: bool) -> Table:
    """Show the versions, the newest last."""
    table = Table(box=None, pad_edge=False)
    for name in ("version", "weights", "role", "published", "trained on"):
        table.add_column(
            name,
            justify="right" if name == "version" else "left",
            no_wrap=name in ("version", "weights"),
        )
    for name in ("nats/event", "decoder", "encoder", "Triton"):
        table.add_column(name, justify="right" if name in ("nats/event", "decoder") else "left")
    for row in rows:
        role = ", ".join(row.roles)
        style = "bold" if "in charge" in row.roles else ""
        encoder = MISSING if row.same_encoder is None else "same" if row.same_encoder else "other"
        served = (
            MISSING if not served_known else "serves it" if row.served else "[red]not served[/]"
        )
        table.add_row(
            str(row.version),
            row.weights or "[red]unreadable[/]",
            role,
            _moment(row.published)[:16] or MISSING,
            _short(row.trained_on) or MISSING,
            MISSING if row.nats is None else f"{row.nats:.4f}",
            MISSING if row.decoder_bytes is None else f"{row.decoder_bytes / 1024:,.0f} KiB",
            encoder,
            served,
            style=style,
        )
    return table


def changes_text(history: Sequence[Change]) -> list[Text]:
    """Tell the last changes, the newest first."""
    lines = []
    for change in list(reversed(history))[:SHOWN_CHANGES]:
        line = Text(f"{_moment(change.at)}  ", style="dim")
        line.append(in_words(change), style="red" if change.by == "guard" else "default")
        lines.append(line)
    return lines


def _moment(at: str) -> str:
    return at.replace("T", " ").replace("Z", "")[:19]


def _short(source: str, limit: int = 48) -> str:
    first = source.split(",")[0].strip()
    return first if len(first) <= limit else f"{first[: limit - 1]}…"


def comparison_view(of: Comparison) -> RenderableType:
    """Show a comparison: likelihood by kind, what surrounds it, and the verdict."""
    colour, words = VERDICTS[of.verdict]
    head = Text.assemble(
        ("version ", ""), (str(of.shadow[0]), "bold"), (f" ({of.shadow[1]}) in the shadow of ", ""),
        (f"version {of.in_charge[0]}", "bold"), (f" ({of.in_charge[1]})", ""),
    )  # fmt: skip
    said = Text.assemble((words, f"bold {colour}"))
    if of.verdict not in ("too few events",):
        said.append(
            f" ({of.total.difference:+.4f} nats/event, {STANDARD_ERRORS:g} standard errors are "
            f"{STANDARD_ERRORS * of.total.standard_error:.4f})"
        )
    parts: list[RenderableType] = [
        head,
        Text(f"last report {_moment(of.at)}, of {_plural(of.shards, 'shard')}", style="dim"),
        "",
        _likelihoods(of),
        "",
        _service(of),
        "",
        Text(
            f"alerts: {of.both:,} stay, {of.come:,} would come, {of.go:,} would go; memories warm "
            f"for {of.warm:.0%} of the events"
        ),
        *(
            Text(
                f"  {'comes' if e.get('change') == 'come' else 'goes '}  "
                f"{_moment(str(e.get('event_time', '')))}  {e.get('kind')}/{e.get('id')}",
                style="dim",
            )
            for e in of.examples
        ),
        "",
        said,
        *(
            Text(f"{'but' if of.verdict == 'better' else 'and'} {caution}", style="yellow")
            for caution in of.cautions
        ),
    ]
    return Group(*parts)


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _likelihoods(of: Comparison) -> Table:
    table = Table("kind", box=None, pad_edge=False)
    for name in ("compared", "in charge", "shadow", "difference", "± error"):
        table.add_column(name, justify="right")
    table.add_column("PIT in charge", justify="right")
    table.add_column("PIT shadow", justify="right")
    for kind, found in [*of.kinds.items(), ("all", of.total)]:
        table.add_row(kind, *_cells(found), style="bold" if kind == "all" else "")
    return table


def _cells(of: KindComparison) -> list[str]:
    return [
        f"{of.compared:,}",
        _number(of.in_charge, ".4f"),
        _number(of.shadow, ".4f"),
        _number(of.difference, "+.4f"),
        _number(of.standard_error, ".4f"),
        _number(of.pit_in_charge, ".3f"),
        _number(of.pit_shadow, ".3f"),
    ]


def _service(of: Comparison) -> Table:
    table = Table("", box=None, pad_edge=False)
    for name in ("requests", "mean ms", "p99 ms", "failures"):
        table.add_column(name, justify="right")
    for side, name in (("in_charge", "in charge"), ("shadow", "shadow")):
        latency, failed = of.latency[side], of.failures[side]
        words = ", ".join(f"{reason} {n:,}" for reason, n in sorted(failed.items()) if n)
        if side == "shadow" and of.missed_batches:
            words = f"{words + '; ' if words else ''}{of.missed_batches:,} batches not asked"
        table.add_row(
            name,
            f"{latency.requests:,}",
            _number(latency.mean_ms, ".1f"),
            _number(latency.p99_ms, ".1f"),
            words or "none",
        )
    return table


def _number(value: float, form: str) -> str:
    return MISSING if not math.isfinite(value) else format(value, form)


def print_list(
    console: Console, rows: Sequence[Row], history: Sequence[Change], served_known: bool
) -> None:
    """Print the versions, what is wrong with them, and the last changes."""
    console.print(list_table(rows, served_known))
    for row in rows:
        if row.fault:
            console.print(Text(f"version {row.version}: {row.fault}", style="red"))
    if not served_known:
        console.print(Text("Triton does not answer: whether it serves them is not known"))
    if history:
        console.print()
        for line in changes_text(history):
            console.print(line)
