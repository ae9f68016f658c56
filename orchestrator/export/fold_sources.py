"""Folds of an exported model that come from their run folders; each checkpoint is checked by its SHA-256."""

import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from orchestrator.errors import CheckpointError, ConfigError
from orchestrator.export.fold_facts import FoldFacts, facts_in
from orchestrator.publishing.checkpoint_store import check_file
from orchestrator.publishing.files_channel import CHECKPOINTS
from orchestrator.publishing.reconcile import called
from orchestrator.publishing.shared_files import dataset_file, plans_file
from orchestrator.run.below import run_folders_below
from orchestrator.run.candidates import read_candidates
from trainers.contract.commits import Manifest, newest_committed
from trainers.contract.names import shown
from trainers.contract.records import read_result
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointName, candidate_name

log = logging.getLogger(__name__)
WINNER = "winner"
"""Of a run's candidates the one of the highest full Dice. It was chosen on its own validation fold, so that Dice is optimistic."""


class FoldSource(Protocol):
    """A fold that can be exported."""

    facts: FoldFacts
    place: str
    """The model folder that it was trained in, as far as it is known."""
    model_folder: Path | None
    """The same, where it is seen here and its summaries may be copied."""

    def fill(self, model: Path) -> FoldFacts:
        """Write the fold, with the files of its model, into a new model folder; returns what was written.

        Raises CheckpointError for bytes that are not what they should be, TrackingError, OSError.
        """


class _WithFacts(Protocol):
    facts: FoldFacts


AnyFold = TypeVar("AnyFold", bound=_WithFacts)


def with_checkpoints(folds: Sequence[AnyFold]) -> tuple[list[AnyFold], list[str]]:
    """The folds that have a checkpoint, and the names of those that have none yet: a model leaves these out and says so. Pure."""
    return [fold for fold in folds if fold.facts.checkpoints], [fold.facts.fold for fold in folds if not fold.facts.checkpoints]


def folds_below(results: Path, name: str, candidate: str = "") -> "list[FolderFold]":
    """Those below a results folder that are called `name`, with a `candidate` beside best and final if one is named.

    Raises ConfigError with what is known when there is none.
    """
    found, unknown = called([name], run_folders_below(results), results)
    if unknown:
        raise unknown[name]
    return [FolderFold(folder, candidate) for folder in found]


