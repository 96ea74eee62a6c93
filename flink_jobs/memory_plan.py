"""What entities take in memory and in savepoints, with the components that settings name."""

from __future__ import annotations

from typing import TypedDict

from flink_jobs.model_files import load_models
from flink_jobs.settings import Settings
from state.table import Table, memory_bytes


class KindPlan(TypedDict):
    """What one kind takes.

    Attributes:
        bytes_by_part: of an entity in memory: its row, the encoder's memory, each component, and
            the index (hash, time of last sight, deadline of the silence, hash table).
        bytes_per_entity: their sum.
        stored_bytes_per_entity: in a savepoint.
        rows: that the tables of all shards have room for, for they grow by doubling.
        memory_bytes: of these rows.
    """

    bytes_by_part: dict[str, int]
    bytes_per_entity: int
    stored_bytes_per_entity: int
    rows: int
    memory_bytes: int


def memory_plan(settings: Settings, entities: int) -> dict[str, KindPlan]:
    """Return by kind what `entities` of it take, spread evenly over the shards.

    The models are put together as a worker does it, so what would fail there fails here.

    Raises:
        EddyError: the model's folder or the prior cannot be read, or does not serve a component.
    """
    state, shards = settings.state, settings.flink.shards
    plans = {}
    for model in load_models(settings):
        layout = model.components.layout
        rows, by_part = memory_bytes(
            -(-entities // shards), state.initial_entities, state.max_entities, layout
        )
        plans[model.kind] = KindPlan(
            bytes_by_part=by_part,
            bytes_per_entity=sum(by_part.values()),
            stored_bytes_per_entity=Table.empty(1, 1, 1, layout).stored_bytes,
            rows=shards * rows,
            memory_bytes=shards * rows * sum(by_part.values()),
        )
    return plans
