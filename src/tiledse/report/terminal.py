"""Tables and lines on a terminal, with whatever names they hold made harmless: all text that is printed passes here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table

from ..names import harmless


class Shown:
    """Something that rich can print, in which no character is left that a terminal would obey.

    Args:
        renderable: A table, or lines of text.

    Example:
        >>> import io
        >>> console = Console(file=io.StringIO())
        >>> console.print(Shown("conv\\x1b[31m"), end="")
        >>> console.file.getvalue().strip()
        'conv␛[31m'
    """

    def __init__(self, renderable: Any) -> None:
        if isinstance(renderable, Table):
            for column in renderable.columns:
                # A cell is a name or a number: a newline in it would draw a row that is none.
                column._cells = [harmless(c) if isinstance(c, str) else c for c in column._cells]
        elif isinstance(renderable, str):
            renderable = harmless(renderable, keep="\n\t")
        self.renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self.renderable, options):
            text = segment.text if segment.control else harmless(segment.text, keep="\n\t")
            yield Segment(text, segment.style, segment.control)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self.renderable)


def needed_width(console: Console, renderable: Any, *, wrap: bool) -> int:
    """Columns without which rich would cut a table, or leave a column out; each column gets the least that it needs.

    Args:
        console: Where it is printed.
        renderable: A table; all else wraps, or is printed as long as it is.
        wrap: Whether cells of several words may be wrapped: on a terminal.

    Example:
        >>> table = Table("a name", "n")
        >>> table.add_row("x" * 400, "7")
        >>> needed_width(Console(width=20), table, wrap=True) > 400
        True
    """
    if not isinstance(renderable, Table):
        return 0
    options = console.options.update(width=1_000_000)
    needed = Measurement.get(console, options, renderable).maximum
    if not wrap:
        return needed
    for column in renderable.columns:
        if not column.no_wrap:
            cells = [Measurement.get(console, options, cell) for cell in (column.header, *column.cells)]
            column.min_width = max(
                c.minimum for c in cells
            )  # or rich shrinks short columns with the long ones
            needed -= max(c.maximum for c in cells) - column.min_width
    return needed
