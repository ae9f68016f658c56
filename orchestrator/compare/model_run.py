"""The MLflow run of a model: its cross-validated result over the cases of all folds, beside the runs of the folds and never one of them.

There is one on a server for each model, of one dataset, plans, configuration, trainer, seed, schedule and data. It is written when the fold
that ends last is validated, and again by `nnfleet sync`; the same result changes nothing.
"""

import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.compare.cross_validation import CHECKPOINT, CrossValidation, UnderWay, fold_folders, has_not_ended, publishable
from orchestrator.compare.crossval_folder import by_file_name, crossval_summary
from orchestrator.compare.figures import classes_figure
from orchestrator.compare.text_table import number
from orchestrator.export.fold_facts import ended_early, facts_of, shared_params
from orchestrator.publishing.reconcile import Synced, is_alive
from orchestrator.publishing.validation_report import without_case_ids
from orchestrator.run.job_record import JobRecord
from orchestrator.run.names import short_address
from orchestrator.statistics.pairs import mean_interval
from orchestrator.tracking.binding import experiment_of, server_of
from orchestrator.tracking.groups import grouping_tags
from orchestrator.tracking.records import (
    FOLDER_TAG,
    FOLDS_TAG,
    MAX_CLASS_METRICS,
    MODEL_KEY_TAG,
    NOTE_TAG,
    ModelRun,
    artifact_picture,
    early_end_tags,
    fixed_params,
    metric_path,
    params_of,
)
from trainers.contract.lesions import LESION_SCORES
from trainers.contract.plans import load_splits
from trainers.contract.pseudonyms import pseudonym_salt
from trainers.contract.records import read_mlflow_run
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.contract.summary import CaseResult, Row, summary_bytes, table_rows, worst_first
from trainers.contract.trainer_table import RECIPE_VERSION
from trainers.errors import DataError, NnfleetError

if TYPE_CHECKING:
    from orchestrator.tracking.client import Tracker

log = logging.getLogger(__name__)

CONTENT_TAG = "nnfleet.content"
"""SHA-256 of everything that was sent; set last, so what is equal to it has arrived."""
PICTURE = "dice.png"
"""Artifact path of the picture in the description."""
WORST_SHOWN = 3


@dataclass(frozen=True)
class ModelReport:
    """What MLflow gets of a cross-validation."""

    run: ModelRun
    metrics: dict[str, float]
    table: list[Row]
    summary: bytes
    note: str
    """Markdown; the picture stands below it."""
    draw: Callable[[], bytes] = field(repr=False)
    """Makes the picture, as PNG: of the same results always the same."""

    @property
    def sha256(self) -> str:
        """Of all of it."""
        content = [self.run.tags, self.metrics, self.table, self.summary.decode(), self.note]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def is_at_work(folder: RunFolder, jobs: Sequence[JobRecord]) -> bool:
    """True for a run with a living job, or with recent activity."""
    try:
        return is_alive(folder, folder.spec(), jobs, time.time())
    except DataError:
        return False


def publish_cross_validation(model_folder: Path, is_under_way: UnderWay = has_not_ended) -> str:
    """Send the cross-validation of a model folder to the MLflow server of its folds; returns what was sent, '' when nothing was due.

    Nothing is due while a fold is under way, for fewer than two validated folds, for folds that are unlike, and for runs without MLflow.
    Raises TrackingError, StorageError, DataError.
    """
    found = publishable(model_folder, is_under_way)
    bound = read_mlflow_run(fold_folders(model_folder)[found.folds[0]]) if found is not None else None
    if found is None or bound is None:
        return ""
    tracker = server_of(bound)
    return f"cross-validation of folds {', '.join(found.folds)}" if send(report_of(found), tracker, found.model.spec) else ""


