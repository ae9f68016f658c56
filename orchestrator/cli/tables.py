"""Tables and lines out of plans and run states: pure functions of values."""

import math
from collections.abc import Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING, Literal

from orchestrator.cli.models import TRAINS, Model, each_run, models_of
from trainers.contract.states import RunState

if TYPE_CHECKING:
    from rich.console import RenderableType

    from orchestrator.cli.fitted_table import FittedTable
    from orchestrator.run.job_record import JobRecord
    from orchestrator.run.status import CasesDone, RunStatus
    from trainers.contract.run_spec import CheckpointName

WIDE, MEDIUM = 120, 100
"""Columns of a terminal below which a model's states stand below each other, and below which the least important number is left out."""
STYLES = {
    RunState.QUEUED: "dim",
    RunState.RUNNING: "cyan",
    RunState.RECOVERING: "yellow",
    RunState.VALIDATING: "magenta",
    RunState.SUCCEEDED: "green",
    RunState.STOPPED: "yellow",
    RunState.PAUSED: "yellow",
    RunState.FAILED_CONFIG: "red",
    RunState.FAILED_CODE: "red",
    RunState.FAILED_CLUSTER: "red",
}


def dice(value: float | None) -> str:
    """A Dice with three decimals, `-` where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def seconds(value: float | None) -> str:
    """Seconds for people: 3.1 s, 2:05, 1:02:03; `-` where unknown."""
    if value is None or not math.isfinite(value):
        return "-"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def states_cell(model: Model, width: int) -> "RenderableType":
    """How many folds of a model are in each state, each in its colour; broken after commas alone, on a narrow terminal after each."""
    from rich.text import Text

    from orchestrator.cli.fitted_table import WORDS, Foldable

    return Foldable(Text(", ").join(Text(text, style=STYLES[state]) for text, state in model.state_texts), WORDS, is_tight=width < WIDE)


def plain_table(*columns: str, title: str | None = None) -> "FittedTable":
    """A table without frame that fits its terminal; columns whose name begins with `>` are aligned to the right."""
    from orchestrator.cli.fitted_table import FittedTable

    table = FittedTable(title=title, box=None, pad_edge=False, title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        side: Literal["left", "right"] = "right" if column.startswith(">") else "left"
        table.add_column(column.lstrip(">"), justify=side, overflow="fold")
    return table


def status_line(status: "RunStatus") -> str:
    """One run in one plain line, for logs and pipes."""
    parts = [status.address, status.state.value, f"epoch {status.epochs_done}/{status.epochs}"]
    if status.ema_pseudo_dice is not None:
        parts.append(f"EMA pseudo-Dice {dice(status.ema_pseudo_dice)} (best {dice(status.best_ema_pseudo_dice)})")
    if status.epoch_s:
        parts.append(f"{seconds(status.epoch_s)}/epoch")
    if status.limited_by and status.state in TRAINS:
        parts.append(limit_line(status))
    if status.seconds_left and status.state in TRAINS:
        parts.append(f"{seconds(status.seconds_left)} left")
    if status.validation:
        parts.append(cases_line(status.validation))
    parts.extend(status.full_dice_texts)
    if status.reason:
        parts.append(f"({status.reason})")
    return "  ".join(parts)


def limit_line(status: "RunStatus") -> str:
    """What limits the training of a run, with what to change."""
    return f"limited by {status.limited_by}" + (f": {status.limit_advice}" if status.limit_advice else "")


def cases_line(validation: "CasesDone") -> str:
    """How far a full validation is, in words."""
    return f"full validation of {validation.checkpoint}: {validation.done}/{validation.cases} cases"


def result_view(
    statuses: Sequence["RunStatus"], width: int, *, all_runs: bool = False, known: Sequence["RunStatus"] | None = None
) -> "RenderableType":
    """What a finished experiment is judged by: pseudo-Dice beside the full Dice for best and final weights, a line for each model, or run;
    below them the models over whose folds no mean is taken, with why. `known`: all runs that are known, where these are not all.
    """
    from rich.console import Group
    from rich.text import Text

    from orchestrator.run.status import TRAINING_CASES

    models = each_run(statuses, known) if all_runs else models_of(statuses, known)
    reasons = [f"{model.name}: no mean over its folds, which are unlike: {model.unlike}." for model in models if model.unlike]
    if any(model.is_of_training_cases for model in models):
        reasons.append(f"* of its {TRAINING_CASES}: fold all is trained on every case that it validates.")
    return Group(_result_table(models, width), *(Text(line, style="dim") for line in reasons))


def _result_table(models: Sequence[Model], width: int) -> "FittedTable":
    """The full Dice of a model is the mean over the cases of its validated folds; with `~` it is the mean of the folds' means, with `*` it
    is that of training cases. The epochs are those of each fold.
    """
    columns = ["run", "state", ">EMA pseudo-Dice", ">full Dice best", ">full Dice final", ">s/epoch", ">epochs"]
    shown = columns if width >= MEDIUM else columns[:-1]
    table = plain_table(*shown)
    for model in models:
        epoch_s = [run.epoch_s for run in model.runs if run.epoch_s]
        ema = [run.best_ema_pseudo_dice for run in model.counted if run.best_ema_pseudo_dice is not None]
        cells: list[RenderableType] = [
            model.name,
            states_cell(model, width),
            dice(fmean(ema) if ema and not model.unlike else None),
            _model_dice(model, "best"),
            _model_dice(model, "final"),
            f"{median(epoch_s):.1f}" if epoch_s else "-",
            f"{_range([run.epochs_done for run in model.runs])}/{_range([run.epochs for run in model.runs])}",
        ]
        table.add_row(*cells[: len(shown)])
    return table


def _range(numbers: Sequence[int]) -> str:
    """`3`, or `1-3` where they differ."""
    least, most = min(numbers), max(numbers)
    return f"{least}" if least == most else f"{least}-{most}"


def _model_dice(model: Model, checkpoint: "CheckpointName") -> str:
    value, is_over_cases = model.dice_and_source(checkpoint)
    mark = "*" if model.is_of_training_cases and value is not None else ""
    return f"{'' if is_over_cases else '~'}{dice(value)}{mark}"


def test_set_line(job: "JobRecord") -> str:
    """The job of a test set in one plain line, for whoever watches it."""
    return f"{job.submission_id}  {job.test_set_state}  test set {job.test_set}"


def worst_exit_code(statuses: Sequence["RunStatus"], test_sets: Sequence["JobRecord"] = ()) -> int:
    """Exit code of a command that waited for these runs and test sets: 0 only if all succeeded; of several ends the first in the order
    below counts."""
    from orchestrator.cli.output import EXIT_RUN_FAILED, EXIT_RUN_STOPPED
    from orchestrator.errors import CheckpointError, ClusterError, ConfigError, DataError, NnfleetError, StorageError

    codes = {
        RunState.FAILED_CODE: EXIT_RUN_FAILED,
        RunState.FAILED_CLUSTER: ClusterError.exit_code,
        RunState.FAILED_CONFIG: ConfigError.exit_code,
        RunState.STOPPED: EXIT_RUN_STOPPED,
        RunState.PAUSED: EXIT_RUN_STOPPED,
    }
    order = [EXIT_RUN_FAILED, *(kind.exit_code for kind in (ClusterError, ConfigError, DataError, CheckpointError, StorageError))]
    seen = {codes.get(status.state, 0) for status in statuses} | {_exit_code_of(job) for job in test_sets}
    return next((code for code in (*order, NnfleetError.exit_code, EXIT_RUN_STOPPED) if code in seen), 0)


def _exit_code_of(job: "JobRecord") -> int:
    """That with which `evaluate` would end: of its error, or of the cluster where the job was killed or never began."""
    from orchestrator.cli.output import EXIT_RUN_STOPPED
    from orchestrator.errors import ClusterError

    if job.state == "FAILED":
        return job.exit_code or ClusterError.exit_code if job.has_failed_by_itself else ClusterError.exit_code
    return EXIT_RUN_STOPPED if job.state == "STOPPED" else 0
