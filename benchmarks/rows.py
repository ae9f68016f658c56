"""The rows by which each benchmark contributes to the one table of `make bench`, and how they are stored."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One measurement: ours, nnU-Net's, and their ratio."""

    what: str
    """With its unit."""
    ours: float | None
    theirs: float | None = None
    """None: nnU-Net has no such thing, and `what` states what the ratio is to."""
    ratio: tuple[float, float, float] | None = None
    """First quartile, median, third quartile; None: it was not measured in pairs."""

    @property
    def cells(self) -> list[str]:
        """As the table shows it."""
        return [self.what, number(self.ours), number(self.theirs), self._ratio_text()]

    def _ratio_text(self) -> str:
        if self.ratio is not None:
            low, middle, high = self.ratio
            return f"{middle:.3f} ({low:.3f} to {high:.3f})"
        return f"{self.ours / self.theirs:.3f}" if self.ours and self.theirs else "-"


def number(value: float | None) -> str:
    """Three significant digits; `-` for none."""
    return "-" if value is None else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile; of a single value that value."""
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4)
    return low, middle, high


def pairwise(what: str, ours: Sequence[float], theirs: Sequence[float]) -> Row:
    """Medians of both sides, and the ratio pair by pair."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return Row(what, statistics.median(ours), statistics.median(theirs), quartiles(ratios))


def store(path: Path | None, rows: Sequence[Row], measured: Any) -> None:
    """Write rows and everything that was measured as JSON, where a file is named."""
    if path is not None:
        path.write_text(json.dumps({"rows": [asdict(row) for row in rows], "measured": measured}, indent=1))


def stored(path: Path) -> list[Row]:
    """The rows of such a file."""
    found = json.loads(path.read_text())["rows"]
    return [Row(row["what"], row["ours"], row["theirs"], tuple(row["ratio"]) if row["ratio"] else None) for row in found]
