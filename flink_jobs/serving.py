"""Which versions of the intensity model answer now, as a shard's scorer is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flink_jobs.decide import slot_of
from flink_jobs.intensity_protocol import IntensityClient, NullClient
from flink_jobs.memories import Memory
from models.prior import Prior


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A version of the intensity model that can be asked.

    Attributes:
        version: number of its folder.
        client: asks it.
        weights: name of its weights; "" where the client knows it better.
        memory: what its encoder remembers; None where it reads the memories of the base.
        prior: whose tails calibrate what it predicts; None for those of the base.
    """

    version: int
    client: IntensityClient = field(compare=False)
    weights: str = ""
    memory: Memory | None = None
    prior: Prior | None = field(default=None, compare=False)

    @property
    def slot(self) -> int:
        """Its number in rows and log; 0 for no model."""
        return slot_of(self.version) if self.version else 0

    @property
    def named(self) -> str:
        """Name of its weights; empty while unknown."""
        return self.weights or self.client.model_version


NOBODY = ServedModel(0, NullClient())  # stands in where no version can be loaded


@dataclass(frozen=True, slots=True)
class Serving:
    """The versions in use.

    Attributes:
        in_charge: its predictions decide.
        shadow: is asked as well, and compared.
        known: further versions, whose predictions rows and log may still hold.
        name: of the model.
    """

    in_charge: ServedModel
    shadow: ServedModel | None = None
    known: tuple[ServedModel, ...] = ()
    name: str = "intensity"
    _by_slot: dict[int, ServedModel] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_slot", {model.slot: model for model in self.models})

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """All of them, each once."""
        found = {model.version: model for model in self.known}
        if self.shadow is not None:
            found[self.shadow.version] = self.shadow
        found[self.in_charge.version] = self.in_charge
        return tuple(found[version] for version in sorted(found))

    @property
    def memories(self) -> tuple[Memory, ...]:
        """What further encoders remember, each once, in a fixed order."""
        found = {m.memory.digest: m.memory for m in self.models if m.memory is not None}
        return tuple(found[digest] for digest in sorted(found))

    @property
    def priors(self) -> Mapping[int, Prior]:
        """By slot, the priors whose tails are not the base's."""
        return {m.slot: m.prior for m in self.models if m.prior is not None}

    def label(self, slot: int) -> tuple[str | None, str]:
        """Return (model/version, weights) for an alert.

        Without a prediction (slot 0) the model is None and the weights are those in charge.
        """
        model = self._by_slot.get(slot)
        if model is None or not slot:
            return None, self.in_charge.named
        return f"{self.name}/{model.version}", model.named
