"""Folds of an exported model that come from MLflow; each checkpoint is checked by its SHA-256."""

import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from orchestrator.errors import CheckpointError, DataError
from orchestrator.export.fold_facts import FoldFacts, ended_early, facts_of, shared_params
from orchestrator.export.fold_sources import digests_of
from orchestrator.publishing.checkpoint_store import download_checkpoint, published
from orchestrator.publishing.files_channel import CHECKPOINTS
from orchestrator.tracking.address import refuse_credentials
from orchestrator.tracking.client import Tracker
from orchestrator.tracking.records import ADDRESS_TAG, EARLY_END_TAG, FOLDER_TAG, RUN_KEY_TAG
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.storage.files import read_json, temporary_folder

log = logging.getLogger(__name__)

MODEL_FILES = ("plans.json", "dataset.json")
LARGEST_MODEL_FILE = 256 << 20
"""Bytes; plans and dataset.json of thousands of cases have a few MiB."""


def folds_in_mlflow(tracking_uri: str, name: str) -> "list[MlflowFold]":
    """Those on a tracking server that are called `name`. Raises ConfigError with what is known when there is none, TrackingError."""
    refuse_credentials(tracking_uri, "export: --tracking-uri")
    tracker = Tracker(tracking_uri)
    tracker.ping()
    return [MlflowFold(tracker, run_id) for run_id in tracker.find_runs(name)]


class MlflowFold:
    """A fold from its MLflow run."""

    model_folder: Path | None = None

    def __init__(self, tracker: Tracker, run_id: str) -> None:
        self._tracker, self._run_id = tracker, run_id
        tags, records = tracker.tags(run_id), {name: published(tracker, run_id, name) for name in CHECKPOINTS}
        self.place = str(Path(tags.get(FOLDER_TAG, "")).parent)
        self._files = tracker.list_files(run_id)
        self.facts = FoldFacts(
            run_key=tags.get(RUN_KEY_TAG, run_id),
            model=tags.get(ADDRESS_TAG, run_id).rpartition("/")[0],
            fold=fold_in(tags),
            shared=shared_params(tracker.params(run_id)) | ended_early(tags.get(EARLY_END_TAG, "")),
            cases=self._cases(),
            checkpoints=digests_of({name: record.manifest for name, record in records.items() if record is not None}),
        )

    def fill(self, model: Path) -> FoldFacts:
        """See `FoldSource`."""
        missing = sorted(set(MODEL_FILES) - set(self._files))
        if missing:
            where = f"run {self._run_id} at {self._tracker.uri}"
            raise CheckpointError(
                f"export: {where} has no {' and no '.join(missing)} among its artifacts. Let its training job start once."
            )
        fold = RunFolder(model / f"fold_{self.facts.fold}")
        taken = {
            name: download_checkpoint(self._tracker, self._run_id, name, fold.checkpoint(name)).manifest for name in self.facts.checkpoints
        }
        for file in MODEL_FILES:
            self._fetch_json(file, model / file)
        validated = self._tracker.list_files(self._run_id, "fullval") if "fullval" in self._files else {}
        for name in CHECKPOINTS:
            if f"fullval/{name}" in validated:
                self._files |= self._tracker.list_files(self._run_id, f"fullval/{name}")
                self._fetch_json(f"fullval/{name}/summary.json", fold.summary(name))
        return self.facts.model_copy(update={"checkpoints": digests_of(taken)})

    def _cases(self) -> dict[str, str] | None:
        """From the run's specification, which MLflow has unless its case ids are replaced by pseudonyms."""
        if "run.json" not in self._files:
            return None
        with temporary_folder("nnfleet-export-") as folder:
            self._fetch_json("run.json", folder / "spec.json")
            try:
                return facts_of(RunSpec.model_validate(read_json(folder / "spec.json", "run.json"))).cases
            except ValueError as err:
                log.warning("run.json of run %s is of another version: the contents of its cases are not compared: %s", self._run_id, err)
                return None

    def _fetch_json(self, file: str, target: Path) -> None:
        """Fetch a small JSON file whole. Raises CheckpointError for anything else, TrackingError."""
        with temporary_folder("nnfleet-export-") as folder:
            local, _ = fetched_json(self._tracker, self._run_id, file, self._files.get(file), folder, "export")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(local, target)


class Artifacts(Protocol):
    """What is needed to fetch a file of a run; `orchestrator.tracking.client.Tracker` has it."""

    uri: str

    def download(self, run_id: str, path: str, folder: Path) -> Path: ...


def fetched_json(server: Artifacts, run_id: str, file: str, size: int | None, folder: Path, verb: str) -> tuple[Path, Any]:
    """A small JSON artifact of a run below `folder`, whole, and what it holds. Raises CheckpointError for anything else, TrackingError."""
    where = f"{file} of run {run_id}"
    if (size or 0) > LARGEST_MODEL_FILE:
        raise CheckpointError(f"{verb}: {where} at {server.uri} has {size} bytes: it is no file of nnU-Net.")
    local = server.download(run_id, file, folder)
    try:
        return local, read_json(local, f"{verb}: {where}")
    except DataError as err:
        raise CheckpointError(str(err)) from err


def fold_in(tags: Mapping[str, str]) -> str:
    """The fold that a run's tags name: `0` or `all`. Raises CheckpointError for what would not be one folder inside the model folder."""
    fold = tags.get("nnfleet.fold", "0")
    if not re.fullmatch(r"\d+|all", fold, re.ASCII):
        raise CheckpointError(
            f"export: the run's tag nnfleet.fold is {fold!r}, neither a number nor `all`. Nothing was written; correct the tag."
        )
    return fold
