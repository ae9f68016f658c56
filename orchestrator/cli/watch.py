"""Live view of runs: bars that move on a terminal, one plain line per change in a pipe."""

import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from statistics import fmean
from types import TracebackType
from typing import TYPE_CHECKING, Self

from orchestrator.cli.models import TRAINS, Model, by_reason, counts_line, models_of, older_lines, unfolded
from orchestrator.cli.output import console
from orchestrator.cli.tables import STYLES, cases_line, dice, limit_line, plain_table, seconds, states_cell, status_line, test_set_line
from trainers.contract.states import RunState

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from orchestrator.run.job_record import JobRecord
    from orchestrator.run.status import RunStatus

BAR_WIDTH = 18
WIDE, MEDIUM = 110, 84
"""Terminal widths from which on all, or most, of the numbers are shown."""


def done_fraction(status: "RunStatus") -> float:
    """Share of the training that is done, in [0, 1], with the part of the running epoch; while validating, share of the cases."""
    if status.validation:
        return min(1.0, status.validation.done / max(1, status.validation.cases))
    return min(1.0, (status.epochs_done + (status.fraction_of_epoch or 0.0)) / max(1, status.epochs))


def watch_table(statuses: Sequence["RunStatus"], width: int, *, all_runs: bool = False) -> "Table":
    """The runs as a table with bars, below the models that they are folds of; a narrow terminal gets no bars and fewer columns."""
    from rich.text import Text

    extra = [">EMA", ">best", ">s/epoch", ">left"] if width >= WIDE else [">EMA", ">left"]
    table = plain_table("run", "state", *(["progress"] if width >= MEDIUM else []), ">epoch", *extra)
    for model in models_of(statuses):
        if len(model.runs) > 1:
            fraction = fmean(done_fraction(run) for run in model.runs)
            numbers = {">left": seconds(model.seconds_left) if model.state in TRAINS else ""}
            table.add_row(*_cells(model.name, states_cell(model, width), fraction, width), _folds(model), *_chosen(numbers, extra))
        for run in unfolded(model, all_runs=all_runs) if len(model.runs) > 1 else model.runs:
            name = f"  fold {run.address.rpartition('/')[2]}" if len(model.runs) > 1 else model.name
            cells = _cells(name, Text(run.state.value, style=STYLES.get(run.state, "")), done_fraction(run), width)
            table.add_row(*cells, f"{run.epochs_done}/{run.epochs}", *_chosen(_numbers(run), extra))
    return table


def _cells(name: str, state: "RenderableType", fraction: float, width: int) -> list["RenderableType"]:
    from rich.progress_bar import ProgressBar

    cells: list[RenderableType] = [name, state]
    return [*cells, ProgressBar(total=1.0, completed=fraction, width=BAR_WIDTH)] if width >= MEDIUM else cells


def _folds(model: Model) -> str:
    return f"{model.num_succeeded}/{len(model.runs)} folds"


def _numbers(run: "RunStatus") -> dict[str, str]:
    return {
        ">EMA": dice(run.ema_pseudo_dice),
        ">best": dice(run.best_ema_pseudo_dice),
        ">s/epoch": "-" if not run.epoch_s else f"{run.epoch_s:.1f}",
        ">left": seconds(run.seconds_left) if run.state in TRAINS and run.epochs_done < run.epochs else "",
    }


def _chosen(numbers: Mapping[str, str], columns: Sequence[str]) -> list[str]:
    return [numbers.get(name, "") for name in columns]


def watch_view(
    statuses: Sequence["RunStatus"], width: int, *, all_runs: bool = False, test_sets: Sequence["JobRecord"] = ()
) -> "RenderableType":
    """How many runs are in which state, the table, and below it how far validations are, why runs wait or failed, and test sets."""
    from rich.console import Group
    from rich.text import Text

    models = models_of(statuses)
    shown = [run for model in models for run in model.runs]
    told = [run for run in shown if run.reason]
    cases = [f"{run.address}: {cases_line(run.validation)}" for run in shown if run.validation]
    starved = [run for run in shown if run.limit_advice and run.state in TRAINS]
    limits = by_reason([run.address for run in starved], [limit_line(run) for run in starved])
    lines = [
        *older_lines(models),
        *cases,
        *limits,
        *by_reason([run.address for run in told], [f"{run.reason}{_since(run)}" for run in told]),
    ]
    lines += [test_set_line(job) for job in test_sets]
    below = [Text(), *(Text(line, style="dim") for line in lines)] if lines else []
    counts = [Text(counts_line(statuses), style="bold"), Text()] if len(statuses) > 1 else []
    return Group(*counts, watch_table(statuses, width, all_runs=all_runs), *below)


def _since(status: "RunStatus") -> str:
    """` (since 14:05)` for a run that waits, in this machine's time; nothing for one that has ended or trains."""
    if status.state.is_final or status.state is RunState.RUNNING or not status.since_unix:
        return ""
    return f" (since {datetime.fromtimestamp(status.since_unix):%Y-%m-%d %H:%M})"


class Watch:
    """Called with every new list of states, and the jobs of test sets; use as a context manager, so that the terminal is left tidy."""

    def __init__(self) -> None:
        from rich.live import Live

        self._console = console(stderr=not sys.stdout.isatty())
        self._live = Live(console=self._console, auto_refresh=False, transient=False) if self._console.is_terminal else None
        self._seen: dict[str, str] = {}
        self.statuses: list[RunStatus] = []
        self.test_sets: list[JobRecord] = []

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, statuses: list["RunStatus"], test_sets: Sequence["JobRecord"] = ()) -> None:
        """Show these states."""
        self.statuses, self.test_sets = statuses, list(test_sets)
        if self._live:
            self._live.update(watch_view(statuses, self._console.width, test_sets=test_sets), refresh=True)
            return
        for status in statuses:
            key = f"{status.state}-{status.epochs_done}-{status.validation}-{status.reason}-{sorted(status.full_dice.items())}"
            self._print_once(status.run_key, key, status_line(status))
        for job in test_sets:
            self._print_once(job.submission_id, job.state, test_set_line(job))

    def _print_once(self, name: str, key: str, line: str) -> None:
        if self._seen.get(name) != key:
            self._seen[name] = key
            self._console.print(line, soft_wrap=True)
