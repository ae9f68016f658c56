"""A table as plain text cells, for the terminal, the report, LaTeX and CSV alike; and a pair of models as a row and as JSON."""

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.statistics.pairs import Comparison

_LATEX = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


@dataclass(frozen=True)
class TextTable:
    """Cells of text under their heads; the first column names the row."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marks: tuple[str, ...] = ()
    """Sentences that a copy of the table must not lose: why its models should not be compared."""

    @property
    def csv(self) -> str:
        """As CSV."""
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows([self.head, *self.rows, *([mark] for mark in self.marks)])
        return stream.getvalue()

    @property
    def latex(self) -> str:
        """As a LaTeX table with the rules of booktabs."""
        lines = [rf"\begin{{tabular}}{{l{'r' * (len(self.head) - 1)}}}", r"\toprule", _latex_row(self.head), r"\midrule"]
        marks = [rf"\multicolumn{{{len(self.head)}}}{{l}}{{{_latex(mark)}}} \\" for mark in self.marks]
        return "\n".join([*lines, *(_latex_row(row) for row in self.rows), r"\bottomrule", *marks, r"\end{tabular}"])


def _latex_row(cells: tuple[str, ...]) -> str:
    return " & ".join(map(_latex, cells)) + r" \\"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def pairs_table(pairs: tuple[Comparison, ...]) -> TextTable:
    """A row per pair: the difference with its interval, the wins of the first that it names, the test, what could have been detected."""
    head = ("pair", "patients", "mean difference", "95 % interval", "median", "wins / ties / losses", "p (Holm)", "detectable")
    return TextTable(head, tuple(_pair_row(found) for found in pairs))


def _pair_row(found: Comparison) -> tuple[str, ...]:
    decimals = 2
    mean, (low, high), median = found.b_minus_a
    return (
        f"{found.b} minus {found.a}",
        str(found.counts.patients),
        number(mean, decimals),
        f"[{number(low, decimals)}, {number(high, decimals)}]",
        number(median, decimals),
        f"{found.wins} / {found.ties} / {found.losses}",
        f"{found.p_holm:.2g}",
        number(found.detectable, decimals),
    )


def pair_json(found: Comparison) -> dict[str, Any]:
    """A pair for scripts; what nothing bounds is null."""
    low, high = (end if math.isfinite(end) else None for end in found.mean_interval)
    return {
        "a": found.a,
        "b": found.b,
        "unit": found.metric.unit,
        **found.counts._asdict(),
        "mean_b_better_by": found.mean,
        "mean_interval": [low, high],
        "median": found.median,
        "wins": found.wins,
        "ties": found.ties,
        "losses": found.losses,
        "p": found.test.p,
        "p_holm": found.p_holm,
        "comparisons": found.comparisons,
        "seed_sd": found.seed_sd,
        "rank_biserial": found.test.rank_biserial,
        "detectable": found.detectable if math.isfinite(found.detectable) else None,
    }


MEANS_HEAD = ("Dice", "HD95 mm", "surface Dice", "missed", "false")
"""Heads of `means_cells`; missed: classes that a model did not find, false: those that it invented, over the cases."""


def means_cells(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """What a table shows of `extended_summary`."""
    classes = summary["classes"].values()
    return (
        number(summary["dice_mean"], 4),
        number(summary["hd95_mm_mean"], 2),
        number(summary["nsd_mean"], 4),
        str(sum(int(values["n_missed"]) for values in classes)),
        str(sum(int(values["n_invented"]) for values in classes)),
    )


def number(value: object, decimals: int) -> str:
    """`-` where there is none; infinite where nothing bounds it."""
    assert isinstance(value, float)
    if math.isnan(value):
        return "-"
    return f"{value:.{decimals}f}" if math.isfinite(value) else ("∞" if value > 0 else "-∞")
