"""Runs as the folds of their models: what stands on a line of its own, and in which order. Pure but for what is read of run folders: the
Dice over all cases, and whether folds are alike."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING

from orchestrator.errors import NnfleetError
from trainers.contract.run_folder import RunFolder
from trainers.contract.states import RunState

if TYPE_CHECKING:
    from orchestrator.run.status import RunStatus
    from trainers.contract.run_spec import CheckpointName

ORDER = (
    *(RunState.RUNNING, RunState.RECOVERING, RunState.VALIDATING, RunState.QUEUED),
    *(RunState.FAILED_CODE, RunState.FAILED_CONFIG, RunState.FAILED_CLUSTER, RunState.PAUSED, RunState.STOPPED, RunState.SUCCEEDED),
)
"""Of a model's folds the state that comes first here stands for all; models are shown in this order too."""
TRAINS = frozenset({RunState.RUNNING, RunState.RECOVERING})
"""States in which the time left means something."""
QUIET = frozenset({RunState.QUEUED, RunState.SUCCEEDED})
"""Folds in these states are folded into their model's line."""


@dataclass(frozen=True)
class Model:
    """Runs that are folds of one model, in the order of the folds."""

    name: str
    runs: tuple["RunStatus", ...]

    @property
    def state(self) -> RunState:
        """What its folds are doing, in one word."""
        return min((run.state for run in self.runs), key=ORDER.index)

    @property
    def state_text(self) -> str:
        """`2 RUNNING`, or the one state that a single run has."""
        count = sum(run.state is self.state for run in self.runs)
        return self.state.value if len(self.runs) == 1 else f"{count} {self.state.value}"

    @property
    def num_succeeded(self) -> int:
        """Folds that are done."""
        return sum(run.state is RunState.SUCCEEDED for run in self.runs)

    @property
    def seconds_left(self) -> float | None:
        """Until the last fold that trains is trained; None while some wait or have no epoch yet, since nobody knows how long they take."""
        if any(run.state is RunState.QUEUED for run in self.runs):
            return None
        left = [run.seconds_left for run in self.runs if run.state in TRAINS]
        known = [each for each in left if each is not None]
        return (max(known) or None) if known and len(known) == len(left) else None  # none is left once its epochs are done

    @property
    def counted(self) -> tuple["RunStatus", ...]:
        """Those of its folds that means are taken of: those with numbers, as export chooses folds; `all` where it is alone."""
        return tuple(run for run in self.runs if run.fold != "all") or self.runs

    @property
    def is_of_training_cases(self) -> bool:
        """True where its full Dice is that of fold `all`, of the cases that it was trained on."""
        return self.counted[0].fold == "all"

    @cached_property
    def unlike(self) -> str:
        """In what its folds differ, so that no mean is taken over them; empty where one may be.

        By the rule of comparisons; where a run folder is not to be seen, by the number of epochs.
        """
        from orchestrator.compare.unlike import unlike_folds

        if len(self.counted) == 1:
            return ""
        try:
            return "; ".join(unlike_folds([RunFolder(run.run_folder) for run in self.counted]))
        except (NnfleetError, OSError):
            epochs = sorted({run.epochs for run in self.counted})
            return f"its folds have {' and '.join(map(str, epochs))} epochs" if len(epochs) > 1 else ""

    def dice_and_source(self, checkpoint: "CheckpointName") -> tuple[float | None, bool]:
        """Mean foreground full Dice of its validated folds, None while there is none; and whether that is the mean over all cases (else,
        where the run folders are not to be seen, of the folds' means). None too where its folds are unlike.
        """
        from orchestrator.run.model_dice import dice_over_cases

        validated = [run for run in self.counted if checkpoint in run.full_dice]
        if not validated or self.unlike:
            return None, True
        if len(validated) == 1:
            return validated[0].full_dice[checkpoint], True
        exact = dice_over_cases([run.run_folder for run in validated], checkpoint)
        means = [run.full_dice[checkpoint] for run in validated if not math.isnan(run.full_dice[checkpoint])]
        return (exact, True) if exact is not None else (fmean(means) if means else math.nan, False)


def models_of(statuses: Sequence["RunStatus"]) -> list[Model]:
    """The models of these runs: those at work first, then those that wait, then the ended ones."""
    groups: dict[str, list[RunStatus]] = {}
    for status in by_fold(statuses):
        groups.setdefault(status.model, []).append(status)
    return sorted((Model(name, tuple(runs)) for name, runs in groups.items()), key=lambda model: ORDER.index(model.state))


def by_fold(statuses: Sequence["RunStatus"]) -> list["RunStatus"]:
    """Models in the order in which they were reported, each with its folds from 0 on; `all` is the last one."""
    models = {model: place for place, model in enumerate(dict.fromkeys(status.model for status in statuses))}

    def place(status: "RunStatus") -> tuple[int, float]:
        fold = status.address.rpartition("/")[2]
        return models[status.model], float(fold) if fold.isdecimal() else math.inf

    return sorted(statuses, key=place)


def unfolded(model: Model, *, all_runs: bool) -> list["RunStatus"]:
    """The folds of a model that get a line of their own: those that wait or succeeded do so only if all are asked for."""
    return [run for run in model.runs if all_runs or run.state not in QUIET] if len(model.runs) > 1 else []


def counts_line(statuses: Sequence["RunStatus"]) -> str:
    """`12 runs of 3 models: 2 RUNNING, 7 QUEUED, 3 SUCCEEDED.`"""
    count = Counter(status.state for status in statuses)
    models = len({status.model for status in statuses})
    states = ", ".join(f"{count[state]} {state.value}" for state in ORDER if count[state])
    return f"{len(statuses)} runs of {models} model{'s' * (models != 1)}: {states}."


def by_reason(addresses: Sequence[str], texts: Sequence[str]) -> list[str]:
    """`address and 3 more of its model: text` for each text, in their order; texts that are equal within a model stand once."""
    groups: dict[tuple[str, str], list[str]] = {}
    for address, text in zip(addresses, texts, strict=True):
        groups.setdefault((address.rpartition("/")[0], text), []).append(address)
    more = {key: f" and {len(runs) - 1} more of its model" if len(runs) > 1 else "" for key, runs in groups.items()}
    return [f"{runs[0]}{more[key]}: {key[1]}" for key, runs in groups.items()]
