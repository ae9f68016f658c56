"""How long runs are expected to train, from what epochs of the same model took before; reads run folders.

What was not measured is not known.
"""

import contextlib
import statistics
from collections.abc import Sequence

from orchestrator.errors import NnfleetError
from trainers.contract.commits import RECENT_EPOCHS, Committed, EpochRow, newest_committed
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec


class Measured:
    """What epochs took below the model folders of a plan, each of which is read once."""

    def __init__(self) -> None:
        self._trained: dict[str, list[tuple[RunSpec, Committed]]] = {}

    def epoch_s(self, spec: RunSpec) -> float | None:
        """Median seconds of an epoch of the folds of the same model, with as many iterations, on as many workers of the same kind (with a
        GPU or without); None where there is none."""
        medians = []
        for other, committed in self._of_model(spec):
            rows = [row for row in committed.history[-RECENT_EPOCHS:] if _is_alike(other, row, spec)]
            medians += [statistics.median(row.epoch_s for row in rows)] if rows else []
        return statistics.median(medians) if medians else None

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
    )
