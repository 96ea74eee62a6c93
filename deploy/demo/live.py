"""The demo on the terminal: a live page, or plain lines where standard output is no terminal."""

from __future__ import annotations

import textwrap
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deploy.counted import counted
from deploy.demo.report import Received
from deploy.demo.watch import Board

REFRESH_PER_S = 4.0
LINE_EVERY_S = 5.0
HEAD_LINES = 8  # above the alerts, with the line that names their columns
BAR_WIDTH = 20
TIME_WIDTH, SCORE_WIDTH = 11, 6
ENTITY_WIDTH = 17  # device/d-000123-1
STYLE = {"up": "green", "external": "green", "starting": "yellow", "failing": "red", "down": "red"}
SERVERS = (("kafka", "Kafka"), ("jobmanager", "Flink"), ("taskmanager", "worker"),
           ("triton", "Triton"))  # fmt: skip


class Screen(Protocol):
    """Shows a board until it is left."""

    def __enter__(self) -> Screen:
        """Begin to show it."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Show it a last time."""


def screen(board: Board, console: Console) -> Screen:
    """Choose the live page for a terminal, lines for anything else."""
    return _LiveScreen(board, console) if console.is_terminal else _LineScreen(board, console)


class _LiveScreen:
    def __init__(self, board: Board, console: Console) -> None:
        self._live = Live(
            get_renderable=lambda: page(board, console.width, console.height),
            console=console,
            refresh_per_second=REFRESH_PER_S,
            vertical_overflow="crop",
        )

    def __enter__(self) -> Screen:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()


class _LineScreen:
    """Prints steps and alerts as they come, and the figures every few seconds."""

    def __init__(self, board: Board, console: Console) -> None:
        self._board, self._console = board, console
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo-lines", daemon=True)
        self._steps = self._alerts = 0
        self._phase = ""
        self._line_s = 0.0

    def __enter__(self) -> Screen:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(1 / REFRESH_PER_S):
            self._print_news()
        self._print_news()

    def _print_news(self) -> None:
        board = self._board
        if board.phase != self._phase:
            self._phase = board.phase
            self._print(f"{_clock(board)}  {board.phase}")
        steps, alerts = board.steps[self._steps :], board.alerts[self._alerts :]
        for step in steps:
            self._print(f"{_clock(board)}  {step}")
        for alert in alerts:
            self._print(f"alert  {alert_line(alert)}")
        self._steps += len(steps)
        self._alerts += len(alerts)
        if board.first_s and time.monotonic() > self._line_s + LINE_EVERY_S:
            self._line_s = time.monotonic()
            self._print(f"{_clock(board)}  {figures_line(board)}")

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)


def alert_line(alert: Received) -> str:
    """Write an alert in one line."""
    end = "  [without the intensity model]" if alert.degraded else ""
    return (
        f"{_moment(alert.time_ms)}  {alert.kind}/{alert.entity}  score {alert.score:.2f}"
        f"  {alert.text}{end}"
    )


def figures_line(board: Board) -> str:
    """Write the figures of this moment in one line."""
    sent, decided = board.rates()
    latency = board.latency()
    servers = ", ".join(f"{name} {_condition(board, key)}" for key, name in SERVERS)
    return (
        f"sent {board.sent:,} ({sent:,.0f}/s)  decided {board.decided:,} ({decided:,.0f}/s)"
        f"  lag {board.left:,}  alerts {len(board.alerts)}{_why_quiet(board)}"
        f"  latency p50 {_ms(latency['p50'])} p99 {_ms(latency['p99'])}"
        f"  {servers}  {'DEGRADED' if board.degraded else 'full service'}"
    )


def _why_quiet(board: Board) -> str:
    if not board.quiet:
        return ""
    return f" (event time {_moment(board.event_ms)}, anomalies begin {_first_anomaly(board)})"


def _hint(board: Board) -> str:
    """Say why there is no alert yet."""
    if not board.quiet:
        return "none yet"
    return (
        f"none yet: the payments hold no anomaly before {_first_anomaly(board)}, so that entities"
        f" have a history first; an entity needs {counted(board.min_events, 'event')} before it"
        " can alert"
    )


def _first_anomaly(board: Board) -> str:
    return _moment(board.quiet_until_ms)


def page(board: Board, width: int, height: int) -> RenderableType:
    """Lay the board out for a terminal of `width` columns and `height` lines."""
    parts: list[RenderableType] = [_title(board, width), _services(board), Text()]
    if board.first_s:
        parts += [_figures(board, width), Text()]
        # One line stays free: a page as high as the terminal makes it scroll.
        parts.append(_alerts(board, width, height - HEAD_LINES - 2))
    else:
        parts.append(Padding(Text("\n".join(board.steps[-(height - 6) :])), (0, 0, 0, 2)))
    return Group(*parts)


def _title(board: Board, width: int) -> RenderableType:
    table = Table.grid(expand=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, width=width - 32, overflow="ellipsis")
    table.add_column(justify="right", no_wrap=True)
    name = Text.assemble(("eddy demo", "bold"), f"  seed {board.seed}")
    table.add_row(name, Text(board.phase, style="cyan"), _clock(board))
    return table


