"""HTML pages that stand alone: one style, tables, and pictures inside the file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; margin: 2rem auto; max-width: 1120px;
       padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .2rem; }
h3 { font-size: 1rem; margin-bottom: .2rem; }
p { margin: .3rem 0; }
p.note, figcaption { color: #55606b; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem; text-align: right; vertical-align: top;
         border-bottom: 1px solid #dde3e9; }
th:first-child, td:first-child { text-align: left; }
th { background: #f2f5f8; position: sticky; top: 0; }
figure { margin: 2rem 0; }
img { max-width: 100%; height: auto; }
a { color: #33517a; }
ul.warnings { background: #fff4e0; border-left: 4px solid #d9822b; padding: .6rem 1rem .6rem 2rem; }
.key span { display: inline-block; width: 1em; height: .8em; margin: 0 .3em 0 1em; }
"""


def html_page(title: str, body: Iterable[str]) -> str:
    """Return a page.

    Args:
        title: as text; it is the heading as well.
        body: HTML of its parts, in their order.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n"
        + "\n".join((f"<h1>{escape(title)}</h1>", *body))
        + "\n</body></html>\n"
    )


def write_page(path: Path, title: str, body: Iterable[str]) -> None:
    """Write a page, whole or not at all; its folder is created. See `html_page`."""
    text = html_page(title, body)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of text, of a class of the style ("note") where `kind` names one."""
    return f"<p{f' class={escape(kind)}' if kind else ''}>{escape(text)}</p>"


def image(png: bytes, alt: str) -> str:
    """Return a picture that lies inside the page; `alt` says in words what it shows."""
    data = base64.b64encode(png).decode("ascii")
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def figure(png: bytes, caption: str) -> str:
    """Return a picture with its caption below it."""
    return f"<figure>{image(png, caption)}<figcaption>{escape(caption)}</figcaption></figure>"


def table(
    rows: Iterable[Sequence[str]], head: Sequence[str] = (), anchors: Sequence[str] = ()
) -> str:
    """Return a table of text.

    Args:
        rows: cells as text; the first is the row's name.
        head: names of the columns; none leaves the line out.
        anchors: ids on this page to which the names of the rows lead, one for each; none leads
            nowhere.
    """
    lines = ["".join(f"<th>{escape(name)}</th>" for name in head)] if head else []
    for number, row in enumerate(rows):
        name, *cells = map(escape, row)
        if anchors:
            name = f'<a href="#{escape(anchors[number])}">{name}</a>'
        lines.append("".join(f"<td>{cell}</td>" for cell in (name, *cells)))
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
