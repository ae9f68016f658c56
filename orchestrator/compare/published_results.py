"""Full validations as MLflow holds them: what a machine compares that does not see the run folders.

Counts of voxels and Dice are those of nnU-Net's summary.json, distances and scores of lesions those of the table of cases; both were
written from the results in the run folder, so these are the same. How many lesions there are is not in MLflow. Of the curves the smoothed
pseudo-Dice is read, which the report draws. Predictions and labels are not in MLflow.
"""

import math
import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, get_args

from orchestrator.compare.cheap import CheapAndFull
from orchestrator.compare.models import Unfinished, ValidatedFold, not_held_out
from orchestrator.errors import CheckpointError, DataError
from orchestrator.export.mlflow_folds import fetched_json
from orchestrator.publishing.published import Published, published_in
from orchestrator.run.names import Names
from orchestrator.tracking.address import masked
from orchestrator.tracking.records import EARLY_END_TAG
from trainers.contract.commits import EpochRow
from trainers.contract.lesions import LESION_SCORES, Lesions
from trainers.contract.plans import Labels, labels_of
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointName, RunSpec
from trainers.contract.summary import CaseResult, ClassMetrics, class_keys, nan_mean
from trainers.storage.files import temporary_folder

CHECKPOINTS: tuple[CheckpointName, ...] = get_args(CheckpointName)
EMA_METRIC = "val/ema_pseudo_dice"
SAME_EMA = 1e-6
"""By so much two smoothed pseudo-Dice of the same weights may differ, one of which is a difference of two metrics."""
MOST_LESIONS = 1_000_000
"""Of one class in one case: with so many their sensitivity, as MLflow holds it, is still that of one pair of counts."""


class ResultServer(Protocol):
    """What is read of a tracking server; `orchestrator.tracking.client.Tracker` is it."""

    uri: str

    def run_names(self) -> list[Names]: ...
    def models_in(self, model_folder: str) -> list[str]: ...
    def tags(self, run_id: str) -> dict[str, str]: ...
    def metrics(self, run_id: str) -> dict[str, float]: ...
    def metric_history(self, run_id: str, key: str) -> dict[int, float]: ...
    def list_files(self, run_id: str, directory: str = "") -> dict[str, int | None]: ...
    def download(self, run_id: str, path: str, folder: Path) -> Path: ...


def read_published(server: ResultServer, run_id: str, checkpoint: CheckpointName) -> ValidatedFold | str:
    """As `read_fold`, from MLflow. Raises TrackingError."""
    try:
        return _read(server, run_id, checkpoint)
    except (CheckpointError, DataError) as err:
        return str(err).removesuffix(".")
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as err:
        return f"what MLflow holds of it is not of this version: {err}; `nnfleet sync` delivers it again"


def _read(server: ResultServer, run_id: str, checkpoint: CheckpointName) -> ValidatedFold | str:
    files = server.list_files(run_id)
    if lacking := sorted({"run.json", "dataset.json"} - files.keys()):
        return (
            f"MLflow has no {' and no '.join(lacking)} of it (with pseudonyms no run.json ever): compare where its run folder is seen, "
            "or let `nnfleet sync` deliver it"
        )
    with temporary_folder("nnfleet-compare-") as folder:

        def fetch(file: str) -> Any:
            return fetched_json(server, run_id, file, files.get(file), folder, "compare")[1]

        spec = RunSpec.model_validate(fetch("run.json"))
        if reason := not_held_out(spec):
            return reason
        dataset_json = fetch("dataset.json")
        labels = labels_of(dataset_json, f"dataset.json of run {run_id}")
        for directory in ("fullval", *(f"fullval/{name}" for name in CHECKPOINTS)):
            if directory in files:
                files |= server.list_files(run_id, directory)
        table, summary = f"fullval/{checkpoint}/per_case.json", f"fullval/{checkpoint}/summary.json"
        if not {table, summary} <= files.keys():
            return Unfinished(f"MLflow has no full validation of its {checkpoint} checkpoint")
        metrics = server.metrics(run_id)
        tags = server.tags(run_id)
        sha256, ema = weights_of(published_in(tags, checkpoint), metrics, checkpoint)
        cases = cases_in(fetch(table), fetch(summary), dataset_json["file_ending"])
        results = results_of(cases, labels, spec, sha256)
        dice = {name: _dice_of(fetch(file)) for name in CHECKPOINTS if (file := f"fullval/{name}/per_case.json") in files}
    if sorted(result.case_id for result in results) != sorted(spec.val_cases):
        return Unfinished(f"{len(results)} of {len(spec.val_cases)} cases of its {checkpoint} checkpoint are validated in MLflow")
    scores = {name: CheapAndFull(_ema_in(metrics, name), value) for name, value in dice.items()}
    curve = curve_of(server.metric_history(run_id, EMA_METRIC)) if EMA_METRIC in metrics else ()
    source = f"MLflow at {masked(server.uri)}"
    early = tags.get(EARLY_END_TAG, "")
    return ValidatedFold(RunFolder(spec.run_folder), spec, results, ema, curve, source, labels, scores, run_id, early)


