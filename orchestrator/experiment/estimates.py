"""How long runs are expected to train, from what epochs of the same model took before; reads run folders.

What was not measured is not known.
"""

import contextlib
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.errors import NnfleetError
from orchestrator.run.estimate import estimate_error
from trainers.contract.bottleneck import Limit, expected_limit
from trainers.contract.commits import RECENT_EPOCHS, Committed, EpochRow, newest_committed
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec

RECENT_RUNS = 5
"""So many runs show how wrong expected durations are."""
MEMORY_SIZE = re.compile(r"\d+gi?b?")
"""A word in a GPU's name that several models share."""


@dataclass(frozen=True)
class EpochTime:
    """What an epoch took where it was measured."""

    epoch_s: float
    device: str
    """Kind of the device; empty: not recorded."""
    gpu_memory_gib: float = 0.0
    """Peak of a worker's GPU; 0 on CPUs."""


class Measured:
    """What epochs took below the model folders of a plan, each of which is read once."""

    def __init__(self) -> None:
        self._trained: dict[str, list[tuple[RunSpec, Committed]]] = {}

    def epoch_time(self, spec: RunSpec) -> EpochTime | None:
        """Median seconds of an epoch of the folds of the same model, with as many iterations, on as many workers of the same kind (with a
        GPU or without), on the kind of device that trained last, of those that the run asks for; None where there is none."""
        folds = self._alike(spec)
        if not folds:
            return None
        epoch_s = statistics.median(statistics.median(row.epoch_s for row in rows) for rows in folds)
        return EpochTime(epoch_s, folds[-1][-1].device, max(row.gpu_memory_gib for rows in folds for row in rows))

    def limit(self, spec: RunSpec) -> Limit | None:
        """What is expected to limit a run: by the last epochs of the fold of the same model that trained last, as in `epoch_time`, with the
        loader actors that a worker of this run comes to have at most; None where it is not known."""
        folds = self._alike(spec)
        most = spec.loader.most or spec.loader.actors
        return expected_limit(folds[-1], most, spec.loader.placement) if folds else None

    def _alike(self, spec: RunSpec) -> list[list[EpochRow]]:
        """The last epochs of each fold of the same model that were trained like `spec`, on the kind of device that trained last; the
        fold that trained last stands last."""
        folds = []
        for other, committed in self._of_model(spec):
            alike = [row for row in committed.history if _is_alike(other, row, spec)]
            if alike:
                folds.append([row for row in alike[-RECENT_EPOCHS:] if row.device == alike[-1].device])
        folds.sort(key=lambda rows: rows[-1].ended_unix)
        return [rows for rows in folds if rows[-1].device == folds[-1][-1].device]

    def epoch_s(self, spec: RunSpec) -> float | None:
        """The seconds of `epoch_time`."""
        found = self.epoch_time(spec)
        return None if found is None else found.epoch_s

    def errors(self) -> list[float]:
        """How wrong the expected durations were of the runs of the models that were asked for (see `estimate_metrics`), the last
        RECENT_RUNS that recorded it, oldest first."""
        found = [
            (committed.history[-1].ended_unix, error)
            for runs in self._trained.values()
            for spec, committed in runs
            if (error := estimate_error(RunFolder(spec.run_folder), committed)) is not None
        ]
        return [error for _, error in sorted(found)[-RECENT_RUNS:]]

    def _of_model(self, spec: RunSpec) -> list[tuple[RunSpec, Committed]]:
        key = str(spec.model_folder)
        if key not in self._trained:
            self._trained[key] = list(_trained_below(spec))
        return self._trained[key]


def _trained_below(spec: RunSpec) -> Sequence[tuple[RunSpec, Committed]]:
    found = []
    for folder in sorted(spec.model_folder.glob("fold_*")):
        with contextlib.suppress(NnfleetError, OSError):  # an estimate is never a reason to refuse a plan
            committed = newest_committed(RunFolder(folder))
            if committed is not None:
                found.append((RunFolder(folder).spec(), committed))
    return found


def _is_alike(other: RunSpec, row: EpochRow, spec: RunSpec) -> bool:
    mine, theirs = spec.schedule, other.schedule
    has_gpu = row.gpu_memory_gib > 0
    return (
        (theirs.train_iterations, theirs.val_iterations) == (mine.train_iterations, mine.val_iterations)
        and row.world_size == spec.workers.least
        and has_gpu == bool(spec.workers.gpus)
        and row.epoch_s > 0
        and _is_of_type(other, row.device, spec.workers.accelerator_type)
    )


def _is_of_type(other: RunSpec, device: str, wanted: str) -> bool:
    """Whether a device is of a type by Ray's name (`A100` of `NVIDIA A100-SXM4-40GB`), or its run asks for it by a name of one's own
    (`fast`, `A100-80G`). What a run asks for now says nothing of its earlier epochs on another model (`A100` of `Tesla T4`)."""
    words, own = _words(device), _words(wanted)
    if not wanted or f" {' '.join(own)} " in f" {' '.join(words)} ":
        return True
    models = {word for word in own if any(map(str.isdigit, word)) and not MEMORY_SIZE.fullmatch(word)}
    return wanted == other.workers.accelerator_type and (not models or not models.isdisjoint(words))


def _words(name: str) -> list[str]:
    return name.lower().replace("-", " ").split()
