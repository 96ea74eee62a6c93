"""`eddy train`: the intensity model, from your own stream or from simulated worlds."""

from __future__ import annotations

import enum
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from deploy.commands.options import (
    DEFAULT_ROOT,
    AsJson,
    ConfigFile,
    Overrides,
    Root,
    module,
    read_settings,
    write_json,
)
from deploy.stack.options import REPOSITORY
from flink_jobs.errors import EddyError
from flink_jobs.settings import Settings

if TYPE_CHECKING:
    from deploy.training.run import TrainOptions, TrainResult

SIMULATED_OUT = Path("triton_repo/intensity/1")
OWN_OUT = Path("trained/intensity/1")
SEED = 7


class Device(enum.StrEnum):
    """Where training runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(enum.StrEnum):
    """Of the matrix products in training."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


def train(
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE|TOPIC",
            help="Your stream: JSON lines (.gz too), CSV or Parquet, or a Kafka topic, read to its"
            " end. Without it: simulated worlds.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help=f"The model's version folder; else {OWN_OUT}, or {SIMULATED_OUT} for simulated"
            " worlds.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Everything random follows from it.")] = SEED,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Gradient steps at most; training stops early.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a training that was killed.")
    ] = False,
    keep_encoder: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep the encoder of this model folder and learn a decoder upon it: the job's"
            " memories stay valid.",
        ),
    ] = None,
    prior: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Moments and weekly profiles (`eddy fit`); else those of the prior in charge,"
            " which a model must share with the one it takes over from.",
        ),
    ] = None,
    device: Annotated[
        Device, typer.Option(help="auto is CUDA where there is a GPU.")
    ] = Device.auto,
    precision: Annotated[
        Precision, typer.Option(help="auto is bf16 (or fp16) on CUDA, fp32 on a CPU.")
    ] = Precision.auto,
    compress: Annotated[
        bool,
        typer.Option(
            "--compress",
            help="Try cheaper decoders (distilled, int8, pruned) and keep the cheapest that loses"
            " at most .005 nats.",
        ),
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The report; else OUT/report.html.")
    ] = None,
    max_events: Annotated[
        int, typer.Option(min=1, help="The newest so many events are taken; some 250 bytes each.")
    ] = 3_000_000,
    trim: Annotated[
        int,
        typer.Option(
            min=0,
            max=99,  # as in `eddy fit`
            help="Entity-weeks, of the 200 that each detector is calibrated on, that may be"
            " anomalies.",
        ),
    ] = 40,
    worlds: Annotated[
        int | None, typer.Option(min=1, help="Simulated worlds to learn from, without --from.")
    ] = None,
    calibrate_only: Annotated[
        bool,
        typer.Option(
            "--calibrate-only", help="Without --from: keep the weights, fit prior.json anew."
        ),
    ] = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Train the intensity model, calibrate with it, report.

    Training runs in an environment of its own with torch, which `make .venv-train/.ready` installs.
    """
    if source is None:
        for name, given in (
            ("--keep-encoder", keep_encoder), ("--prior", prior), ("--compress", compress),
            ("--html", html), ("--json", as_json),
        ):  # fmt: skip
            if given:
                raise typer.BadParameter(f"{name} goes with --from FILE|TOPIC; name your stream")
        _simulated(out or SIMULATED_OUT, seed, worlds, steps, resume, calibrate_only)
        return
    if worlds is not None or calibrate_only:
        raise typer.BadParameter("--worlds and --calibrate-only go without --from")
    settings = read_settings(config, overrides, root)
    module("onnxruntime")
    from deploy.training.run import STEPS, TrainOptions

    options = TrainOptions(
        source=str(source),
        out=out or OWN_OUT,
        seed=seed,
        steps=steps or STEPS,
        resume=resume,
        limit=max_events,
        trimmed=trim,
        keep_encoder=keep_encoder,
        prior=prior,
        device=str(device),
        precision=str(precision),
        compress=compress,
    )
    result = _train(settings, options)
    page = html or options.out / "report.html"
    from deploy.training.report import write_report

    write_report(result.card, result.learnt, result.calibrated, page)
    if as_json:
        write_json({"out": str(options.out), "report": str(page), **result.card})
        return
    _tell(settings, options, result, page)


def _train(settings: Settings, options: TrainOptions) -> TrainResult:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from deploy.training.run import run_train, training_environment

    learn = training_environment()
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks = {}

        def show(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        def learn_below(folder: Path, variant: str | None) -> None:
            bar.stop()  # the training writes lines of its own
            learn(folder, variant)
            bar.start()

        return run_train(settings, options, show, learn_below)


def _tell(settings: Settings, options: TrainOptions, result: TrainResult, page: Path) -> None:
    from deploy.training.card import nats

    card = result.card
    for note in card["notes"]:
        typer.echo(note)
    for row in card.get("compression", {}).get("variants", ()):
        rate = f", {row['rows_per_s']:,} rows/s" if row["rows_per_s"] else ""
        cost = f", {row['us_per_row']:.2f} us a row" if row["us_per_row"] else ""
        typer.echo(
            f"{row['name']}: {row['test_nats']:.4f} nats an event ({row['loss_nats']:+.4f})"
            f"{cost}{rate}{': kept' if row['kept'] else ''}"
        )
    for row in card["judged"]:
        typer.echo(
            f"{row['kind']}: gap {row['gap']:.4f} nats an event (renewal {row['gap_renewal']:.4f},"
            f" Poisson {row['gap_poisson']:.4f}), mark {row['mark']:.4f} (frequencies"
            f" {row['mark_frequency']:.4f}), amount {nats(row['amount'])} (level"
            f" {nats(row['amount_level'])}), {row['events']:,} events of the last part"
        )
    typer.echo(f"model    {options.out}  {card['model_version']}")
    typer.echo(f"report   {page}")
    if settings.detection.prior or options.prior:
        typer.echo(
            f"prior    {options.out / 'prior.json'} has the calibration with this model: name it in"
            " detection.prior"
        )
    if result.configs:
        repository = options.out.absolute().parent.parent
        typer.echo(f"serve it eddy up --set triton.model_repository={repository}")


def _simulated(
    out: Path, seed: int, worlds: int | None, steps: int | None, resume: bool, calibrate_only: bool
) -> None:
    """Hand over to the training environment, in place of this process."""
    python = REPOSITORY / ".venv-train" / "bin" / "python"
    if not python.exists():
        raise EddyError(
            f"training needs torch in {python.parents[1]}; run `make .venv-train/.ready`"
        )
    command = [str(python), "-m", "deploy.train", "--seed", str(seed), "--out", str(out)]
    command += ["--worlds", str(worlds)] if worlds else []
    command += ["--steps", str(steps)] if steps else []
    command += ["--resume"] if resume else []
    command += ["--calibrate-only"] if calibrate_only else []
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    # Ctrl-C and the exit code are those of the training.
    os.execve(python, command, {**os.environ, "PYTHONPATH": path})  # noqa: S606 no shell is meant
