"""`eddy config`: show and check the settings."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer

from deploy.commands.options import AsJson, ConfigFile, Overrides, config_path, write_json
from flink_jobs.settings import load_with_origins

app = typer.Typer(help="Show and check the settings.", no_args_is_help=True)


@app.command("show")
def config_show(
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    changed: Annotated[bool, typer.Option(help="Only what is not the default.")] = False,
) -> None:
    """Print the settings in force and where each comes from; passwords are masked."""
    settings, origins = load_with_origins(config_path(config), os.environ, overrides or [])
    public = settings.to_public()
    if changed:
        public = {
            section: {k: v for k, v in keys.items() if origins[f"{section}.{k}"] != "the defaults"}
            for section, keys in public.items()
        }
        public = {section: keys for section, keys in public.items() if keys}
    if as_json:
        write_json({"hash": settings.settings_hash(), "settings": public})
        return
    typer.echo(f"# settings {settings.settings_hash()}")
    for section, keys in public.items():
        typer.echo(f"\n[{section}]")
        for name, value in keys.items():
            origin = origins[f"{section}.{name}"]
            comment = "" if origin == "the defaults" else f"  # {origin}"
            typer.echo(f"{name} = {_toml(value)}{comment}")


def _toml(value: object) -> str:
    if isinstance(value, dict):
        inner = ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items())
        return "{" + inner + "}"
    return json.dumps(value, ensure_ascii=False)


@app.command("check")
def config_check(config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Check the settings; every mistake is named with its place. Exit code 1 if there is one."""
    path = config_path(config)
    settings, _ = load_with_origins(path, os.environ, overrides or [])
    typer.echo(f"{path or 'the defaults'}: fine (settings {settings.settings_hash()})")
