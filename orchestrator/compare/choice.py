"""Which runs are compared: those that were named, or all below a results folder, as far as they have been validated."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.compare.answer import Answer, answer
from orchestrator.compare.models import ValidatedFold, models_of, read_fold
from orchestrator.errors import ConfigError
from orchestrator.run.below import run_folders_below
from orchestrator.run.names import Names, resolve_all
from orchestrator.tracking.binding import noted_run_id
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointName, RunSpec
from trainers.errors import DataError, StorageError


@dataclass(frozen=True)
class Compared:
    """An answer, and what is not in it."""

    answer: Answer
    left: tuple[str, ...]
    """A sentence for each run that was left out, with the reason."""


def compared(
    results: Path, names: Sequence[str], checkpoint: CheckpointName, patients: str | None = None, *, is_forced: bool = False
) -> Compared:
    """Compare the models of the runs below `results`. Raises ConfigError where a name means none, or nothing is left to compare."""
    runs, left = _runs(results)
    known = [Names(spec.run_key, spec.address, run_id, str(folder.root)) for folder, spec, run_id in runs]
    wanted = [runs[i] for i in resolve_all(names, known, f"below {results}")] if names else runs
    folds: list[ValidatedFold] = []
    for folder, spec, _ in wanted:
        found = _fold(folder, spec, checkpoint)
        if isinstance(found, str):
            left.append(f"{spec.address} ({spec.run_key}): {found}.")
        else:
            folds.append(found)
    if not folds:
        why = f" {' '.join(left[:3])}" if left else ""
        raise ConfigError(f"compare: below {results} no run has a full validation of its {checkpoint} checkpoint.{why} Train first.")
    return Compared(answer(models_of(folds), checkpoint, patients, is_forced=is_forced), tuple(left))


def _fold(folder: RunFolder, spec: RunSpec, checkpoint: CheckpointName) -> ValidatedFold | str:
    """As `read_fold`; a folder that is away or refused gives a reason too."""
    try:
        return read_fold(folder, spec, checkpoint)
    except (StorageError, OSError) as err:
        return str(err).removesuffix(".")


def _runs(results: Path) -> tuple[list[tuple[RunFolder, RunSpec, str]], list[str]]:
    """All runs of ours, each with the id of its MLflow run, and a sentence for each folder whose run cannot be read."""
    runs, damaged = [], []
    for folder in run_folders_below(results):
        try:
            runs.append((folder, folder.spec(), noted_run_id(folder)))
        except (DataError, StorageError) as err:
            damaged.append(str(err))
    return runs, damaged