def _services(board: Board) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    for key, name in SERVERS:
        condition = _condition(board, key)
        line.append("● ", style=STYLE.get(condition, "dim"))
        line.append(name if condition in ("up", "external") else f"{name} {condition}")
        line.append("   ")
    if board.degraded:
        line.append("DEGRADED: no intensity model", style="bold yellow")
    elif board.decided:
        line.append("intensity model answers", style="green")
    return line


def _figures(board: Board, width: int) -> RenderableType:
    sent, decided = board.rates()
    latency = board.latency()
    lag_s = board.left / decided if decided > 0 else None
    table = Table.grid(padding=(0, 2, 0, 0))
    for justify in ("left", "right", "right", "left"):
        table.add_column(justify=justify, no_wrap=True)
    bar = BAR_WIDTH if width < 100 else 2 * BAR_WIDTH
    for name, count, rate, rest in (
        ("payments sent", board.sent, sent, _bar(board.sent, board.expected, bar)),
        ("decided", board.decided, decided, _bar(board.decided, board.expected, bar)),
    ):
        table.add_row(name, f"{count:,}", f"{rate:,.0f}/s", rest)
    behind = "" if lag_s is None else f"{lag_s:.1f} s"
    table.add_row("lag", f"{board.left:,}", behind, f"event time {_moment(board.event_ms)}")
    spread = f"latency p50 {_ms(latency['p50'])}, p99 {_ms(latency['p99'])}"
    table.add_row("alerts", f"{len(board.alerts):,}", "", spread)
    return table


def _bar(done: int, total: int, width: int) -> ProgressBar:
    return ProgressBar(total=max(total, done, 1), completed=done, width=width)


def _alerts(board: Board, width: int, lines: int) -> RenderableType:
    """Show the newest alerts that fit, the newest last."""
    reason_width = max(20, width - TIME_WIDTH - ENTITY_WIDTH - SCORE_WIDTH - 6)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=TIME_WIDTH, style="dim", no_wrap=True)
    table.add_column(width=ENTITY_WIDTH, style="bold", no_wrap=True, overflow="ellipsis")
    table.add_column(width=SCORE_WIDTH, style="red", justify="right", no_wrap=True)
    table.add_column(width=reason_width)
    heads = [Text(h, style="dim") for h in ("event time", "entity", "score", "reason")]
    table.add_row(*heads)
    if not board.alerts:
        return Group(table, Text(_hint(board), style="dim"))
    for alert, reason in _fitting(board.alerts, reason_width, lines):
        text = Text(reason, style="yellow" if alert.degraded else "")
        entity = f"{alert.kind}/{alert.entity}"
        table.add_row(_moment(alert.time_ms), entity, f"{alert.score:.2f}", text)
    return table


def _fitting(alerts: Sequence[Received], width: int, lines: int) -> Iterable[tuple[Received, str]]:
    chosen: list[tuple[Received, str]] = []
    for alert in reversed(alerts[-max(lines, 0) :]):
        wrapped = textwrap.wrap(alert.text, width) or [""]
        lines -= len(wrapped)
        if lines < 0:
            break
        chosen.append((alert, "\n".join(wrapped)))
    return reversed(chosen)


def report_page(report: Mapping[str, object]) -> RenderableType:
    """Lay the report out."""
    latency = report["latency_ms"]
    kinds = report["by_anomaly"]
    assert isinstance(latency, Mapping)
    assert isinstance(kinds, Mapping)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("anomalies")
    for head in ("found", "of", "recall"):
        table.add_column(head, justify="right")
    for kind, row in kinds.items():
        recall = f"{row['recall']:.2f}"
        table.add_row(kind.replace("_", " "), str(row["found"]), str(row["total"]), recall)
    figures = Table.grid(padding=(0, 2, 0, 0))
    figures.add_column()
    figures.add_column()
    false = report["false_alerts"]
    assert isinstance(false, Sequence)
    total, alerts = report["anomalies"], report["alerts"]
    assert isinstance(total, int)
    assert isinstance(alerts, int)
    meet = "meets" if alerts == 1 else "meet"
    found = f"{report['anomalies_found']} of {counted(total, 'anomaly', 'anomalies')} found"
    wrong = f"{len(false)} of {counted(alerts, 'alert')} {meet} no anomaly"
    spread = f"p50 {_ms(latency['p50'])}, p99 {_ms(latency['p99'])}"
    for name, text in (
        ("recall", f"{_share(report['recall'])}   {found}"),
        ("precision", f"{_share(report['precision'])}   {wrong}"),
        ("payments", f"{report['payments']:,} decided at {report['payments_per_s'] or 0:,.0f}/s"),
        ("latency", f"{spread}   from Kafka in to committed alert"),
        ("degraded", f"{report['degraded_s']:.1f} s without the intensity model"),
        ("took", f"{report['duration_s']:.0f} s"),
    ):
        figures.add_row(Text(name, style="bold"), text)
    return Group(Text(), table, Text(), figures)


def _share(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float | int) else "none"


def _ms(value: object) -> str:
    return f"{value:,.0f} ms" if isinstance(value, float | int) else "–"


def _condition(board: Board, service: str) -> str:
    found = [one.condition for one in board.health if one.name == service]
    return found[0] if found else "starting"


def _clock(board: Board) -> str:
    minutes, seconds = divmod(int(time.monotonic() - board.began_s), 60)
    return f"{minutes}:{seconds:02d}"


def _moment(time_ms: int) -> str:
    return f"{datetime.fromtimestamp(time_ms / 1_000, UTC):%m-%d %H:%M}"
