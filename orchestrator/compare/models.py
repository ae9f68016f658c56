"""Trained models with their full validations: the folds of one model folder, read from the run folders or, where these are not seen, from
MLflow (`orchestrator/compare/published_results.py`)."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from orchestrator.compare.cheap import CheapAndFull, cheap_and_full
from orchestrator.publishing.validation_report import ema_of
from orchestrator.run.candidates import Candidates, read_candidates
from trainers.contract.commits import EpochRow, begun_unix, early_end_of, newest_committed
from trainers.contract.held_out import HeldOutScores
from trainers.contract.lesions import LESION_COUNTS
from trainers.contract.plans import Labels, labels_of, load_dataset_json
from trainers.contract.records import read_result
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import USUAL_PLANS, CheckpointName, RunSpec
from trainers.contract.summary import CaseResult, extended_summary

RUN_FOLDER = "run folder"
"""Source of a fold whose folder is seen here."""


class Unfinished(str):
    """The reason why a run cannot be compared yet: its full validation has not ended."""

    __slots__ = ()


@dataclass(frozen=True)
class ValidatedFold:
    """A fold of which every case has been validated with one checkpoint."""

    folder: RunFolder
    """Where it lies now, if it is seen here: `spec` names the place where it was trained."""
    spec: RunSpec
    results: tuple[CaseResult, ...]
    """In the order of the split; their predictions where they lie now."""
    ema_pseudo_dice: float | None
    """Of these very weights; None where it is not known."""
    history: tuple[EpochRow, ...]
    """Empty where it is not known; of a fold from MLflow the smoothed pseudo-Dice alone."""
    source: str = RUN_FOLDER
    """Where the results were read: `RUN_FOLDER`, or the MLflow server."""
    labels: Labels | None = None
    """Of a fold from MLflow; else the model folder has them."""
    published: Mapping[CheckpointName, CheapAndFull] | None = None
    """`checkpoints` of a fold from MLflow; else the run folder has them."""
    mlflow_run_id: str = ""
    """Of a fold from MLflow."""
    early_end: str = ""
    """How it ended before its schedule, as somebody asked; empty: it did not."""

    @cached_property
    def checkpoints(self) -> dict[CheckpointName, CheapAndFull]:
        """Of every checkpoint that was validated, of the one that is not compared too."""
        if self.published is not None:
            return dict(self.published)
        found = {name: cheap_and_full(self.folder, name) for name in get_args(CheckpointName)}
        return {name: scores for name, scores in found.items() if scores is not None}

    @property
    def begun_unix(self) -> float:
        """When its first epoch began; 0 where that is not known."""
        return begun_unix(self.history)

    @cached_property
    def candidates(self) -> Candidates | None:
        """What the full validation says of the best epochs, of a run that keeps them."""
        return read_candidates(self.folder)


@dataclass(frozen=True)
class TrainedModel:
    """The folds of one model folder: one dataset, plans, configuration, trainer, variant and seed."""

    name: str
    folds: tuple[ValidatedFold, ...]
    published_test_sets: tuple[HeldOutScores, ...] = ()
    """Those that MLflow holds, of a model with folds from there; the model folder has its own."""
    unread_test_sets: tuple[str, ...] = ()
    """A sentence for each that MLflow holds and that cannot be read."""

    @property
    def is_from_mlflow(self) -> bool:
        """True when the results of any of its folds were read from MLflow, so that its model folder may not be seen."""
        return any(fold.source != RUN_FOLDER for fold in self.folds)

    @property
    def spec(self) -> RunSpec:
        """Of its first fold: for what all folds share."""
        return self.folds[0].spec

    @property
    def early_end(self) -> str:
        """How its first fold ended before its schedule; empty: it did not. Folds that differ in it are no model."""
        return self.folds[0].early_end

    @property
    def has_pseudonyms(self) -> bool:
        """True where one of its folds asks for pseudonyms: the cases of all of them are then named so."""
        return any(fold.spec.pseudonyms for fold in self.folds)

    @property
    def folder(self) -> Path:
        """The model folder, where it lies now."""
        return self.folds[0].folder.model_folder

    @property
    def results(self) -> list[CaseResult]:
        """Of all folds: each case is predicted by the fold that was not trained on it."""
        return [result for fold in self.folds for result in fold.results]

    @cached_property
    def labels(self) -> Labels:
        """Of the model folder's dataset.json, or of that in MLflow. Raises DataError."""
        if all(fold.source != RUN_FOLDER for fold in self.folds) and self.folds[0].labels is not None:
            return self.folds[0].labels
        return labels_of(load_dataset_json(self.folder), str(self.folder / "dataset.json"))

    @cached_property
    def summary(self) -> dict[str, object]:
        """Means over the cases of all folds, per class, then over the classes: nnU-Net's number for a cross-validation.

        With a fold from MLflow, which has the scores of lesions and not their numbers, there are no numbers of them.
        """
        found = extended_summary(self.results, self.labels)
        return found if all(fold.source == RUN_FOLDER for fold in self.folds) else without_lesion_counts(found)


