"""The command line: `eddy`. Each command imports what it needs when it runs.

Exit codes: 0 done, 1 a problem that the message explains, 2 wrong usage, 3 (`status`) something is
not up, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from deploy.commands import bench, config, data, evaluate, fit, models, run, stack, status, train
from deploy.stack.options import StackError
from flink_jobs.errors import EddyError
from models.kernel_cache import key_by_source

app = typer.Typer(
    name="eddy",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(stack.up)
app.command()(stack.down)
app.command()(status.status)
app.command()(run.run)
app.command()(run.stop)
app.command()(data.simulate)
app.command()(data.alerts)
app.command()(run.demo)
app.command()(fit.fit)
app.add_typer(bench.app, name="bench")
app.add_typer(config.app, name="config")
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(models.app, name="models")
app.command()(train.train)


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"eddy {version('eddy-streams')}")
        except PackageNotFoundError:
            typer.echo("eddy, not installed: a checkout")
        raise typer.Exit


@app.callback()
def eddy(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Anomaly detection on event streams: Kafka, PyFlink, Triton.

    `eddy demo` shows it all. By hand: `eddy up`, `eddy run`, `eddy simulate`, `eddy alerts`.
    """
    del show_version


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What follows `eddy`; None takes those of the process.

    Returns:
        The exit code.
    """
    key_by_source()
    try:
        typer.main.get_command(app).main(
            None if arguments is None else list(arguments), prog_name="eddy"
        )
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except (EddyError, StackError) as error:
        typer.echo(f"eddy: {error}", err=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
