"""The report of a training: one HTML page that needs nothing beside it, and its figures as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from deploy.page import figure, table, write_page
from deploy.training.calibrate import KindCalibration
from deploy.training.card import nats
from deploy.training.figures import figures

EXPLAINED = {
    "Likelihood while learning": "Negative log likelihood on the validation part, which is later "
    "than what was learnt from. The dashed line is the step whose weights were kept.",
    "PIT: where gaps fell in what was predicted": "On the last part of the stream. Flat is "
    "calibrated: a hump means predictions too wide, a bowl too narrow, a slope too long or too "
    "short. Within the grey band a bar is chance.",
    "Reliability of the tails": "How often a gap was longer than the model thought possible with "
    "probability exp(-t), over exp(-t). On the line the tail is right; below it long gaps are "
    "rarer than said, and silence alerts come late, not falsely. Shaded: one standard error.",
}
CALIBRATION = (
    "Points: how often, per scored event, an entity's week reaches a surprise. Line: what the job "
    "takes for it. Points far to the right of the line are anomalies in this traffic."
)


def write_report(
    card: Mapping[str, Any],
    learnt: Mapping[str, Any],
    calibrated: Sequence[KindCalibration],
    path: Path,
) -> list[Path]:
    """Write the page, whole or not at all, and its first three figures as PNG beside it.

    Args:
        card: as card.json has it.
        learnt: what the training told.
        calibrated: by kind.
        path: of the page; its folder is created.

    Returns:
        The PNG files.
    """
    drawn = figures(learnt, calibrated)
    body = [_head(card), _likelihoods(card), _compression(card.get("compression"))]
    for title, data in drawn.items():
        body += [f"<h2>{escape(title)}</h2>", figure(data, EXPLAINED.get(title, CALIBRATION))]
    body.append(_rest(card))
    write_page(path, f"Intensity model {card['model_version']}", body)
    pictures = []
    for name, title in zip(("curves", "pit", "reliability"), EXPLAINED, strict=True):
        picture = path.with_name(f"{path.stem}-{name}.png")
        picture.write_bytes(drawn[title])
        pictures.append(picture)
    return pictures


def _head(card: Mapping[str, Any]) -> str:
    data, split, training = card["data"], card["split"], card["training"]
    kinds = "; ".join(
        f"{kind}: {one['events']:,} events of {one['entities']:,} entities"
        for kind, one in data["kinds"].items()
    )
    rows = [
        ("command", card["command"]),
        ("stream", f"{data['first']} to {data['last']}, {data['events']:,} events; {kinds}"),
        ("learnt until", split["learnt_until"]),
        ("validated until", split["validated_until"]),
        ("training",
         (f"{training['steps']:,} steps in {training['seconds']} s on "
         f"{training['hardware']['device']} ({training['hardware']['precision']}), kept step "
         f"{training['best_step']:,}")),
        ("moments, encoder, mark head",
         f"{card['moments']}; {card['encoder']}; {card['mark_head']}"),
    ]  # fmt: skip
    notes = "".join(f"<li>{escape(note)}</li>" for note in card["notes"])
    return f"{table(rows)}{f'<ul class=warnings>{notes}</ul>' if notes else ''}"


def _likelihoods(card: Mapping[str, Any]) -> str:
    head = (
        "kind", "events", "gap", "renewal", "Poisson", "mark", "frequencies", "amount", "level",
        "PIT distance", "tail at e⁻⁴, e⁻⁷, e⁻¹⁰",
    )  # fmt: skip
    rows = [
        (
            row["kind"], f"{row['events']:,}", f"{row['gap']:.4f}", f"{row['gap_renewal']:.4f}",
            f"{row['gap_poisson']:.4f}", f"{row['mark']:.4f}", f"{row['mark_frequency']:.4f}",
            nats(row["amount"]), nats(row["amount_level"]),
            f"{row['pit_ks']:.3f}", ", ".join(f"{value:.2f}" for value in row["tail_ratio"]),
        )
        for row in card["judged"]
    ]  # fmt: skip
    return (
        "<h2>Likelihoods of the last part</h2><p class='note'>Negative log likelihood, nats per "
        "event; lower is better. Beside the model: a log-normal renewal and a Poisson process with "
        "each entity's own running moments, its own running mark frequencies, and the normal "
        "distribution that its own level promises of an amount. Tail: found over "
        f"promised, 1 is calibrated.</p>{table(rows, head)}"
    )


def _compression(tried: Mapping[str, Any] | None) -> str:
    if tried is None:
        return ""
    head = ("decoder", "nats per event", "over the base", "bytes", "rows/s at 512", "kept")
    rows = [
        (
            row["name"], f"{row['test_nats']:.4f}", f"{row['loss_nats']:+.4f}",
            f"{row['bytes']:,}" if row["bytes"] else "–",
            f"{row['rows_per_s']:,.0f}" if row["rows_per_s"] else "–",
            "yes" if row["kept"] else "",
        )
        for row in tried["variants"]
    ]  # fmt: skip
    return f"<h2>Compression</h2><p class='note'>{escape(tried['rule'])}</p>{table(rows, head)}"


def _rest(card: Mapping[str, Any]) -> str:
    cost = card["cost"]
    rows = [
        (f"{rows} rows a request", f"{us:.3f} µs a row")
        for rows, us in cost["decoder_us_per_row"].items()
    ]
    limits = "".join(f"<li>{escape(limit)}</li>" for limit in card["limits"])
    files = [(name, digest) for name, digest in card["files"].items()]
    return (
        f"<h2>Cost of the decoder</h2><p class='note'>{escape(cost['measured'])}; training took "
        f"{cost['training_seconds']} s, the whole command {cost['command_seconds']} s.</p>"
        f"{table(rows)}<h2>Limits</h2><ul>{limits}</ul><h2>Files, SHA-256</h2>{table(files)}"
    )
