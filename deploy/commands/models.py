"""`eddy models`: the life of the intensity model's versions."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from deploy.commands.options import (
    DEFAULT_ROOT,
    AsJson,
    ConfigFile,
    Overrides,
    Root,
    read_settings,
    write_json,
)
from flink_jobs.errors import EddyError
from flink_jobs.rollout import read_rollout

if TYPE_CHECKING:
    from deploy.models.life import Done
    from deploy.models.report import Comparison
    from deploy.models.server import TritonServer
    from flink_jobs.settings import Settings

app = typer.Typer(
    help="Publish, try, promote and roll back models.",
    no_args_is_help=True,
)

FILE_WIDTH = 140

Number = Annotated[int, typer.Argument(min=1, metavar="VERSION", help="Number of the version.")]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Why; kept in the model's history.")]


@app.command("list")
def list_command(
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Show the versions, who is in charge, and the last changes."""
    from deploy.models import life, listing, server, tables

    settings, triton = _opened(config, overrides, root)
    folder = life.model_root(settings)
    now = read_rollout(folder)
    served = server.served_or_none(triton)
    rows = listing.list_versions(folder, now, served)
    if as_json:
        write_json(
            {
                "model": folder.name,
                "rollout": asdict(now),
                "versions": [asdict(row) for row in rows],
                "triton_answers": served is not None,
            }
        )
        return
    tables.print_list(_console(), rows, now.history, served is not None)


@app.command()
def publish(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="As `eddy train` writes it.")],
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Check a model's folder, bring it into the repository and onto Triton; nobody is replaced."""
    from deploy.models import life

    settings, triton = _opened(config, overrides, root)
    done = life.publish(settings, folder, triton)
    told = f"version {done.version} is published; `eddy models shadow {done.version}` tries it"
    _tell(done, told, as_json)


@app.command()
def shadow(
    version: Annotated[
        int | None, typer.Argument(min=1, metavar="VERSION", help="Number of the version.")
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="End the trial.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also while the version in charge is on probation.")
    ] = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Let a version answer beside the one in charge, on the live stream, without a say."""
    from deploy.models import life

    if off == (version is not None):
        raise typer.BadParameter("give the number of a version, or --off")
    settings, triton = _opened(config, overrides, root)
    done = life.shadow(settings, version, triton, force)
    told = "no version is in shadow" if off else f"version {version} is in shadow"
    _tell(done, told, as_json)


@app.command()
def compare(
    version: Annotated[
        int | None,
        typer.Argument(min=1, metavar="VERSION", help="In the shadow of the one in charge."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="FILE", help="Messages of the topic as JSON lines, not from Kafka."
        ),
    ] = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Show how the shadow does beside the version in charge: likelihood, calibration, alerts."""
    from deploy.models import tables

    settings = read_settings(config, overrides, root)
    found = _compared(settings, version, source)
    if found is None:
        raise EddyError(
            "no report of a shadow beside the version in charge; `eddy models shadow VERSION` "
            "begins one, and the running job reports on it every few seconds"
        )
    if as_json:
        write_json(_finite(asdict(found)))
        return
    _console().print(tables.comparison_view(found))


@app.command()
def promote(
    version: Number,
    reason: Reason = "",
    force: Annotated[
        bool, typer.Option("--force", help="Also with memories that are not warm.")
    ] = False,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="FILE", help="Reports of its shadow as JSON lines, not from Kafka."
        ),
    ] = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Put a version in charge; the running job switches within a second, without a restart."""
    from deploy.models import life

    settings, triton = _opened(config, overrides, root)
    notes = []
    try:
        compared = _compared(settings, version, source)
    except EddyError as error:
        if source is not None:
            raise
        compared = None
        notes.append(f"the reports of its shadow cannot be read: {error}")
    done = life.promote(settings, version, triton, compared, reason, force)
    _tell(done, f"version {version} is in charge", as_json, notes)


@app.command()
def rollback(
    reason: Reason = "",
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Put the version in charge again that was so before the last promotion."""
    from deploy.models import life

    settings, triton = _opened(config, overrides, root)
    done = life.roll_back(settings, reason, triton)
    _tell(done, f"version {done.version} is in charge again", as_json)


@app.command()
def retire(
    version: Number,
    force: Annotated[
        bool, typer.Option("--force", help="Also one whose predictions may still be in use.")
    ] = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Unload a version that nobody uses and remove its folder."""
    from deploy.models import life

    settings, triton = _opened(config, overrides, root)
    done = life.retire(settings, version, triton, force)
    _tell(done, f"version {version} is gone", as_json)


def _opened(
    config: Path | None, overrides: list[str] | None, root: Path
) -> tuple[Settings, TritonServer]:
    from deploy.models.server import TritonServer

    settings = read_settings(config, overrides, root)
    return settings, TritonServer(settings.triton)


def _compared(settings: Settings, version: int | None, source: Path | None) -> Comparison | None:
    from deploy.models import life, report, topic

    messages = topic.read_topic(settings) if source is None else topic.read_file(source)
    now = read_rollout(life.model_root(settings)) if source is None or version else None
    try:
        return report.compare(messages, now, version)
    except ValueError as error:
        raise EddyError(str(error)) from error


def _tell(done: Done, told: str, as_json: bool, notes: list[str] | None = None) -> None:
    notes = [*(notes or []), *done.notes]
    if as_json:
        write_json({"version": done.version, "rollout": asdict(done.rollout), "notes": notes})
        return
    typer.echo(told)
    for note in notes:
        typer.echo(f"note: {note}", err=True)


def _console() -> Console:
    """Return a console that is wide where nobody looks, so that a file holds whole rows."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=FILE_WIDTH)


def _finite(value: Any) -> Any:
    """Write what is not known as null: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
