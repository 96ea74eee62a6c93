"""`eddy evaluate tpp`: the likelihood of event sequences under the streamable model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from deploy.commands.options import AsJson
from deploy.stack.options import REPOSITORY
from flink_jobs.errors import EddyError


def tpp(
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE", help="Parquet with t and seq.")
    ] = None,
    known: Annotated[
        bool, typer.Option("--known", help="Simulated processes of known likelihood instead.")
    ] = False,
    process: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only these; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of training.")] = 1,
    split_seed: Annotated[int, typer.Option(min=0, help="1 is the published split.")] = 1,
    steps: Annotated[
        int, typer.Option(min=1, metavar="N", help="Gradient steps per process at most.")
    ] = 600,
    budget_s: Annotated[
        float,
        typer.Option(
            min=1.0,
            metavar="S",
            help="Seconds of a core for training each process at most; the fits take some 10 more.",
        ),
    ] = 600.0,
    layers: Annotated[int, typer.Option(min=1, max=4, help="Of the encoder.")] = 1,
    simulation: Annotated[
        bool,
        typer.Option(help="Let simulations of an unrefuted classical process extend the data."),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Train and test models of event times.

    The streamable model on each process, beside classical references.

    Needs torch, which `make .venv-train/.ready` installs. Progress goes to standard error.
    """
    if (data is None) is not known:
        raise typer.BadParameter("expected either --data FILE or --known; give one of them")
    python = REPOSITORY / ".venv-train" / "bin" / "python"
    if not python.exists():
        raise EddyError(
            f"training needs torch in {python.parents[1]}; run `make .venv-train/.ready`"
        )
    command = [str(python), "-m", "deploy.evaluate_tpp"]
    command += ["--known"] if known else ["--data", str(data)]
    for name in process or []:
        command += ["--process", name]
    command += ["--seed", str(seed), "--split-seed", str(split_seed), "--steps", str(steps)]
    command += ["--budget-s", str(budget_s), "--layers", str(layers)]
    command += [] if simulation else ["--no-simulation"]
    command += ["--json"] if as_json else []
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    # In place of this process: Ctrl-C and the exit code are those of the training.
    os.execve(python, command, {**os.environ, "PYTHONPATH": path})  # noqa: S606 no shell is meant
