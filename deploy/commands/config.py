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
    """Print the settings and where each comes from.

    Passwords are masked.
    """
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
    if not public:
        typer.echo("# all are the defaults: no file, variable or --set changes one")
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
def config_check(
    config: ConfigFile = None,
    overrides: Overrides = None,
    entities: Annotated[
        int, typer.Option(min=1, help="Entities of each kind that memory is reckoned for.")
    ] = 100_000,
    as_json: AsJson = False,
) -> None:
    """Check the settings and name each mistake.

    Every mistake is told with its place. Exit code 1 if there is one.

    The model's folder and the prior are read, and all is put together as the job does it.

    Prints what an entity of each kind takes, by settings, and the memory for --entities of them.
    """
    from flink_jobs.memory_plan import memory_plan  # numba: no other command should wait for it

    path = config_path(config)
    settings, _ = load_with_origins(path, os.environ, overrides or [])
    layout = memory_plan(settings, entities)
    if as_json:
        write_json({"hash": settings.settings_hash(), "entities": entities, "kinds": layout})
        return
    typer.echo(f"{path or 'the defaults'}: fine (settings {settings.settings_hash()})")
    for kind, plan in layout.items():
        parts = ", ".join(f"{name} {size}" for name, size in plan["bytes_by_part"].items())
        typer.echo(
            f"{kind}: {plan['bytes_per_entity']} bytes per entity ({parts}); "
            f"{plan['memory_bytes'] / 2**20:,.0f} MiB for {entities:,} ({plan['rows']:,} rows)"
        )
    total = sum(plan["memory_bytes"] for plan in layout.values())
    typer.echo(f"all kinds: {total / 2**20:,.0f} MiB in {settings.flink.shards} shards")
