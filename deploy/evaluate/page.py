"""One HTML file with a table of all series and a picture of each; it loads nothing else."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.evaluate.picture import Picture, draw

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1c2733; margin: 2rem auto; max-width: 1100px;
       padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; }
h2 { font-size: 1.05rem; margin: 2.2rem 0 .2rem; }
p { margin: .3rem 0; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #dde3e9; }
th:first-child, td:first-child { text-align: left; }
th { background: #f2f5f8; position: sticky; top: 0; }
img { max-width: 100%; height: auto; }
a { color: #33517a; }
.key span { display: inline-block; width: 1em; height: .8em; margin: 0 .3em 0 1em; }
"""
KEY = (
    ("#33517a", "value"),
    ("rgba(217,138,41,.3)", "expected band (nominally 99% of values)"),
    ("rgba(200,85,61,.25)", "labelled window"),
    ("rgba(138,138,138,.2)", "probation, not judged"),
    ("#b3261e", "alert"),
)


@dataclass(frozen=True, slots=True)
class Section:
    """One series on the page.

    Attributes:
        picture: what to draw.
        cells: of its line in the table, as text, in the order of the page's columns.
        note: said below its title.
    """

    picture: Picture
    cells: Sequence[str]
    note: str


def write_page(
    path: Path,
    title: str,
    summary: Iterable[str],
    columns: Sequence[str],
    sections: Sequence[Section],
    drawn: Callable[[], None] = lambda: None,
) -> None:
    """Write the page.

    Args:
        path: of the file; its folder is created.
        title: of the page, as text.
        summary: paragraphs below the title, as text.
        columns: heads of the table, the series' name first.
        sections: in the order in which they shall stand.
        drawn: called after each picture.
    """
    lines = []
    parts = []
    for number, section in enumerate(sections):
        name = html.escape(section.picture.series.name or "series")
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in section.cells)
        lines.append(f'<tr><td><a href="#s{number}">{name}</a></td>{cells}</tr>')
        image = base64.b64encode(draw(section.picture)).decode("ascii")
        parts.append(
            f'<h2 id="s{number}">{name}</h2><p>{html.escape(section.note)}</p>'
            f'<img alt="{name}: value, expected band, score and alerts"'
            f' src="data:image/png;base64,{image}">'
        )
        drawn()
    heads = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    key = "".join(f'<span style="background:{colour}"></span>{text}' for colour, text in KEY)
    paragraphs = "".join(f"<p>{html.escape(text)}</p>" for text in summary)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>"
        f'<h1>{html.escape(title)}</h1>{paragraphs}<p class="key">{key}</p>'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
        f"{''.join(parts)}</body></html>\n",
        "utf-8",
    )
