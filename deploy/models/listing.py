"""What is known of each version: who it is, what it can do, and how it came there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.models.folder import DECODER, read_card
from deploy.models.life import roles, same_encoder
from deploy.models.server import READY
from flink_jobs.errors import EddyError
from flink_jobs.rollout import Change, Rollout, versions_in

SHIPPED = 1
# What a card calls the likelihoods, the most telling first: later events of unknown entities.
JUDGED = ("held_out_entities_later", "held_out_entities", "fresh_world")


@dataclass(frozen=True, slots=True)
class Row:
    """One version.

    Attributes:
        version: number of its folder.
        weights: name of its weights; "" where its card cannot be read.
        roles: in charge, shadow, previous, base.
        published: RFC 3339; "" where no publication is noted, as for the version that ships.
        trained_on: the card's words.
        nats: mean negative log likelihood of all heads on held-out events, from the card.
        decoder_bytes: size of the decoder; None where there is none.
        same_encoder: as the version in charge; None where one cannot be read.
        served: by Triton; None where it does not answer.
        fault: why the card or the encoder cannot be read; "" for none.
    """

    version: int
    weights: str
    roles: tuple[str, ...]
    published: str
    trained_on: str
    nats: float | None
    decoder_bytes: int | None
    same_encoder: bool | None
    served: bool | None
    fault: str = ""


def list_versions(root: Path, now: Rollout, served: Mapping[int, str] | None) -> list[Row]:
    """Look at each version's folder.

    Args:
        root: the model's folder.
        now: the rollout.
        served: what Triton says; None where it does not answer.
    """
    # A guard or another command may retire one while we look.
    return [
        _row(root, number, now, served)
        for number in versions_in(root)
        if (root / str(number)).is_dir()
    ]


def _row(root: Path, number: int, now: Rollout, served: Mapping[int, str] | None) -> Row:
    folder = root / str(number)
    card: Mapping[str, Any] = {}
    fault = ""
    try:
        card = read_card(folder)
    except EddyError as error:
        fault = str(error)
    same: bool | None = None
    try:
        same = same_encoder(folder, root / str(now.in_charge))
    except (OSError, ValueError) as error:
        fault = fault or f"encoder.npz: {error}"
    decoder = folder / DECODER
    published = [c.at for c in now.history if c.action == "publish" and c.version == number]
    return Row(
        version=number,
        weights=str(card.get("model_version", "")),
        roles=tuple(roles(now, number)),
        published=published[-1] if published else "",
        trained_on=_trained_on(card),
        nats=_nats(card),
        decoder_bytes=decoder.stat().st_size if decoder.is_file() else None,
        same_encoder=same,
        served=None if served is None else served.get(number) == READY,
        fault=fault,
    )


def _trained_on(card: Mapping[str, Any]) -> str:
    data = card.get("data")
    if not isinstance(data, Mapping) or not data.get("source"):
        return ""
    source = str(data["source"]).split(";")[0]
    if not data.get("last"):
        return source
    # `eddy train --from`: a path says less than its name and the days.
    return f"{Path(source).name} {str(data.get('first', ''))[:10]} to {str(data['last'])[:10]}"


def _nats(card: Mapping[str, Any]) -> float | None:
    """Return the mean over events of all heads together, None where the card says none."""
    judged = card.get("judged")
    for name in JUDGED:
        rows = judged.get(name) if isinstance(judged, Mapping) else judged
        if not isinstance(rows, list) or not rows:
            continue
        try:
            events = sum(row["events"] for row in rows)
            nats = [row["gap"] + row["mark"] + (row.get("amount") or 0.0) for row in rows]
            return float(sum(r["events"] * n for r, n in zip(rows, nats, strict=True)) / events)
        except (KeyError, TypeError, ZeroDivisionError):
            continue
    return None


def in_words(change: Change) -> str:
    """Tell a change in a sentence.

    >>> in_words(Change(3, "", "rollback", 1, "guard", "12 of 200 answers were not finite"))
    'the guard went back to version 1: 12 of 200 answers were not finite'
    >>> in_words(Change(2, "", "shadow", 0))
    'no version is in shadow any more'
    """
    told = {
        "publish": f"version {change.version} was published",
        "shadow": f"version {change.version} went into shadow",
        "promote": f"version {change.version} was put in charge",
        "rollback": f"version {change.version} was put in charge again",
    }.get(change.action, f"{change.action} of version {change.version}")
    if change.action == "shadow" and not change.version:
        told = "no version is in shadow any more"
    if change.by == "guard" and change.action == "rollback":
        told = f"the guard went back to version {change.version}"
    elif change.by != "user":
        told = f"{told} by the {change.by}"
    return f"{told}: {change.reason}" if change.reason else told
