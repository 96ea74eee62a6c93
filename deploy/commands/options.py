"""What the commands share: options, the settings they read, and how they write."""

from __future__ import annotations

import importlib
import json
import os
import signal
import threading
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from flink_jobs.errors import EddyError
from flink_jobs.settings import Settings, load, load_with_origins

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        envvar="EDDY_CONFIG",
        metavar="FILE",
        help="Settings that differ from the defaults (TOML). ./eddy.toml is read by itself.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting; may be repeated."),
]
Root = Annotated[
    Path, typer.Option("--root", metavar="DIR", help="Folder of logs, pids and data of the stack.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")]
DEFAULT_ROOT = Path(".eddy")


def read_settings(config: Path | None, overrides: list[str] | None, root: Path) -> Settings:
    """Read the settings; where nobody names a server, take the one of the running local stack.

    Raises:
        SettingsError: See `flink_jobs.settings.load`.
    """
    settings, origins = load_with_origins(config_path(config), os.environ, overrides or [])
    running = _running_addresses(root)
    unnamed = {path: value for path, value in running.items() if origins[path] == "the defaults"}
    return _with_whole_paths(
        settings.override(*(f"{path}={value}" for path, value in unnamed.items()))
    )


def configured_settings(config: Path | None, overrides: list[str] | None) -> Settings:
    """Read the settings as they are written, whatever runs.

    Raises:
        SettingsError: See `flink_jobs.settings.load`.
    """
    return _with_whole_paths(load(config_path(config), os.environ, overrides or []))


def _with_whole_paths(settings: Settings) -> Settings:
    """Make paths absolute that the job's workers, who run elsewhere, will open."""
    prior = settings.detection.prior
    if not prior or Path(prior).is_absolute():
        return settings
    return settings.override(f"detection.prior={Path(prior).absolute()}")


def config_path(config: Path | None) -> Path | None:
    """Return the user's settings file: the one named, or eddy.toml in this folder."""
    beside = Path("eddy.toml")
    return config or (beside if beside.is_file() else None)


def _running_addresses(root: Path) -> dict[str, str]:
    """Return the addresses of the local stack by the names of their settings; none without it."""
    if not (root / "state.json").exists():
        return {}
    from deploy.stack import record

    state = record.load(root)
    if state is None:
        return {}
    return {
        "source.bootstrap_servers": state.bootstrap_servers,
        "triton.endpoint": state.triton_endpoint,
        "flink.rest": state.flink_url,
    }


def module(name: str) -> ModuleType:
    """Import a part of eddy that one command needs.

    Raises:
        EddyError: It, or a package that it needs, is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None:
            raise
        raise EddyError(
            f"this command needs {error.name}, which is not installed; run `make setup`"
            " (or `make .venv-train/.ready` for training)"
        ) from error


def write_json(value: object) -> None:
    """Write a value to standard output, indented."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def stop_event() -> threading.Event:
    """Return an event that SIGTERM sets; Ctrl-C raises KeyboardInterrupt as ever."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    return stop
