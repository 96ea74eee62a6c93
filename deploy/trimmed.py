"""Print tables without the spaces that pad their last column: output is copied, piped, compared."""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment


class Trimmed:
    """A renderable whose lines end with their last sign.

    Args:
        renderable: what is shown.
    """

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in console.render_lines(self._renderable, options, pad=False):
            yield from _without_end(line)
            yield Segment.line()


def _without_end(line: list[Segment]) -> list[Segment]:
    kept = list(line)
    while kept:
        text, style, control = kept.pop()
        shown = text.rstrip()
        if shown or control:
            return [*kept, Segment(shown, style, control)]
    return kept
