"""Run the demo: bring everything up, stream, watch, report, and leave nothing behind."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType

from rich.console import Console

from deploy import submit
from deploy.counted import counted
from deploy.demo import draw, live, picture
from deploy.demo.report import Run, build_report
from deploy.demo.watch import Board, Stream, read_metrics, watching
from deploy.simulate import read_truth
from deploy.stack import stack
from deploy.stack.options import StackError, StackOptions
from deploy.stack.processes import exclusive
from deploy.trimmed import Trimmed
from flink_jobs.errors import EddyError
from flink_jobs.intensity_protocol import NullClient
from flink_jobs.settings import Settings, load
from models.simulation.config import SimulationConfig, demo
from models.simulation.encode import encode_payments
from models.simulation.stream import Simulation
from models.simulation.truth import Anomaly

RATE_PER_S = 5_500.0  # two cores bear it beside Kafka, Flink and Triton, with room to catch up
REPORT, PICTURE, TRUTH = "report.json", "caught.png", "truth.jsonl"
KEPT = (REPORT, PICTURE)
LOCK = "running"
INTERRUPTED = 130
QUIET_S = 4.0  # without progress, all decided: the last alerts are committed by then
STALLED_S = 90.0
LOOK_S = 0.2
WARM_UP_PAYMENTS = 500
COMPILE_S = 120.0  # the job compiles what is missing then
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_demo(
    settings: Settings,
    *,
    seed: int,
    keep: bool = False,
    root: Path = Path(".eddy"),
    world: SimulationConfig | None = None,
    rate_per_s: float = RATE_PER_S,
    options: StackOptions | None = None,
    console: Console | None = None,
) -> int:
    """Run the demo in a stack of its own, in `root`/demo.

    Args:
        settings: detection, state and the like count; source, events and sink are the demo's own.
        seed: of the payments.
        keep: leave servers and data as they are at the end.
        root: eddy's folder; the report and the picture stay in `root`/demo.
        world: what is simulated; else the demo's preset with `seed`.
        rate_per_s: payments sent per second.
        options: of the stack, its root excepted.
        console: where it is shown.

    Returns:
        The exit code: 0 with a report, 130 after Ctrl-C.

    Raises:
        EddyError: the job failed or stands still, or another demo runs in this folder.
        StackError: a server could not be started.
    """
    folder = (root / "demo").absolute()
    console = console or Console()
    world = world or demo(seed)
    settings = own_settings(settings)
    options = _stack_options(options, folder, settings)
    board = Board(
        seed,
        world.payments,
        kinds=len(settings.event.entities),
        quiet_until_ms=world.quiet_until_ms,
        min_events=settings.detection.min_events,
    )
    interrupted = threading.Event()
    report: dict[str, object] | None = None
    with _only_demo(folder), _one_interrupt(interrupted) as disarm:
        try:
            try:
                clean(folder, ())
                with live.screen(board, console):
                    report = _report_of(settings, options, world, rate_per_s, board, interrupted)
                _show(report, folder, console)
            except KeyboardInterrupt:
                raise
            except BaseException:
                disarm()
                _say(console, f"stopping; the logs stay in {folder / 'logs'}")
                clean(folder, ("logs", *KEPT))
                raise
            disarm()
            if keep:
                _explain_kept(folder, console)
            else:
                _say(console, "stopping the servers ...")
                clean(folder, KEPT)
                _say(console, "all servers are stopped; `eddy demo --keep` leaves them running")
        except KeyboardInterrupt:
            # At most one is raised, so nothing interrupts this.
            _say(console, "interrupted; stopping the servers ...")
            clean(folder, KEPT if report is not None else ())
            _say(console, "nothing is left running")
            return INTERRUPTED
    return 0


def own_settings(settings: Settings) -> Settings:
    """Return the settings for the demo's own servers and payments.

    How to detect, store and deliver is taken as it is; where events come from and how they look is
    the demo's. Detection is the default where the settings describe other entities than payments.
    """
    plain = load(None, {}, ())
    same = settings.event.entities == plain.event.entities
    return replace(
        settings,
        source=replace(plain.source, batch_ms=settings.source.batch_ms),
        event=plain.event,
        detection=settings.detection if same else plain.detection,
        triton=replace(
            settings.triton, tls=False, tls_root_certificates="", tls_private_key="",
            tls_certificate_chain="",
        ),
        sink=replace(
            plain.sink,
            delivery=settings.sink.delivery,
            transaction_timeout_ms=settings.sink.transaction_timeout_ms,
        ),
    )  # fmt: skip


def _stack_options(options: StackOptions | None, folder: Path, settings: Settings) -> StackOptions:
    options = options or StackOptions(root=folder)
    triton = settings.triton
    return replace(
        options,
        root=folder,
        model_name=triton.model_name,
        triton_repo=Path(triton.model_repository or options.triton_repo),
        task_slots=max(options.task_slots, settings.flink.parallelism),
        # The page shows what Flink fetched: by default it looks every 2 to 10 s.
        flink_config={**options.flink_config, "metrics.fetcher.update-interval": "1000"},
    )


def _report_of(
    settings: Settings,
    options: StackOptions,
    world: SimulationConfig,
    rate_per_s: float,
    board: Board,
    interrupted: threading.Event,
) -> dict[str, object]:
    """Do everything from the first server to the written report and picture."""
    board.phase = "starting Kafka, Flink and Triton"
    compiled = _compile_aside(settings, world, board)
    state = stack.up(options, board.note_step)
    board.phase = "compiling the kernels"
    compiled.wait(COMPILE_S)
    _check(board, interrupted)
    placed = submit.on_stack(settings, state)
    board.phase = "submitting the job"
    job_id = submit.submit(placed, state)
    stack.wait_until_running(state, job_id)
    board.steps.append(f"job {job_id} runs")
    _check(board, interrupted)
    truth_path = options.root / TRUTH
    stream = Stream(state, placed, job_id, world, rate_per_s, truth_path)
    with watching(stream, board) as sent:
        _await_decided(board, sent, interrupted)
        board.phase = "writing the report"
        _read_last_metrics(stream, board)
    truth = read_truth(truth_path)
    report = build_report(_run(board, settings), truth, board.alerts)
    _write_json(options.root / REPORT, report)
    drawn = _draw(placed, world, truth, board, options.root / PICTURE)
    board.phase = "done" if drawn else "done; nothing was caught, so there is no picture"
    return report


def _compile_aside(settings: Settings, world: SimulationConfig, board: Board) -> threading.Event:
    """Fill numba's cache on disk for the job, by scoring a few payments while the servers start.

    Returns:
        What is set when it is done, or has failed.
    """
    done = threading.Event()

    def score() -> None:
        try:
            first = next(Simulation(world).chunks(WARM_UP_PAYMENTS))
            picture.score(encode_payments(first), settings, NullClient(), None)
        except Exception as error:  # noqa: BLE001 a thread's failure must not go unseen
            board.failed = error
        finally:
            done.set()

    # No pool: its end would wait for the compiler when Ctrl-C should not.
    threading.Thread(target=score, name="demo-compile", daemon=True).start()
    return done


def _check(board: Board, interrupted: threading.Event) -> None:
    """Raise what a watcher met, and a Ctrl-C that a library has swallowed."""
    if board.failed is not None:
        raise board.failed
    if interrupted.is_set():
        raise KeyboardInterrupt


def _await_decided(board: Board, sent: threading.Event, interrupted: threading.Event) -> None:
    """Wait until every payment is sent and decided, and every alert has arrived.

    Raises:
        EddyError: the job stands still.
    """
    moved_s, before = time.monotonic(), (0, 0, 0)
    while True:
        _check(board, interrupted)
        if board.sent and not board.first_s:
            board.phase = "waiting for the job's first scores"
        elif board.first_s and not sent.is_set():
            board.phase = "streaming payments"
        now = (board.sent, board.metrics.get("decided", 0), len(board.alerts))
        if now != before:
            moved_s, before = time.monotonic(), now
        still_s = time.monotonic() - moved_s
        if sent.is_set():
            board.phase = "all sent; waiting for the last scores"
            told = board.metrics.get("alerts", 0)
            if board.left == 0 and len(board.alerts) >= told and still_s > QUIET_S:
                return
        if still_s > STALLED_S:
            told = board.metrics.get("alerts", 0)
            raise EddyError(
                f"the job stands still: {board.sent:,} payments sent, {board.decided:,} decided,"
                f" {len(board.alerts)} of {counted(told, 'alert')} received"
            )
        time.sleep(LOOK_S)


def _read_last_metrics(stream: Stream, board: Board) -> None:
    with contextlib.suppress(StackError):
        board.metrics = {**board.metrics, **read_metrics(stream.state, stream.job_id)}


def _run(board: Board, settings: Settings) -> Run:
    facts: Mapping[str, object] = {
        "late": board.metrics.get("late", 0),
        "dead_letters": board.metrics.get("dead_letters", 0),
        "delivery": settings.sink.delivery,
        "model_versions": sorted({a.model_version for a in board.alerts if a.model_version}),
        "settings_hash": settings.settings_hash(),
    }
    return Run(
        seed=board.seed,
        payments=board.sent,
        warm_up=board.warm_up,
        undecided=board.left,
        produced_s=board.last_s - board.first_s,
        decided_s=max(board.decided_s, board.last_s) - board.first_s,
        duration_s=time.monotonic() - board.began_s,
        sent_ms=dict(board.sent_ms),
        samples=tuple(board.samples),
        facts=facts,
    )


def _draw(
    settings: Settings,
    world: SimulationConfig,
    truth: list[Anomaly],
    board: Board,
    path: Path,
) -> bool:
    board.phase = "drawing the picture"
    caught = picture.choose(world, truth, board.alerts)
    if caught is not None:
        client = picture.patient_client(settings)
        try:
            draw.write_picture(caught, picture.replay(caught, settings, client), path)
        finally:
            client.close()
    return caught is not None


def _write_json(path: Path, value: object) -> None:
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
    unfinished.replace(path)


def clean(folder: Path, kept: tuple[str, ...]) -> None:
    """Stop the demo's servers and remove everything in its folder but `kept`."""
    stack.down(folder, purge="logs" not in kept)
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name in kept or path.name == LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _only_demo(folder: Path) -> Iterator[None]:
    """Let one demo at a time use the folder; leave no trace of that, nor of an empty folder."""
    made = not folder.parent.exists()
    try:
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(exclusive(folder / LOCK, 0.0))
            except StackError as error:
                raise EddyError(
                    f"another demo runs in {folder}; wait for it, or choose another --root"
                ) from error
            yield
    finally:
        for path in (folder / LOCK, folder, *((folder.parent,) if made else ())):
            with contextlib.suppress(OSError):
                path.rmdir()  # empty ones only


