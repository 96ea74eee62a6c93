"""The card of a model that was trained on a user's stream: card.json, and the page made of it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.training.calibrate import KindCalibration
from deploy.training.sequences import Learnable, Split
from flink_jobs.alerts import rfc3339
from flink_jobs.pit import kolmogorov
from flink_jobs.settings import Settings
from models.tpp import spec
from models.tpp.plan import KindSequences
from state.events import EventBatch

if TYPE_CHECKING:
    from deploy.fit.source import ReadEvents
    from deploy.training.run import TrainOptions

LIMITS = (
    "It was judged on the last part of the stream it learnt from, not on another stream.",
    (
        "It reads times and marks, no partners; of earlier amounts it knows what the entity's own "
        "level makes of them."
    ),
    "Its components are at least 2% of a gap wide: it cannot call a clockwork punctual.",
    "Far tails (beyond exp(-7)) rest on the mixture's form: the calibration is in between.",
)


def origin(
    source: str, learnt: Mapping[str, Any], events: EventBatch, split: Split
) -> dict[str, str]:
    """Say in a prior what its tails are of; the rest of its origin is that of its moments."""
    return {
        "tails": f"{source}, {rfc3339(split.valid_ms)} to {rfc3339(int(events.time_ms[-1]))}",
        "model": str(learnt["model_version"]),
    }


def build(
    *,
    settings: Settings,
    options: TrainOptions,
    read: ReadEvents,
    kinds: Sequence[KindSequences],
    split: Split,
    chosen: Learnable,
    learnt: Mapping[str, Any],
    calibrated: Sequence[KindCalibration],
    cost: Mapping[int, float],
    seconds: float,
    files: Mapping[str, str],
) -> dict[str, Any]:
    """Return the card as card.json holds it.

    Args:
        settings: of the job.
        options: of the training.
        read: what the stream held.
        kinds: all of its sequences.
        split: in time.
        chosen: what was learnt from.
        learnt: what the training told.
        calibrated: by kind.
        cost: microseconds a row, by rows of a request.
        seconds: of the whole command, this run of it.
        files: SHA-256 by name.
    """
    events = read.events
    judged = {one["kind"]: one for one in learnt["judged"]}
    return {
        "model_version": learnt["model_version"],
        "feature_version": spec.FEATURE_VERSION,
        "command": command(options),
        "seed": options.seed,
        "data": {
            "source": options.source,
            "first": rfc3339(int(events.time_ms[0])),
            "last": rfc3339(int(events.time_ms[-1])),
            "events": len(events),
            "messages": read.messages,
            "rejected": dict(read.rejected),
            "kinds": {
                one.kind: {"events": len(one.time_ms), "entities": len(one.starts) - 1}
                for one in kinds
            },
            "marks": list(settings.event.marks),
            "settings": settings.settings_hash(),
        },
        "split": {
            "learnt_until": rfc3339(split.valid_ms),
            "validated_until": rfc3339(split.test_ms),
            "tested_until": rfc3339(split.end_ms),
        },
        "moments": str(options.prior) if options.prior else "the prior in charge",
        "encoder": f"kept from {options.keep_encoder}" if options.keep_encoder else "learnt",
        "mark_head": "constant" if chosen.mark_log_share else "learnt",
        "notes": list(chosen.notes),
        "training": {
            "steps": learnt["steps"],
            "best_step": learnt["best_step"],
            "seconds": learnt["seconds"],
            "hardware": learnt["hardware"],
            "parameters": learnt["parameters"],
            "looks": learnt["looks"],
        },
        "judged": [_judged(judged[k]) for k in judged],
        "calibration": {
            one.kind: {
                "pit_ks": _rounded(kolmogorov(one.pit)),
                "pit_events": int(one.pit.sum()),
                "on_the_whole_stream": list(one.whole),
                "without_the_model_fitted": list(one.degraded),
                "tails": {
                    name: {"offset": t.tail.offset, "slope": t.tail.slope, "events": t.events}
                    for name, t in one.tails.items()
                },
            }
            for one in calibrated
        },
        "cost": {
            "command_seconds": round(seconds, 1),
            "training_seconds": learnt["seconds"],
            "decoder_us_per_row": {str(rows): round(us, 3) for rows, us in cost.items()},
            "measured": "onnxruntime in process, one thread",
        },
        "limits": list(LIMITS),
        "files": dict(files),
        "versions": {**learnt["versions"], "machine": platform.machine()},
    }


def _judged(one: Mapping[str, Any]) -> dict[str, Any]:
    """Return a kind's likelihoods, and the distance of its PIT from the uniform one."""
    kept = {key: value for key, value in one.items() if key not in ("pit", "reliability")}
    return {**kept, "pit_ks": _rounded(kolmogorov(np.array(one["pit"], np.float64)))}


