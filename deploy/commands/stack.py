"""`eddy up` and `eddy down`: the local stack."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy.commands.options import (
    DEFAULT_ROOT,
    AsJson,
    ConfigFile,
    Overrides,
    Root,
    configured_settings,
    write_json,
)
from deploy.stack.options import StackOptions, TritonTls
from flink_jobs.settings import Settings

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
    """Start Kafka, Triton and Flink on this machine.

    Waits until each of them is ready.
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
    """Stop the servers and remove what they hold.

    No process, shared memory or lock is left. Works after a crash as well. Kafka's data,
    checkpoints and logs stay, unless --purge.
    """
    from deploy.stack import stack

    stack.down(root, purge=purge)
    if purge:
        shutil.rmtree(root / "jobs", ignore_errors=True)  # the settings that `eddy run` handed over
    data = "its data is removed" if purge else "its data stays (--purge removes it)"
    typer.echo(f"all servers of {root} are stopped; {data}", err=True)