def send(report: ModelReport, tracker: "Tracker", spec: RunSpec) -> bool:
    """Make the MLflow run of a model, or bring it up to date; False when it is. Raises TrackingError."""
    known = tracker.known_run(report.run.key, MODEL_KEY_TAG)
    if known is not None and known.tags.get(CONTENT_TAG) == report.sha256:
        return False
    elsewhere = "" if known is None else known.tags.get(FOLDER_TAG, "")
    if elsewhere not in ("", str(spec.model_folder)) and Path(elsewhere).is_dir():
        log.warning("the cross-validation of %s is recorded in MLflow from %s: that of %s is not", spec.model, elsewhere, spec.model_folder)
        return False
    run_id = tracker.get_or_create_model_run(tracker.ensure_experiment(experiment_of(spec)), report.run)
    tracker.upload_bytes(run_id, report.summary, f"fullval/{CHECKPOINT}/summary.json")
    tracker.log_table(run_id, f"fullval/{CHECKPOINT}/per_case.json", report.table)
    tracker.upload_bytes(run_id, report.draw(), PICTURE)
    tracker.set_tags(run_id, {NOTE_TAG: f"{report.note}\n\n{artifact_picture('Dice of every case in each class', PICTURE, run_id)}"})
    tracker.log_scores(run_id, report.metrics, time.time())  # of several points at one step MLflow shows the newest
    tracker.set_tags(run_id, {CONTENT_TAG: report.sha256})
    return True


def with_models(synced: Iterable[Synced], jobs: Sequence[JobRecord]) -> Iterator[Synced]:
    """What was done with runs, and then with the models that they are folds of, as far as there was something to do."""
    folders: dict[Path, None] = {}
    for one in synced:
        yield one
        folders[one.run_folder.parent] = None
    for folder in folders:
        try:
            delivered = publish_cross_validation(folder, lambda fold: is_at_work(fold, jobs))
        except (NnfleetError, OSError) as err:
            yield Synced(run_key=folder.name, run_folder=folder, lacking=f"the cross-validation: {err}")
        else:
            if delivered:
                yield Synced(run_key=folder.name, run_folder=folder, delivered=(delivered,))


def report_of(found: CrossValidation) -> ModelReport:
    """What MLflow gets. Reads dataset.json and the split."""
    spec, results = found.model.spec, found.model.results
    salt = pseudonym_salt(spec.model_folder.parent) if found.model.has_pseudonyms else None
    missing, table = missing_folds(found), _table(found, salt)
    summary = crossval_summary(results, found.model.labels, None)
    if salt is not None:
        summary = without_case_ids(summary, by_file_name(results), salt)
    return ModelReport(
        run=ModelRun(model_key(found), short_address(spec.model), shared_params(params_of(spec)), _tags(found, missing)),
        metrics=metrics_of(found),
        table=table,
        summary=summary_bytes(summary),
        note=_note(found, missing, table),
        draw=lambda: classes_figure(found.model),
    )


def model_key(found: CrossValidation) -> str:
    """The same for every fold of one model, and another one for anything else that was trained. Pure."""
    specs = [fold.spec for fold in found.model.folds]
    cases: dict[str, str] = {}
    for spec in specs:
        cases |= dict.fromkeys([*spec.train_cases, *spec.val_cases], "") | (facts_of(spec).cases or {})
    content = [shared_params(fixed_params(specs[0])) | ended_early(found.model.early_end), RECIPE_VERSION, cases]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return f"{re.sub('[^A-Za-z0-9_.+-]', '-', specs[0].model)}-{digest[:12]}"


def missing_folds(found: CrossValidation) -> list[str]:
    """Folds of the split, or with a folder of their own, whose cases are not in it."""
    try:
        split = [str(number) for number in range(len(load_splits(found.model.spec.preprocessed_folder)))]
    except DataError as err:
        log.info("which folds there are is not known: %s", err)
        split = []
    return sorted({*split, *found.lacking} - {*found.folds}, key=int)


