"""The score operator without a cluster: what it makes of a state that another version wrote."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

pytest.importorskip("pyflink")

from flink_jobs import operators
from flink_jobs.rollout import FEWEST_SEEN
from state.events import encode
from tests.flink_jobs.score_cases import split, stream
from tests.flink_jobs.test_model_pool import World, begin_with_one, in_charge_of_two, write_version

EVENTS = 60


class Context:
    """Runtime context, context of a call, and timer service in one, with one shard's state."""

    def __init__(self, state: dict[int, bytes]) -> None:
        self.state = state
        self.gauges: dict[str, Any] = {}

    def get_map_state(self, _: object) -> Any:
        return SimpleNamespace(
            put=self.state.__setitem__, remove=self.state.pop, items=self.state.items
        )

    def get_metrics_group(self) -> Context:
        return self

    def add_group(self, *_: str) -> Context:
        return self

    def gauge(self, name: str, read: Any) -> None:
        self.gauges[name] = read

    def counter(self, _: str) -> Any:
        return SimpleNamespace(inc=lambda _n: None)

    def timer_service(self) -> Context:
        return self

    def register_processing_time_timer(self, at_ms: int) -> None:
        self.at_ms = at_ms

    def get_current_key(self) -> int:
        return 0


def run(
    world: World, state: dict[int, bytes], monkeypatch: pytest.MonkeyPatch, first: int
) -> tuple[Context, list[dict[str, Any]]]:
    """Run an operator from `state` over events from `first` on; return what it said of models."""
    monkeypatch.setattr(operators, "ModelPool", lambda *_: world.pool())
    operator, context = operators.ScoreOperator(world.settings().to_json()), Context(state)
    operator.open(context)
    messages = []
    for batch in list(split(stream(2 * EVENTS, 5), (20,)))[first:]:
        messages += list(operator.process_element((0, encode(batch)), context))
    messages += list(operator.on_timer(1 << 60, context))
    operator.close()
    models = world.settings().sink.models_topic
    told = [orjson.loads(value) for topic, _, value in messages if topic == models]
    return context, [event for event in told if event["type"] != "shadow_report"]


def test_a_restored_state_without_the_memories_lets_the_previous_version_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, state = World(tmp_path), dict[int, bytes]()
    write_version(world.root, 2, encoder_seed=2)
    begin_with_one(world)
    context, told = run(world, state, monkeypatch, 0)
    assert (context.gauges["model_version"](), told) == (1, [])
    in_charge_of_two(world, write=False)
    context, told = run(world, state, monkeypatch, 3)
    assert context.gauges["model_version"]() == 1
    assert [(e["type"], e["version"], e["other"]["version"]) for e in told] == [("waiting", 2, 1)]
    assert context.gauges["entities"]() > 0
    # Where the state is empty every entity's memory is whole.
    context, told = run(world, {}, monkeypatch, 0)
    assert (context.gauges["model_version"](), told) == (2, [])
    assert FEWEST_SEEN > 3 * EVENTS, "so few events decide nothing by themselves"