class FolderFold:
    """A fold from its run folder."""

    def __init__(self, folder: RunFolder, candidate: str = "") -> None:
        self.folder, self._spec, self._candidate = folder, folder.spec(), candidate
        self.place = str(folder.model_folder)
        self.model_folder = None if self._spec.pseudonyms else folder.model_folder
        facts = facts_in(folder)
        hidden = {"cases": None, "previous_stage": None} if self._spec.pseudonyms else {}
        kept = {"checkpoints": digests_of(self._manifests()), "probabilities": self._probabilities(), "optimistic": self._optimistic()}
        self.facts = facts.model_copy(update={**kept, **hidden})

    def _manifests(self) -> dict[CheckpointName, Manifest]:
        committed = newest_committed(self.folder)
        if committed is None or committed.run_key != self._spec.run_key:
            return {}
        return committed.checkpoints

    def _optimistic(self) -> dict[str, str]:
        manifest = candidate_of(self.folder, self._candidate) if self._candidate else None
        return {self._candidate: manifest.sha256} if manifest else {}

    def _probabilities(self) -> tuple[CheckpointName, ...]:
        """Checkpoints whose every validation case has its prediction and probabilities; with pseudonyms none, as files name cases."""
        spec, folder = self._spec, self.folder
        if spec.pseudonyms or not spec.validation.npz or not spec.val_cases:
            return ()
        return tuple(
            name
            for name in CHECKPOINTS
            if folder.summary(name).is_file() and all(folder.has_probabilities_due(name, spec, case) for case in spec.val_cases)
        )

    def fill(self, model: Path) -> FoldFacts:
        """See `FoldSource`. A best checkpoint that a newer one replaces meanwhile is no error: the newer one is taken."""
        try:
            return self._filled(model)
        except (CheckpointError, FileNotFoundError) as err:
            log.info("the checkpoints in %s are read once more: %s", self.folder.root, err)
        return self._filled(model)

    def _filled(self, model: Path) -> FoldFacts:
        manifests = self._manifests()
        fold = RunFolder(model / f"fold_{self.facts.fold}")
        for name, manifest in manifests.items():
            self._copy(manifest, self.folder.checkpoint(name), fold.checkpoint(name))
        if self.facts.optimistic and (candidate := candidate_of(self.folder, self._candidate)):
            own = self.folder.root / candidate.file
            self._copy(candidate, own, optimistic_file(fold, self._candidate))
        for source, target in self._files(model, fold).items():
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
        for name in self.facts.probabilities:
            self._copy_predictions(name, fold)
        return self.facts.model_copy(update={"checkpoints": digests_of(manifests)})

    def _copy_predictions(self, name: CheckpointName, fold: RunFolder) -> None:
        """The prediction of every case with its probabilities: what nnU-Net's ensembling reads."""
        fold.validation(name).mkdir(parents=True, exist_ok=True)
        results = (read_result(self.folder, name, case) for case in self._spec.val_cases)
        for result in filter(None, results):
            prediction = self.folder.validation(name) / Path(result.prediction_file).name
            beside = prediction.with_name(f"{result.case_id}.json")  # TIFF: its spacing
            for file in (prediction, beside, *self.folder.probabilities(name, result.case_id)):
                if file.is_file():
                    shutil.copyfile(file, fold.validation(name) / file.name)

    def _copy(self, manifest: Manifest, named: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        own = self.folder.root / manifest.file
        shutil.copyfile(own if own.is_file() else named, target)
        check_file(target, manifest, str(own))

    def _files(self, model: Path, fold: RunFolder) -> Mapping[Path, Path]:
        """Small file -> its place in a model folder. With pseudonyms those that MLflow gets, which name no case."""
        summary = self.folder.shared_summary if self._spec.pseudonyms else self.folder.summary
        return {
            plans_file(self.folder, self._spec): model / "plans.json",
            dataset_file(self.folder, self._spec): model / "dataset.json",
            self.folder.model_folder / "dataset_fingerprint.json": model / "dataset_fingerprint.json",
            **{summary(name): fold.summary(name) for name in CHECKPOINTS},
        }


def refuse_unknown(candidate: str) -> None:
    """Raise ConfigError for what is no name of a candidate; the empty one means none."""
    if candidate and not re.fullmatch(rf"{WINNER}|candidate_[0-9]+", candidate, re.ASCII):
        raise ConfigError(
            f"export: --checkpoint {shown(candidate)} is no candidate. Name `{WINNER}` or `candidate_<epoch>`; best and final are always "
            "exported."
        )


def candidate_of(folder: RunFolder, candidate: str) -> Manifest | None:
    """The weights of a candidate of a run: those of `candidate_<epoch>`, or of the `winner` by the full Dice; None where it has none."""
    committed, found = newest_committed(folder), read_candidates(folder)
    if candidate == WINNER:
        candidate = candidate_name(found.winner) if found is not None and found.winner is not None else ""
    return next((manifest for manifest in committed.candidates if manifest.checkpoint == candidate), None) if committed else None


def optimistic_file(fold: RunFolder, candidate: str) -> Path:
    """Where an exported fold has the weights of a candidate: a name that nnU-Net's predict takes."""
    return fold.root / f"checkpoint_{candidate}.pth"


def digests_of(manifests: Mapping[CheckpointName, Manifest]) -> dict[CheckpointName, str]:
    """Name -> SHA-256."""
    return {name: manifest.sha256 for name, manifest in manifests.items()}
