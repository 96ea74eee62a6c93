"""One HTML file with a table of all series and a picture of each; it loads nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from deploy import page
from deploy.evaluate.picture import Picture, draw

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
    rows = [[_name(section), *section.cells] for section in sections]
    anchors = [f"s{number}" for number in range(len(sections))]
    key = "".join(f'<span style="background:{colour}"></span>{text}' for colour, text in KEY)
    parts = []
    for anchor, section in zip(anchors, sections, strict=True):
        name = _name(section)
        alt = f"{name}: value, expected band, score and alerts"
        parts += [
            f'<h2 id="{anchor}">{escape(name)}</h2>',
            page.paragraph(section.note),
            page.image(draw(section.picture), alt),
        ]
        drawn()
    body = [
        *map(page.paragraph, summary),
        f'<p class="key">{key}</p>',
        page.table(rows, columns, anchors),
        *parts,
    ]
    page.write_page(path, title, body)


def _name(section: Section) -> str:
    return section.picture.series.name or "series"
