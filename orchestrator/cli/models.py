"""Runs as the folds of their models: what stands on a line of its own, and in which order. Pure but for what is read of run folders: the
Dice over all cases, and whether folds are alike."""

import contextlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.errors import NnfleetError
from orchestrator.run.names import UNPLANNED
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


class Older(NamedTuple):
    """Why a run is no fold of the model that its address names now."""

    why: str
    is_replaced: bool
    """Another run has its folder."""


@dataclass(frozen=True)
class Model:
    """Runs that are folds of one model, in the order of the folds."""

    address: str
    runs: tuple["RunStatus", ...]
    older: Older | None = None
    """Of runs that stand beside the model of this address."""

    @property
    def name(self) -> str:
        """Its address, or that of its only run."""
        return f"{self.address if len(self.runs) > 1 else self.runs[0].address}{' (older)' if self.older else ''}"

    @property
    def state(self) -> RunState:
        """What its folds are doing, in one word."""
        return min((run.state for run in self.runs), key=ORDER.index)

    @property
    def states(self) -> dict[RunState, int]:
        """How many of its folds are in each state, those at work first."""
        count = Counter(run.state for run in self.runs)
        return {state: count[state] for state in ORDER if count[state]}

    @property
    def state_texts(self) -> list[tuple[str, RunState]]:
        """`1 RUNNING`, `2 FAILED`, `3 SUCCEEDED`, each with a state of it; of a single run its one state. Whose fault a failure was stands
        beside the fold."""
        if len(self.runs) == 1:
            return [(self.state.value, self.state)]
        counts: dict[str, int] = {}
        first: dict[str, RunState] = {}
        for state, count in self.states.items():
            label = "FAILED" if state.is_failure else state.value
            counts[label] = counts.get(label, 0) + count
            first.setdefault(label, state)
        return [(f"{counts[label]} {label}", state) for label, state in first.items()]

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
        with contextlib.suppress(NnfleetError, OSError):
            if self._has_folders:
                return "; ".join(unlike_folds([RunFolder(run.run_folder) for run in self.counted]))
        epochs = sorted({run.epochs for run in self.counted})
        return f"its folds have {' and '.join(map(str, epochs))} epochs" if len(epochs) > 1 else ""

    @property
    def _has_folders(self) -> bool:
        """False where other runs have the folders of its runs now."""
        return self.older is None or not self.older.is_replaced

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
        exact = dice_over_cases([run.run_folder for run in validated], checkpoint) if self._has_folders else None
        means = [run.full_dice[checkpoint] for run in validated if not math.isnan(run.full_dice[checkpoint])]
        return (exact, True) if exact is not None else (fmean(means) if means else math.nan, False)


def models_of(statuses: Sequence["RunStatus"], known: Sequence["RunStatus"] | None = None) -> list[Model]:
    """The models of these runs: those at work first, then those that wait, then the ended ones. `known`: all runs that are known, where
    these are not all."""
    older = older_of(statuses if known is None else known)
    groups: dict[tuple[str, Older | None], list[RunStatus]] = {}
    for status in by_fold(statuses):
        groups.setdefault((status.model, older.get(status.run_key)), []).append(status)
    models = (Model(address, tuple(runs), why) for (address, why), runs in groups.items())
    return sorted(models, key=lambda model: (ORDER.index(model.state), model.older is not None))


def each_run(statuses: Sequence["RunStatus"], known: Sequence["RunStatus"] | None = None) -> list[Model]:
    """Likewise with a line for each run, in the order of the folds."""
    older = older_of(statuses if known is None else known)
    return [Model(run.model, (run,), older.get(run.run_key)) for run in by_fold(statuses)]


def older_of(statuses: Sequence["RunStatus"]) -> dict[str, Older]:
    """Run key -> why that run is no fold of the model that its address names now: another run has its folder (of several in one folder the
    last one owns it), or it was trained by older code, by the rule of comparisons."""
    from orchestrator.compare.older import Coded, older_code

    begun = [status for status in statuses if status.is_claimed and not status.run_key.startswith(UNPLANNED)]
    owners = {status.run_folder: status for status in begun}
    found = {s.run_key: _replaced(s, owners[s.run_folder]) for s in begun if owners[s.run_folder].run_key != s.run_key}
    models: dict[str, list[RunStatus]] = {}
    for status in begun:
        if status.run_key not in found:
            models.setdefault(status.model, []).append(status)
    for runs in models.values():
        texts = older_code([Coded(run.own_code, run.begun_unix) for run in runs])
        found |= {run.run_key: Older(f"trained by older code: {text}", False) for run, text in zip(runs, texts, strict=True) if text}
    return found


def _replaced(run: "RunStatus", owner: "RunStatus") -> Older:
    is_older = bool(run.own_code and owner.own_code) and run.own_code != owner.own_code
    code = f"; it was trained by older code: {run.own_code}, now {owner.own_code}" if is_older else ""
    return Older(f"another run has its folder now{code}", True)


def older_lines(models: Sequence[Model]) -> list[str]:
    """`17/2d/t/0 (older): another run has its folder now.` for each model that is older."""
    return [f"{model.name}: {model.older.why}." for model in models if model.older is not None]


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