def without_lesion_counts(summary: Mapping[str, Any]) -> dict[str, object]:
    """The summary without the numbers of lesions in each class. Pure."""
    classes = {
        name: {key: value for key, value in values.items() if key not in LESION_COUNTS} for name, values in summary["classes"].items()
    }
    return {**summary, "classes": classes}


def read_fold(folder: RunFolder, spec: RunSpec, checkpoint: CheckpointName) -> ValidatedFold | str:
    """The full validation of a run, or the reason why it cannot be compared. Raises StorageError, OSError."""
    if reason := not_held_out(spec):
        return reason
    stored = (read_result(folder, checkpoint, case) for case in spec.val_cases)
    predictions = str(folder.validation(checkpoint))
    found = [_placed(result, predictions) for result in stored if result is not None]
    if len(found) < len(spec.val_cases):
        return Unfinished(f"{len(found)} of {len(spec.val_cases)} cases are validated with its {checkpoint} checkpoint")
    digests = {result.checkpoint_sha256 for result in found}
    if len(digests) > 1:
        return f"its cases were validated with {len(digests)} different {checkpoint} checkpoints; `nnfleet validate` brings them up to date"
    committed = newest_committed(folder)
    history = () if committed is None else committed.history
    early = early_end_of(spec, committed)
    return ValidatedFold(folder, spec, tuple(found), ema_of(folder, checkpoint, digests.pop()), history, early_end=early)


def not_held_out(spec: RunSpec) -> str:
    """Why a full validation of a run would be none of other cases than it was trained on; empty where it is. Pure."""
    if spec.fold == "all":
        return "fold all was trained on every case that it validates"
    return "" if spec.val_cases else f"fold {spec.fold} holds no case back, so that nothing was validated"


def _placed(result: CaseResult, predictions: str) -> CaseResult:
    """A result of a folder that may have been moved or copied."""
    return result.model_copy(update={"prediction_file": os.path.join(predictions, os.path.basename(result.prediction_file))})


def models_of(folds: Sequence[ValidatedFold]) -> list[TrainedModel]:
    """The models that folds belong to, in the order in which they first appear, with short names that distinguish them."""
    by_folder: dict[Path, list[ValidatedFold]] = {}
    for fold in folds:
        by_folder.setdefault(fold.folder.model_folder, []).append(fold)
    groups = list(by_folder.values())
    names = short_names([group[0] for group in groups])
    is_clear = Counter(names)
    names = [name if is_clear[name] == 1 else f"{name} in {folder.name}" for name, folder in zip(names, by_folder, strict=True)]
    return [
        TrainedModel(name, tuple(sorted(group, key=lambda fold: str(fold.spec.fold)))) for name, group in zip(names, groups, strict=True)
    ]


def short_names(folds: Sequence[ValidatedFold], *, with_seed: bool = True) -> list[str]:
    """What distinguishes these models, of configuration, trainer, plans, variant, seed and place: `3d_fullres nnUNetTrainerDA5`. Pure.

    Trainers alone are named where nothing else differs. Where none of the first three does, configuration, trainer and variant are, and
    plans that are not nnU-Net's usual ones: without them the name would be that of another model.
    """
    parts = [_parts(fold.spec, fold.folder, with_seed=with_seed) for fold in folds]
    differing = [place for place in range(len(parts[0])) if len({part[place] for part in parts}) > 1] if parts else []
    if not differing or all(place > 2 for place in differing):
        other_plans = [2] if any(part[2] != USUAL_PLANS for part in parts) else []
        differing = [0, 1, *other_plans, *sorted({3, *differing})]
    return [" ".join(part[place] for place in differing if part[place]) for part in parts]


def _parts(spec: RunSpec, folder: RunFolder, *, with_seed: bool) -> tuple[str, ...]:
    seed = f"seed {spec.seed}" if with_seed else ""
    place = f"in {folder.model_folder.parent.parent}"
    return spec.configuration, spec.trainer, spec.plans, spec.variant, seed, place