def _rounded(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None


def command(options: TrainOptions) -> str:
    """Return the command that trains the same model."""
    words = [
        f"eddy train --from {options.source} --seed {options.seed} --steps {options.steps}",
        f"--keep-encoder {options.keep_encoder}" if options.keep_encoder else "",
        f"--prior {options.prior}" if options.prior else "",
        "--compress" if options.compress else "",
        f"--out {options.out}",
    ]
    return " ".join(word for word in words if word)


def render(card: Mapping[str, Any]) -> str:
    """Return the card as Markdown."""
    data, training, split = card["data"], card["training"], card["split"]
    device, precision = training["hardware"]["device"], training["hardware"]["precision"]
    kinds = ", ".join(
        f"{one['events']:,} of {one['entities']:,} {kind} entities"
        for kind, one in data["kinds"].items()
    )
    lines = [
        f"# Intensity model {card['model_version']}",
        "",
        "Predicts, after each event of an entity, a log-normal mixture of the time to its next",
        "event and the probabilities of that event's mark, and once the event is there a mixture",
        "for its amount given gap and mark. One model serves all kinds of entities.",
        f"Feature version {card['feature_version']} (`models/tpp/spec.py`).",
        "",
        f"    {card['command']}",
        "",
        f"Data: {data['source']}, {data['first']} to {data['last']};",
        f"{data['events']:,} events: {kinds}.",
        f"Learnt until {split['learnt_until']}, validated until {split['validated_until']},",
        f"tested until {split['tested_until']}.",
        f"{training['steps']:,} steps in {training['seconds']} s ({device}, {precision});",
        "the weights are those of step",
        f"{training['best_step']:,}, the best on the validation.",
        f"Moments and weekly profiles: {card['moments']}. Encoder: {card['encoder']}.",
        f"Mark head: {card['mark_head']}.",
        *(f"- {note}" for note in card["notes"]),
        "",
        "## Likelihoods of the last part",
        "Negative log likelihood, nats per event (gap: density of log gap; lower is better),",
        "beside a log-normal renewal process and a Poisson process with the entity's own running",
        "moments, the entity's own running mark shares, and the normal distribution that",
        "its own level promises (amount: density of the standardised innovation). Tail: how often",
        "the survival probability of a gap was below exp(-4), exp(-7), exp(-10), over what that",
        "promises (1 is calibrated). PIT: Kolmogorov distance of the predicted gaps' PIT from the",
        "uniform one.",
        "",
        "| kind | events | gap | renewal | Poisson | mark | share | amount | level | tail | PIT |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in card["judged"]:
        tail = ", ".join(f"{value:.2f}" for value in row["tail_ratio"])
        lines.append(
            f"| {row['kind']} | {row['events']:,} | {row['gap']:.4f} | {row['gap_renewal']:.4f} | "
            f"{row['gap_poisson']:.4f} | {row['mark']:.4f} | {row['mark_frequency']:.4f} | "
            f"{nats(row['amount'])} | {nats(row['amount_level'])} | {tail} | {row['pit_ks']:.3f} |"
        )
    cost = card["cost"]
    rows = ", ".join(f"{us:.2f} at {n}" for n, us in cost["decoder_us_per_row"].items())
    lines += [
        "",
        "## Cost",
        f"Training {cost['training_seconds']} s, the whole command {cost['command_seconds']} s.",
        f"Decoder, microseconds a row by rows of a request ({cost['measured']}): {rows}.",
        *_compression(card.get("compression")),
        "",
        "## Calibration",
        *_calibration(card["calibration"]),
        "",
        "## Limits",
        *(f"- {limit}" for limit in card["limits"]),
        "",
        "## Files",
        *(f"- `{name}` sha256 {digest}" for name, digest in card["files"].items()),
        "",
    ]
    return "\n".join(lines)


def nats(value: float | None) -> str:
    """Write a likelihood, a dash where there is none."""
    return "–" if value is None else f"{value:.4f}"


def _calibration(kinds: Mapping[str, Any]) -> list[str]:
    lines = []
    for kind, one in kinds.items():
        told = f"- {kind}: {len(one['tails'])} detectors on what came after the training"
        if short := ", ".join(one["on_the_whole_stream"]):
            told += f"; on the whole stream, for lack of events: {short}"
        if one["without_the_model_fitted"]:
            told += (
                f"; without the model, fitted anew: {', '.join(one['without_the_model_fitted'])}"
            )
        lines.append(f"{told}.")
    return lines


def _compression(table: Mapping[str, Any] | None) -> list[str]:
    """Return the section on compression; the table is that of `deploy.training.compress`."""
    if table is None:
        return []
    lines = [
        "",
        "## Compression",
        table["rule"],
        "",
        "| decoder | nats per event | over the base | bytes | rows/s at 512 | kept |",
        "|---|---|---|---|---|---|",
    ]
    for row in table["variants"]:
        rate = f"{row['rows_per_s']:,.0f}" if row["rows_per_s"] else "–"
        size = f"{row['bytes']:,}" if row["bytes"] else "–"
        lines.append(
            f"| {row['name']} | {row['test_nats']:.4f} | {row['loss_nats']:+.4f} | {size} | "
            f"{rate} | {'**yes**' if row['kept'] else ''} |"
        )
    return lines
