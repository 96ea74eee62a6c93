"""Hand the main job to a running stack."""

from __future__ import annotations

from pathlib import Path

from deploy.stack import jobs, kafka
from deploy.stack.record import StackState
from flink_jobs.errors import EddyError
from flink_jobs.intensity import TritonClient
from flink_jobs.intensity_protocol import IncompatibleModelError, ModelUnavailableError
from flink_jobs.model_files import load_models
from flink_jobs.settings import Settings

MODULE = "flink_jobs.detect"


def on_stack(settings: Settings, state: StackState) -> Settings:
    """Return `settings` with the addresses of `state`'s servers, where these are its own."""
    found = []
    if not state.options.external("kafka"):
        found.append(f"source.bootstrap_servers={state.bootstrap_servers}")
    if not state.options.external("triton"):
        found.append(f"triton.endpoint={state.triton_endpoint}")
    return settings.override(*found)


def topics(settings: Settings) -> dict[str, int]:
    """Name the topics of the job, with the partitions that new ones get."""
    names = (settings.source.topic, *settings.sink.topics)
    return dict.fromkeys(names, settings.flink.parallelism)


def submit(settings: Settings, state: StackState, savepoint_path: str | None = None) -> str:
    """Check the model, create the topics that are missing, and start the job.

    Args:
        settings: of the job, with the addresses of its servers.
        state: the stack whose Flink runs it.
        savepoint_path: savepoint or checkpoint to begin from.

    Returns:
        Flink's id of the job.

    Raises:
        EddyError: the model's files do not fit, or Triton serves a model that does not.
        StackError: Flink did not take the job.
    """
    load_models(settings)
    if settings.triton.enabled:
        _check_served_model(settings)
    kafka.create_topics(state, topics(settings))
    folder = state.root / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    path = Path(folder / f"{settings.job.name}-{settings.settings_hash()}.json")
    path.touch(mode=0o600)  # it may hold Kafka's password
    path.write_text(settings.to_json())
    return jobs.submit_job(
        state, MODULE, [str(path)], [state.connector_jar], savepoint_path=savepoint_path
    )


def _check_served_model(settings: Settings) -> None:
    """Refuse a model of another form; a server that is away is no reason not to start."""
    client = TritonClient(settings.triton)
    try:
        client.check_model()
    except ModelUnavailableError:
        pass
    except IncompatibleModelError as error:
        raise EddyError(str(error)) from error
    finally:
        client.close()
