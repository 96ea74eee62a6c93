"""The report of `eddy evaluate sequences`: a table for the terminal, a page with a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping
from html import escape
from typing import Any

from rich.table import Table

from deploy.page import html_page, image, paragraph
from deploy.page import table as html_table

# Report of models.evaluation.sequences.evaluate: what JSON has no closer type for.
Report = Mapping[str, Any]

JUDGED = "0.5"
THREE_S, CEILING = "3S", "likelihood_ratio_ceiling"
LINES = (
    ("likelihood ratio (ceiling)", CEILING, "#9aa3ad", ":"),
    ("3S", THREE_S, "#d98a29", "--"),
    ("eddy", None, "#33517a", "-"),
)


def table(report: Report) -> Table:
    """Return the figures at the detectability of the goals."""
    out = Table(title=f"AUC at detectability {JUDGED}, seed {report['seed']}")
    out.add_column("scenario")
    for name in ("eddy", "3S", "ceiling"):
        out.add_column(name, justify="right")
    blocks = [report, report[THREE_S], report[CEILING]]
    for scenario in report["scenarios"]:
        out.add_row(scenario, *(f"{b['scenarios'][scenario][JUDGED]:.4f}" for b in blocks))
    out.add_section()
    out.add_row("mean", *(f"{b[f'mean_at_{JUDGED}']:.4f}" for b in blocks))
    return out


def picture(report: Report) -> bytes:
    """Draw AUC against detectability, one panel for each scenario, as PNG."""
    # Its fonts take a second to find: only who draws pays.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 4, sharex=True, sharey=True).flat
    for panel, scenario in zip(panels, report["scenarios"], strict=True):
        panel.axhline(0.5, color="#dddddd", linewidth=0.8)
        for label, key, colour, style in LINES:
            block = report if key is None else report[key]
            areas = block["scenarios"][scenario]
            at = [float(d) for d in areas]
            panel.plot(at, list(areas.values()), style, color=colour, label=label, linewidth=1.8)
        panel.set_title(scenario, fontsize=10)
        panel.set_ylim(0.35, 1.02)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside upper center", ncols=3, frameon=False)
    figure.supxlabel("detectability", fontsize=10)
    figure.supylabel("area under the ROC curve", fontsize=10)
    file = io.BytesIO()
    # No date or version inside: the same report gives the same bytes.
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    return file.getvalue()


def page(report: Report) -> str:
    """Return an HTML page that stands alone: the picture, and every figure."""
    parts = [
        paragraph(
            f"Seed {report['seed']}; {report['sequences']:,} training, normal test and anomalous"
            " test sequences of each scenario. One statistic for all scenarios."
        ),
        image(picture(report), "AUC against detectability by scenario"),
    ]
    for label, key, _, _ in reversed(LINES):
        block = report if key is None else report[key]
        mean = f"Mean at {JUDGED}: {block[f'mean_at_{JUDGED}']:.4f}"
        parts += [f"<h2>{escape(label)}</h2>", _areas(block), paragraph(mean)]
    return html_page("Sequence detection", parts)


def _areas(block: Report) -> str:
    areas = block["scenarios"]
    grid = list(next(iter(areas.values())))
    rows = [[name, *(f"{by_d[d]:.3f}" for d in grid)] for name, by_d in areas.items()]
    return html_table(rows, ["", *map(str, grid)])
