"""Pages that stand alone: their parts in order, and no text that could be markup."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from deploy import page

VOID = {"meta", "img"}


class Tree(HTMLParser):
    """Sees that every element is closed in its place, and keeps texts and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] != "style":
            self.texts.append(data)


ODD = '<b>&"x"</b>'


def test_texts_are_texts_wherever_they_stand() -> None:
    tree = Tree(
        page.html_page(
            ODD,
            [
                page.paragraph(ODD, "note"),
                page.table([(ODD, ODD)], (ODD, ODD), ["s0"]),
                page.figure(b"png", ODD),
                page.image(b"png", ODD),
            ],
        )
    )
    # Title and heading; the paragraph; two heads and two cells; the caption.
    assert tree.texts == [ODD] * 8
    images = [attributes for tag, attributes in tree.tags if tag == "img"]
    assert [one["alt"] for one in images] == [ODD, ODD]
    assert {one["src"] for one in images} == {"data:image/png;base64,cG5n"}
    assert ("a", {"href": "#s0"}) in tree.tags
    assert ("p", {"class": "note"}) in tree.tags


def test_a_table_without_heads_or_anchors() -> None:
    tree = Tree(page.table([("a", "1"), ("b", "2")]))
    assert tree.texts == ["a", "1", "b", "2"]
    assert [tag for tag, _ in tree.tags].count("th") == 0
    assert [tag for tag, _ in tree.tags].count("a") == 0


def test_a_page_is_written_whole_into_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    page.write_page(path, "t", ["<p>x</p>"])
    assert path.read_text("utf-8") == page.html_page("t", ["<p>x</p>"])
    assert [one.name for one in path.parent.iterdir()] == ["page.html"]