def metrics_of(found: CrossValidation) -> dict[str, float]:
    """`cv/...`: nnU-Net's mean Dice, and each class with its 95 % interval over the cases that have a Dice."""
    summary: dict[str, Any] = dict(found.model.summary)
    values = {f"cv/{name}": summary[name] for name in ("dice_mean", "hd95_mm_mean", "nsd_mean")}
    values |= {f"cv/{name}": summary[name] for name in LESION_SCORES if name in summary}
    values |= {"cv/num_cases": float(len(found.model.results)), "cv/num_folds": float(len(found.folds))}
    for name, means in summary["classes"].items():
        low, high = _interval(found.model.results, name)
        values |= {f"cv/dice/{name}": means["dice"], f"cv/dice_low/{name}": low, f"cv/dice_high/{name}": high}
        values |= {f"cv/{metric}/{name}": means[metric] for metric in ("hd95_mm", "nsd", *LESION_SCORES) if metric in means}
    return {metric_path(name): value for name, value in values.items() if math.isfinite(value)}


def _interval(results: Sequence[CaseResult], class_name: str) -> tuple[float, float]:
    dice = np.array([result.metrics[class_name].dice for result in results])
    return mean_interval(dice[~np.isnan(dice)])


def _table(found: CrossValidation, salt: str | None) -> list[Row]:
    rows = []
    for fold in found.model.folds:
        for row in table_rows(fold.results, found.model.labels, CHECKPOINT, salt):
            rows.append({**row, "fold": str(fold.spec.fold)})
    return worst_first(rows)


def _tags(found: CrossValidation, missing: Sequence[str]) -> dict[str, str]:
    spec = found.model.spec
    settings = {f"nnfleet.{key}": str(getattr(spec, key)) for key in ("dataset", "configuration", "trainer", "plans", "seed", "pseudonyms")}
    tags = {
        "nnfleet.kind": "cv",
        FOLDS_TAG: ", ".join(found.folds),
        "nnfleet.missing_folds": ", ".join(missing),
        FOLDER_TAG: str(spec.model_folder),
        **(early_end_tags(spec, found.model.early_end) if found.model.early_end else grouping_tags(spec)),
        **settings,
    }
    return tags | ({"nnfleet.replicate": spec.replicate} if spec.replicate else {})


def _note(found: CrossValidation, missing: Sequence[str], table: Sequence[Row]) -> str:
    """What a user reads first on the run's page, in Markdown."""
    spec = found.model.spec
    without = f" Folds {', '.join(missing)} are missing." if missing else ""
    worst = [f"{row['case']} ({number(float(row['dice_mean']), 3)})" for row in table[:WORST_SHOWN]]
    return "\n".join(
        [
            f"**Dice {number(found.model.summary['dice_mean'], 3)}: {spec.model} of {spec.dataset}**, cross-validated over "
            f"{len(found.model.results)} cases of folds {', '.join(found.folds)}, each predicted by the final weights of the fold that was "
            f"not trained on it.{without}",
            "",
            *_class_rows(found),
            "",
            f"Worst cases: {', '.join(worst)}. `cv/dice_mean` is nnU-Net's number.",
            "",
            f"Get the model: `nnfleet export {spec.model} FOLDER`",
        ]
    )


def _class_rows(found: CrossValidation) -> Iterator[str]:
    """A table of the classes in Markdown."""
    summary: dict[str, Any] = dict(found.model.summary)
    yield "| class | Dice [95 % interval] | HD95 in mm | surface Dice |"
    yield "| --- | --- | --- | --- |"
    for name, means in list(summary["classes"].items())[:MAX_CLASS_METRICS]:
        low, high = (number(bound, 3) for bound in _interval(found.model.results, name))
        shown = name.replace("|", "/")
        yield f"| {shown} | {number(means['dice'], 3)} [{low}, {high}] | {number(means['hd95_mm'], 1)} | {number(means['nsd'], 3)} |"
    yield f"| **mean** | **{number(summary['dice_mean'], 3)}** | {number(summary['hd95_mm_mean'], 1)} | {number(summary['nsd_mean'], 3)} |"