def _dice_of(table: Mapping[str, Any]) -> float:
    """Mean over the cases of a table of their mean Dice."""
    place = table["columns"].index("dice_mean")
    return nan_mean(math.nan if row[place] is None else float(row[place]) for row in table["data"])


def _ema_in(metrics: Mapping[str, float], name: CheckpointName) -> float:
    """The smoothed pseudo-Dice of a checkpoint's weights, by how far its Dice lies from it; NaN where that is not known."""
    return metrics.get(f"full/{name}/dice_mean", math.nan) - metrics.get(f"full/{name}/minus_ema_pseudo_dice", math.nan)


def weights_of(published: Published | None, metrics: Mapping[str, float], name: CheckpointName) -> tuple[str, float | None]:
    """SHA-256 and smoothed pseudo-Dice of the weights that made the scores of a checkpoint; "" and None where they are not known. Pure.

    A run that went on after it was validated has published other weights since, with another pseudo-Dice. Where it is the same, that of
    the checkpoint, else of the epochs, has the last digits, by which equal ones stay equal.
    """
    found = _ema_in(metrics, name)
    if published is not None and _is_same(published.manifest.ema_pseudo_dice, found):
        return published.manifest.sha256, published.manifest.ema_pseudo_dice
    tracked = metrics.get(EMA_METRIC if name == "final" else "best/ema_pseudo_dice")
    if _is_same(tracked, found):
        return "", tracked
    return "", None if math.isnan(found) else found


def _is_same(ema: float | None, found: float) -> bool:
    return math.isnan(found) if ema is None else math.isclose(ema, found, rel_tol=0, abs_tol=SAME_EMA)


def curve_of(emas: Mapping[int, float]) -> tuple[EpochRow, ...]:
    """The epochs of a metric's points; what is not asked for of them is NaN. Pure."""
    unknown = {name: math.nan for name, field in EpochRow.model_fields.items() if field.is_required()}
    rest: dict[str, Any] = unknown | {"fencing_token": 1, "world_size": 0, "pseudo_dice": (), "system": {}}
    return tuple(EpochRow.model_validate(rest | {"epoch": epoch, "ema_pseudo_dice": ema}) for epoch, ema in sorted(emas.items()))


def cases_in(table: Mapping[str, Any], summary: Mapping[str, Any], file_ending: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each case's row of the table, with its entry in nnU-Net's summary, in the summary's order.

    Pure. Raises ValueError where the two are not of the same cases.
    """
    rows = {f"{row['case']}{file_ending}": row for row in (dict(zip(table["columns"], row, strict=True)) for row in table["data"])}
    counted = {os.path.basename(case["prediction_file"]): case for case in summary["metric_per_case"]}
    if unlike := rows.keys() ^ counted.keys():
        raise ValueError(f"the table of cases and summary.json are of other cases, such as {min(unlike)}")
    return [(rows[file], case) for file, case in counted.items()]


def results_of(
    cases: Sequence[tuple[dict[str, Any], dict[str, Any]]], labels: Labels, spec: RunSpec, checkpoint_sha256: str
) -> tuple[CaseResult, ...]:
    """Results out of what `cases_in` found. Pure."""
    return tuple(
        CaseResult(
            case_id=row["case"],
            checkpoint_sha256=checkpoint_sha256,
            reference_file=case["reference_file"],
            prediction_file=case["prediction_file"],
            surface_tolerance_mm=spec.validation.surface_tolerance_mm,
            scoring=row.get("scoring") or 0,
            metrics={name: _metrics(row, case["metrics"][key], name) for name, key in class_keys(labels).items()},
            seconds=row["seconds"],
        )
        for row, case in cases
    )


def _metrics(row: Mapping[str, Any], counted: Mapping[str, Any], name: str) -> ClassMetrics:
    distances = {key: math.nan if row[f"{key}/{name}"] is None else row[f"{key}/{name}"] for key in ("hd95_mm", "nsd")}
    counts = {key: counted[key.upper()] for key in ("tp", "fp", "fn", "tn")}
    return ClassMetrics(**counts, dice=counted["Dice"], iou=counted["IoU"], **distances, lesions=_lesions(row, name))


def _lesions(row: Mapping[str, Any], name: str) -> Lesions | None:
    """The lesions of one class in one case, None where they were not counted.

    The table holds their sensitivity and not its two counts: these are its smallest, which give the same score.
    Nobody may add them up: `TrainedModel.summary` leaves them out.
    """
    columns = [f"{score}/{name}" for score in LESION_SCORES]
    if not row.keys() >= {*columns} or row[columns[1]] is None:
        return None
    sensitivity, false, dice = (row[column] for column in columns)
    counts = None if sensitivity is None else Fraction(sensitivity).limit_denominator(MOST_LESIONS)
    return Lesions(
        num_true=counts.denominator if counts is not None else 0,
        num_detected=counts.numerator if counts is not None else 0,
        num_false=int(false),
        dice=math.nan if dice is None else dice,
    )
