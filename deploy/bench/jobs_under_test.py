"""The jobs that are compared, and how each is started."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.stack import kafka
from deploy.stack.jobs import submit_job
from deploy.stack.record import StackState
from deploy.submit import MODULE, on_stack, topics
from flink_jobs.settings import Settings


@dataclass(frozen=True, slots=True)
class System:
    """A job to measure.

    Attributes:
        name: in the report.
        module: that Flink runs.
        counter: last part of the metric that counts what went through the whole job.
        per_payment: how much one payment adds to the counter.
        scores: entity scores that one payment gives.
    """

    name: str
    module: str
    counter: str
    per_payment: int
    scores: int


def system(name: str, settings: Settings) -> System:
    """Describe one of `plan.SYSTEMS`."""
    kinds = len(settings.event.entities)
    if name == "pass_through":
        return System(name, "deploy.bench.pass_through", "eddy.payments", 1, 0)
    module = "deploy.bench.naive" if name == "naive" else MODULE
    return System(name, module, "eddy.decided", kinds, kinds)


def settings_of(
    chosen: System, settings: Settings, state: StackState, topic: str, delivery: str
) -> Settings:
    """Give a system the addresses of the stack, and topics and a name of its own."""
    run = f"bench-{chosen.name}-{delivery.replace('_', '-')}-{topic.rpartition('.')[2]}"
    own = on_stack(settings, state).override(
        f"job.name={run}",
        f"source.topic={topic}",
        f"source.group_id={run}",
        "source.start=earliest",
        "source.stop=never",
        f"sink.alerts_topic={run}.alerts",
        f"sink.dead_letters_topic={run}.dead-letters",
        f"sink.late_topic={run}.late",
        f"sink.delivery={delivery}",
    )
    return own.override("triton.enabled=false") if chosen.name == "no_triton" else own


def submit(chosen: System, settings: Settings, state: StackState, payments_per_message: int) -> str:
    """Start a system and return Flink's id of the job.

    Args:
        chosen: the system.
        settings: from `settings_of`.
        state: the running stack.
        payments_per_message: how rarely the pass-through writes a message.

    Raises:
        StackError: Flink did not take it.
    """
    kafka.create_topics(state, topics(settings))
    folder = state.root / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{settings.job.name}.json"
    path.touch(mode=0o600)
    path.write_text(settings.to_json())
    arguments = [str(path)]
    if chosen.name == "pass_through":
        arguments.append(str(payments_per_message))
    return submit_job(state, chosen.module, arguments, [state.connector_jar])
