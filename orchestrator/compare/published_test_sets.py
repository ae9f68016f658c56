"""Scores of held-out test sets as MLflow holds them: the very record of the model folder, beside its table of cases.

It lies in the run of a single fold, or in that of the cross-validation of several; of runs with pseudonyms there is none.
"""

from collections.abc import Iterator
from typing import Protocol

from orchestrator.compare.models import TrainedModel
from orchestrator.errors import CheckpointError
from orchestrator.export.mlflow_folds import Artifacts, fetched_json
from trainers.contract.held_out import HeldOutScores
from trainers.contract.summary import class_keys
from trainers.storage.files import temporary_folder

TEST_SETS = "test"
"""Artifact folder, and beginning of the metrics' names."""
SCORES = "scores.json"


class ScoreServer(Artifacts, Protocol):
    """What is read of a tracking server; `orchestrator.tracking.client.Tracker` is it."""

    def models_in(self, model_folder: str) -> list[str]: ...
    def list_files(self, run_id: str, directory: str = "") -> dict[str, int | None]: ...


def published_scores(server: ScoreServer, model: TrainedModel) -> tuple[list[HeldOutScores], list[str]]:
    """All scores of a model's test sets in MLflow, and a sentence for each record that cannot be read. Raises TrackingError."""
    found, damaged = [], []
    runs = [model.folds[0].mlflow_run_id] if len(model.folds) == 1 else server.models_in(str(model.spec.model_folder))
    for run_id, path, size in (record for run in runs if run for record in _records(server, run)):
        try:
            found.append(_read(server, run_id, path, size, model))
        except (CheckpointError, ValueError) as err:
            damaged.append(f"The scores of a test set of {model.name} in MLflow cannot be read: {str(err).removesuffix('.')}.")
    return found, damaged


def _records(server: ScoreServer, run_id: str) -> Iterator[tuple[str, str, int | None]]:
    """The run, and path and size of each record among its artifacts."""
    if TEST_SETS not in server.list_files(run_id):
        return
    for directory, size in server.list_files(run_id, TEST_SETS).items():
        files = server.list_files(run_id, directory) if size is None else {}
        if (path := f"{directory}/{SCORES}") in files:
            yield run_id, path, files[path]


def _read(server: ScoreServer, run_id: str, path: str, size: int | None, model: TrainedModel) -> HeldOutScores:
    """Raises CheckpointError, ValueError for a record of another version, or of other classes."""
    with temporary_folder("nnfleet-compare-") as folder:
        scores = HeldOutScores.model_validate(fetched_json(server, run_id, path, size, folder, "compare")[1])
    names = set(class_keys(model.labels))
    if not scores.results or any(set(result.metrics) != names for result in scores.results):
        raise ValueError(f"{path} of run {run_id} holds other classes than the model")
    return scores
