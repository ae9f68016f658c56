"""Live view of runs: bars that move on a terminal, one plain line per change in a pipe."""

import sys
from collections.abc import Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Self

from orchestrator.cli.output import console
from orchestrator.cli.tables import STYLES, TRAINS, cases_line, dice, plain_table, seconds, status_line
from trainers.contract.states import RunState

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from orchestrator.run.status import RunStatus

BAR_WIDTH = 18
WIDE, MEDIUM = 110, 84
"""Terminal widths from which on all, or most, of the numbers are shown."""


def done_fraction(status: "RunStatus") -> float:
    """Share of the training that is done, in [0, 1], with the part of the running epoch; while validating, share of the cases."""
    if status.validation:
        return min(1.0, status.validation.done / max(1, status.validation.cases))
    return min(1.0, (status.epochs_done + (status.fraction_of_epoch or 0.0)) / max(1, status.epochs))


def watch_table(statuses: Sequence["RunStatus"], width: int) -> "Table":
    """The runs as a table with bars; a narrow terminal gets fewer columns."""
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    extra = [">EMA", ">best", ">s/epoch", ">left"] if width >= WIDE else [">EMA", ">left"] if width >= MEDIUM else [">EMA"]
    table = plain_table("run", "state", "progress", ">epoch", *extra, width=width)
    for status in statuses:
        numbers = {
            ">EMA": dice(status.ema_pseudo_dice),
            ">best": dice(status.best_ema_pseudo_dice),
            ">s/epoch": "-" if not status.epoch_s else f"{status.epoch_s:.1f}",
            ">left": seconds(status.seconds_left) if status.state in TRAINS else "",
        }
        bar = ProgressBar(total=1.0, completed=done_fraction(status), width=BAR_WIDTH if width >= MEDIUM else BAR_WIDTH // 2)
        state = Text(status.state.value, style=STYLES.get(status.state, ""))
        table.add_row(status.address, state, bar, f"{status.epochs_done}/{status.epochs}", *[numbers[name] for name in extra])
    return table


def watch_view(statuses: Sequence["RunStatus"], width: int) -> "RenderableType":
    """The table, and below it how far validations are and why runs wait or failed."""
    from rich.console import Group
    from rich.text import Text

    cases = [Text(f"{s.address}: {cases_line(s.validation)}", style="dim") for s in statuses if s.validation]
    reasons = [Text(f"{s.address}: {s.reason}{_since(s)}", style="dim") for s in statuses if s.reason]
    return Group(watch_table(statuses, width), *cases, *reasons)


def _since(status: "RunStatus") -> str:
    """` (since 14:05)` for a run that waits, in this machine's time; nothing for one that has ended or trains."""
    if status.state.is_final or status.state is RunState.RUNNING or not status.since_unix:
        return ""
    return f" (since {datetime.fromtimestamp(status.since_unix):%Y-%m-%d %H:%M})"


class Watch:
    """Called with every new list of states; use as a context manager, so that the terminal is left tidy."""

    def __init__(self) -> None:
        from rich.live import Live

        self._console = console(stderr=not sys.stdout.isatty())
        self._live = Live(console=self._console, auto_refresh=False, transient=False) if self._console.is_terminal else None
        self._seen: dict[str, str] = {}
        self.statuses: list[RunStatus] = []

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, statuses: list["RunStatus"]) -> None:
        """Show these states."""
        self.statuses = statuses
        if self._live:
            self._live.update(watch_view(statuses, self._console.width), refresh=True)
            return
        for status in statuses:
            key = f"{status.state}-{status.epochs_done}-{status.validation}-{status.reason}-{sorted(status.full_dice.items())}"
            if self._seen.get(status.run_key) != key:
                self._seen[status.run_key] = key
                self._console.print(status_line(status), soft_wrap=True)
