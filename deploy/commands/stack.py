"""`eddy up`, `eddy down`, `eddy status`: the local stack."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from deploy.commands.options import (
    DEFAULT_ROOT,
    AsJson,
    ConfigFile,
    Overrides,
    Root,
    configured_settings,
    write_json,
)
from deploy.stack.options import ServiceStatus, StackOptions, TritonTls
from flink_jobs.settings import Settings

if TYPE_CHECKING:
    from deploy.stack.misfits import PriorMisfit

NOT_UP = 3
COLOURS = {
    "up": "green",
    "external": "green",
    "starting": "yellow",
    "failing": "red",
    "fits": "green",
    "misfit": "red",
}

Kafka = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Your own Kafka; secured as [source.kafka] says."),
]
Triton = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Your own Triton (gRPC); secured as [triton] says."),
]
Flink = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Your own Flink (REST); https://HOST:PORT for TLS."),
]


def stack_options(
    settings: Settings,
    root: Path,
    kafka: str | None = None,
    triton: str | None = None,
    flink: str | None = None,
) -> StackOptions:
    """Say what `up` starts: all that is not the user's own, with room for the job.

    Raises:
        EddyError: The security of the user's Kafka is of a kind that the command line cannot do.
        StackError: An address without a port.
    """
    from deploy.kafka_properties import to_librdkafka

    tls = settings.triton
    options = StackOptions(
        root=root,
        kafka=kafka,
        triton=triton,
        flink=flink,
        model_name=settings.triton.model_name,
        task_slots=settings.flink.parallelism,
    )
    if settings.triton.model_repository:
        options = replace(options, triton_repo=Path(settings.triton.model_repository))
    if kafka is not None:
        options = replace(options, kafka_config=to_librdkafka(settings.source.kafka))
    if triton is not None and tls.tls:
        given = TritonTls(
            True,
            tls.tls_root_certificates or None,
            tls.tls_private_key or None,
            tls.tls_certificate_chain or None,
        )
        options = replace(options, triton_tls=given)
    if settings.triton.model_repository:
        options = replace(options, triton_repo=Path(settings.triton.model_repository))
    return options


def up(
    kafka: Kafka = None,
    triton: Triton = None,
    flink: Flink = None,
    start_timeout_s: Annotated[
        float, typer.Option(min=1.0, help="Limit for each server to be ready.")
    ] = 120.0,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Start Kafka, Triton and Flink on this machine and wait until they are ready.

    A port that is taken is replaced by a free one; the other commands find the servers by --root.
    What runs is left alone, so that a second `up` changes nothing.
    """
    from deploy.stack import stack

    console = Console(stderr=True, highlight=False)
    settings = configured_settings(config, overrides)
    options = replace(
        stack_options(settings, root, kafka, triton, flink), start_timeout_s=start_timeout_s
    )
    with console.status("starting ..."):
        state = stack.up(options, console.print)
    addresses = {
        "kafka": state.bootstrap_servers,
        "triton": state.triton_endpoint,
        "flink": state.flink_url,
        "logs": str(state.logs),
    }
    if as_json:
        write_json(addresses)
        return
    for name, address in addresses.items():
        typer.echo(f"{name:<8}{address}")


def down(
    purge: Annotated[
        bool, typer.Option("--purge", help="Remove Kafka's data, checkpoints and logs too.")
    ] = False,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Stop the servers and remove what they hold: processes, shared memory, locks.

    Works after a crash as well. Kafka's data, checkpoints and logs stay, unless --purge.
    """
    from deploy.stack import stack

    stack.down(root, purge=purge)
    if purge:
        shutil.rmtree(root / "jobs", ignore_errors=True)  # the settings that `eddy run` handed over
    data = "its data is removed" if purge else "its data stays (--purge removes it)"
    typer.echo(f"all servers of {root} are stopped; {data}", err=True)


def status(as_json: AsJson = False, root: Root = DEFAULT_ROOT) -> None:
    """Ask each server how it is, and the job whether its prior fits today's stream.

    Exit code 3 unless all servers are up.
    """
    from deploy.stack import misfits, record, stack

    services = stack.status(root)
    state = record.load(root)
    priors = misfits.prior_misfits(state) if state is not None else []
    if as_json:
        write_json([*map(_row, services), *map(_prior_row, priors)])
    else:
        Console(highlight=False).print(_table(services, priors))
    if any(service.condition not in ("up", "external") for service in services):
        raise typer.Exit(NOT_UP)


def _row(service: ServiceStatus) -> dict[str, object]:
    return {
        "service": service.name,
        "condition": service.condition,
        "address": service.address,
        "pid": service.pid,
        "uptime_s": None if service.uptime_s is None else round(service.uptime_s, 1),
        "detail": service.detail,
        "log": None if service.log is None else str(service.log),
    }


def _prior_row(prior: PriorMisfit) -> dict[str, object]:
    return {
        "service": f"prior of {prior.kind}",
        "condition": prior.condition,
        "address": prior.job,
        "pid": None,
        "uptime_s": None,
        "detail": prior.detail,
        "log": None,
        "misfit_value": prior.value,
        "misfit_gap": prior.gap,
    }


def _table(services: list[ServiceStatus], priors: list[PriorMisfit]) -> Table:
    table = Table("service", "condition", box=None)
    table.add_column("address", no_wrap=True)  # to be copied whole
    for name in ("pid", "up for", "detail"):
        table.add_column(name)
    for service in services:
        colour = COLOURS.get(service.condition, "dim")
        table.add_row(
            service.name,
            f"[{colour}]{service.condition}[/]",
            service.address,
            "" if service.pid is None else str(service.pid),
            "" if service.uptime_s is None else _duration(service.uptime_s),
            service.detail,
        )
    for prior in priors:
        colour = COLOURS.get(prior.condition, "dim")
        name = f"prior of {prior.kind}"
        table.add_row(name, f"[{colour}]{prior.condition}[/]", prior.job, "", "", prior.detail)
    return table


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m" if hours else f"{minutes}m {rest:02}s"
