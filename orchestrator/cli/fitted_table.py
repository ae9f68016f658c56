"""Tables that fit their terminal: numbers and the words of headers are never broken, names only between their parts."""

import re
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.style import StyleType
from rich.table import Column, Table
from rich.text import Text

GAP = 2
"""Columns of the terminal between two columns of a table."""
WHOLE = frozenset({"state"})
"""Columns of words that are never broken, as numbers."""
PARTS = re.compile(r"(?<=[\s/,;])|(?=[@+])")
"""Where names and sentences may be broken: `17/3d_fullres/nnUNetTrainerDA5` | `@nnUNetResEncUNetMPlans` | `+seed1`."""
WORDS = re.compile(r"(?<=, )")
"""Where a list of numbers with their words is: `3 SUCCEEDED, | 1 RUNNING, | 1 FAILED`."""


class Foldable:
    """A text that is broken between its parts, at the places of `parts`; inside of one only where that is wider than its column.

    `is_tight`: it asks for no more than its widest part, so that the other columns of its table get what they ask for first.
    """

    def __init__(self, text: str | Text, parts: re.Pattern[str] = PARTS, *, is_tight: bool = False) -> None:
        self._text = Text(text) if isinstance(text, str) else text
        self._parts = parts
        self._is_tight = is_tight

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        widest = max((cell_len(part.strip()) for part in self._parts.split(self._text.plain)), default=0)
        return Measurement(widest, widest if self._is_tight else self._text.cell_len)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self._text.divide(breaks(self._text.plain, options.max_width, self._parts)):
            line.rstrip()
            yield line


def breaks(text: str, width: int, parts: re.Pattern[str] = PARTS) -> list[int]:
    """The places at which a text is broken into lines of at most `width`. Pure."""
    found, start, end = [], 0, 0
    for part in parts.split(text):
        if end > start and cell_len((text[start:end] + part).rstrip()) > width:
            found.append(end)
            start = end
        end += len(part)
    return found


class FittedTable(Table):
    """A table whose columns share the width that it is given; those of `Foldable` texts are the first to be narrower than they ask."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for column in self.columns:
            column.width = None
        asked = [_asked(column, console, options) for column in self.columns]
        room = options.max_width - GAP * (len(asked) - 1)
        for column, width in zip(self.columns, shared_out(asked, room), strict=True):
            column.width = width
        yield from super().__rich_console__(console, options)

    def add_row(self, *renderables: RenderableType | None, style: StyleType | None = None, end_section: bool = False) -> None:
        """As rich's, with what stands in a column of texts made `Foldable`."""
        is_text = [column.justify == "left" and column.header not in WHOLE for column in self.columns]
        cells = [Foldable(cell) if text and isinstance(cell, str | Text) else cell for cell, text in zip(renderables, is_text, strict=True)]
        super().add_row(*cells, style=style, end_section=end_section)


def _asked(column: Column, console: Console, options: ConsoleOptions) -> tuple[int, int, int]:
    """Of a column the width of its longest line, the same where its header is broken into words, and the least without a broken word."""
    header = Measurement.get(console, options, column.header)
    cells = [(cell, Measurement.get(console, options, cell)) for cell in column.cells]
    widest = max((width.maximum for _, width in cells), default=0)
    narrowest = max((width.minimum if isinstance(cell, Foldable) else width.maximum for cell, width in cells), default=0)
    return max(header.maximum, widest), max(header.minimum, widest), max(header.minimum, narrowest)


def shared_out(asked: Sequence[tuple[int, int, int]], room: int) -> list[int]:
    """The widths of columns that together have `room`: first headers are broken into words, then texts, at last words. Pure."""
    widths = [natural for natural, _, _ in asked]
    for least in ([words for _, words, _ in asked], [words for _, _, words in asked], [1] * len(asked)):
        while sum(widths) > room and (wide := [i for i, width in enumerate(widths) if width > least[i]]):
            widths[max(wide, key=widths.__getitem__)] -= 1
    return widths
