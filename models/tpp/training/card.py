"""The model card as a page to read, made from card.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SETS = {
    "held_out_entities": "Entities not trained on, the time trained on",
    "held_out_entities_later": "Entities not trained on, the time after",
    "fresh_world": "Every entity of a world of another seed",
}


def render(card: Mapping[str, Any]) -> str:
    """Return the card as Markdown."""
    training, data = card["training"], card["data"]
    lines = [
        f"# Intensity model {card['model_version']}",
        "",
        "Predicts, after each event of an entity, a log-normal mixture of the time to its next",
        "event and the probabilities of that event's mark, and once the event is there a mixture",
        "for its amount given gap and mark. One model serves users, merchants and devices.",
        f"Feature version {card['feature_version']} (`models/tpp/spec.py`).",
        "",
        f"    {card['command']}",
        "",
        "Trained on simulated payments without anomalies:",
        f"{data['source']};",
        f"seeds {', '.join(map(str, data['world_seeds']))}. {training['steps']} steps in",
        f"{training['seconds']} s on one core; the weights are those of step",
        f"{training['best_step']}, chosen on entities that were not trained on.",
        "",
        "## Likelihoods",
        "Negative log likelihood, nats per event (gap: density of log gap; lower is better),",
        "beside a log-normal renewal process and a Poisson process with the entity's own running",
        "moments, the entity's own running mark shares, and the normal distribution that",
        "its own level promises (amount: density of the standardised innovation). Tail: how often",
        "the survival probability of a gap was below exp(-4), exp(-7), exp(-10), over what that",
        "promises (1 is calibrated). Prior and weekly profile are those of the time trained on.",
    ]
    for key, title in _SETS.items():
        lines += [
            "",
            f"### {title}",
            "| kind | events | gap | renewal | Poisson | mark | share | amount | level | tail |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in card["judged"][key]:
            tail = ", ".join(f"{value:.2f}" for value in row["tail_ratio"])
            lines.append(
                f"| {row['kind']} | {row['events']:,} | {row['gap']:.4f} | "
                f"{row['gap_renewal']:.4f} | {row['gap_poisson']:.4f} | {row['mark']:.4f} | "
                f"{row['mark_frequency']:.4f} | {row['amount']:.4f} | {row['amount_level']:.4f} | "
                f"{tail} |"
            )
    lines += [
        "",
        "## Limits",
        "- It has seen simulated traffic only. Real traffic needs `eddy train` on its own events.",
        "- A held-out merchant's payments are also in the sequences of users that were trained on,",
        "  and the other way round: only the world of another seed is wholly new.",
        "- Marks: for users and devices it is no better than the entity's own frequencies.",
        "- It reads times and marks, no partners; of earlier amounts it knows what the entity's",
        "  own level makes of them.",
        "- Its components are at least 2% of a gap wide: it cannot call a clockwork punctual.",
        "- Far tails (beyond exp(-7)) rest on the mixture's form: calibrate before alerting.",
        "",
        "## Files",
        *(f"- `{name}` sha256 {digest}" for name, digest in card["files"].items()),
        "",
    ]
    return "\n".join(lines)
