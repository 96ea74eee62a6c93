"""`eddy simulate` and `eddy alerts`: what goes into Kafka and what comes out."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from deploy.commands.options import (
    DEFAULT_ROOT,
    ConfigFile,
    Overrides,
    Root,
    read_settings,
    stop_event,
)
from deploy.counted import counted
from flink_jobs.errors import EddyError
from flink_jobs.settings import Settings

if TYPE_CHECKING:
    from models.simulation.config import SimulationConfig


def simulate(
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write JSON lines here, not to Kafka.")
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the true anomalies here.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 1,
    payments: Annotated[int, typer.Option(help="Payments to expect.")] = 600_000,
    days: Annotated[float, typer.Option(help="Length in event time.")] = 21.0,
    start: Annotated[str, typer.Option(help="First moment, RFC 3339.")] = "2026-01-05T00:00:00Z",
    users: Annotated[int, typer.Option(help="Number of users.")] = 3_000,
    merchants: Annotated[int, typer.Option(help="Number of merchants.")] = 300,
    anomalies: Annotated[int, typer.Option(help="Number of anomalies, of all six kinds.")] = 60,
    rate: Annotated[
        float | None, typer.Option(help="Payments per second of wall time; else as fast as it goes")
    ] = None,
    speed_up: Annotated[
        float | None, typer.Option(help="Event time over wall time, in place of --rate.")
    ] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Send simulated payments with known anomalies.

    To Kafka, or with --out to a file.

    The same options give the same bytes. The job never sees the truth.
    """
    from deploy import simulate as simulator
    from models.simulation.config import AnomalyCounts, SimulationConfig

    if rate is not None and speed_up is not None:
        raise typer.BadParameter("give --rate or --speed-up, not both")
    try:
        world = SimulationConfig(
            seed=seed,
            users=users,
            merchants=merchants,
            start=_instant(start),
            duration_s=round(days * 86_400),
            payments=payments,
            anomalies=AnomalyCounts.balanced(anomalies),
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if out is not None:
        if rate is not None or speed_up is not None:
            raise typer.BadParameter("--rate and --speed-up pace Kafka; a file is written at once")
        written = simulator.write_file(world, out, truth)
        typer.echo(f"{counted(written, 'payment')} in {out}", err=True)
        return
    settings = read_settings(config, overrides, root)
    _create_topic(settings, root)
    _send(world, settings, truth, rate, speed_up)


def _create_topic(settings: Settings, root: Path) -> None:
    """Create the topic of payments where a stack runs and no job has created it yet."""
    from deploy.stack import record

    state = record.load(root)
    if state is not None and state.bootstrap_servers == settings.source.bootstrap_servers:
        from deploy.stack import kafka
        from deploy.submit import topics

        kafka.create_topics(state, {settings.source.topic: topics(settings)[settings.source.topic]})


def _send(
    world: SimulationConfig,
    settings: Settings,
    truth: Path | None,
    rate: float | None,
    speed_up: float | None,
) -> None:
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from deploy import simulate as simulator
    from deploy.kafka_properties import to_librdkafka

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("payments")

        def show(sent: int, time_ms: int) -> None:
            moment = datetime.fromtimestamp(time_ms / 1_000, UTC)
            bar.update(task, description=f"{sent:,} payments, event time {moment:%F %T}")

        try:
            sent = simulator.produce(
                world,
                settings.source.bootstrap_servers,
                settings.source.topic,
                rate_per_s=rate,
                speed_up=speed_up,
                truth_path=truth,
                # Errors only: while the broker starts, librdkafka warns of each retry.
                security={"log_level": "3", **to_librdkafka(settings.source.kafka)},
                progress=show,
                stop=stop_event(),
            )
        except simulator.DeliveryError as error:
            raise EddyError(str(error)) from None
    typer.echo(f"{counted(sent, 'payment')} to {settings.source.topic}", err=True)


def _instant(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"--start: expected RFC 3339, found {text}") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def alerts(
    beginning: Annotated[
        bool, typer.Option("--all", help="Begin with the oldest alert, not with the next.")
    ] = False,
    to_end: Annotated[
        bool, typer.Option("--once", help="End after the alerts that are there.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="End after so many.")] = None,
    entity: Annotated[
        str | None, typer.Option(metavar="KIND/ID", help="Only those of one entity.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One CloudEvent a line.")] = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Show alerts as they come, each with its reasons.

    A line has event time, entity, score, detector and the strongest reasons.
    """
    from deploy import alerts as reader
    from deploy.kafka_properties import to_librdkafka

    settings = read_settings(config, overrides, root)
    properties = settings.sink.kafka or settings.source.kafka
    topic = reader.AlertTopic(
        settings.source.bootstrap_servers, settings.sink.alerts_topic, to_librdkafka(properties)
    )
    console = Console(soft_wrap=True, highlight=False)
    shown = 0
    for alert in reader.follow(topic, beginning or to_end, to_end, stop_event()):
        if entity is not None and alert.get("subject") != entity:
            continue
        if as_json:
            typer.echo(json.dumps(alert, ensure_ascii=False))
        else:
            console.print(reader.to_text(alert))
        shown += 1
        if shown == limit:
            break