@contextlib.contextmanager
def _one_interrupt(interrupted: threading.Event) -> Iterator[Callable[[], None]]:
    """Turn the first of SIGINT, SIGTERM and SIGHUP into KeyboardInterrupt and ignore the rest.

    A second Ctrl-C would otherwise end the clean-up half-way. Yields what ignores them all from
    now on.
    """
    armed = [True]

    def handle(_number: int, _frame: FrameType | None) -> None:
        interrupted.set()
        if armed[0]:
            armed[0] = False
            raise KeyboardInterrupt

    def disarm() -> None:
        armed[0] = False

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield disarm
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _show(report: Mapping[str, object], folder: Path, console: Console) -> None:
    console.print(Trimmed(live.report_page(report)))
    _say(console, "")
    _say(console, f"report   {_short(folder / REPORT)}")
    if (folder / PICTURE).exists():
        _say(console, f"picture  {_short(folder / PICTURE)}")


def _explain_kept(folder: Path, console: Console) -> None:
    state = stack.load_state(folder)
    root = _short(folder)
    for line in (
        "",
        "The servers run on:",
        f"  Flink's page      {state.flink_url}",
        f"  all alerts        eddy alerts --all --root {root}",
        f"  state of servers  eddy status --root {root}",
        f"  stop them         eddy down --root {root}",
    ):
        _say(console, line)


def _short(path: Path) -> str:
    """Return the path from here where it lies below, else whole."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False, markup=False)
