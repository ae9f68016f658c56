"""Scores of a held-out test set: nnU-Net's summary.json and ours in the output folder, and the column `test/...` of MLflow."""

import math
import time
from collections.abc import Sequence
from typing import Any

from orchestrator.compare.cross_validation import cross_validation
from orchestrator.compare.model_run import model_key
from orchestrator.errors import NnfleetError
from orchestrator.tracking.binding import server_of
from orchestrator.tracking.records import MODEL_KEY_TAG, metric_path
from trainers.contract.held_out import HeldOut
from trainers.contract.plans import labels_of, load_dataset_json
from trainers.contract.records import read_mlflow_run
from trainers.contract.run_folder import RunFolder
from trainers.contract.summary import CaseResult, extended_summary, summarise, summary_bytes, table_rows
from trainers.storage.files import write_atomic, write_json_atomic


def write_scores(held: HeldOut, output: RunFolder, results: Sequence[CaseResult]) -> dict[str, Any]:
    """Write summary.json as nnU-Net does and test_scores.json with distances and per-case rows; returns the means. Raises StorageError."""
    model_folder = held.checkpoint_files[0].parent.parent
    labels = labels_of(load_dataset_json(model_folder), str(model_folder / "dataset.json"))
    write_atomic(output.root / "summary.json", summary_bytes(summarise(results, labels)))
    summary = extended_summary(results, labels)
    rows = table_rows(results, labels, held.checkpoint, None)
    write_json_atomic(output.own / "test_scores.json", {**summary, "cases": rows})
    return summary


def metrics_of(summary: dict[str, Any]) -> dict[str, float]:
    """`test/...`: the means over classes, and Dice, HD95 and surface Dice of each class. Pure."""
    values = {f"test/{name}": summary[name] for name in ("dice_mean", "hd95_mm_mean", "nsd_mean")}
    values["test/num_cases"] = float(summary["n_cases"])
    for name, means in summary["classes"].items():
        values |= {f"test/{metric}/{name}": means[metric] for metric in ("dice", "hd95_mm", "nsd")}
    return {metric_path(name): value for name, value in values.items() if math.isfinite(value)}


def publish_scores(held: HeldOut, output: RunFolder, folds: Sequence[RunFolder], summary: dict[str, Any]) -> str:
    """Send the scores to MLflow: to the run of a single fold, or that of the cross-validation of several. Returns why not; '' if sent."""
    bound = read_mlflow_run(folds[0])
    if bound is None:
        return "the runs are not tracked"
    try:
        tracker = server_of(bound)
        run_id = bound.run_id if len(folds) == 1 else _model_run(tracker, folds[0])
        if not run_id:
            return (
                f"MLflow has no run of the cross-validation of {held.spec.model} yet: `nnfleet sync` makes it once its folds are validated"
            )
        tracker.log_scores(run_id, metrics_of(summary), time.time())
        images = sorted({str(image.parent) for case in held.cases.values() for image in case.images})
        tags = {"test_cases": str(summary["n_cases"]), "test_folder": str(output.root), "test_images": ", ".join(images)}
        tracker.set_tags(run_id, {f"nnfleet.{name}": text for name, text in {**tags, "test_checkpoint": held.checkpoint}.items()})
        if not held.spec.pseudonyms:
            tracker.upload_bytes(run_id, (output.root / "summary.json").read_bytes(), "test/summary.json")
    except NnfleetError as err:
        return str(err)
    return ""


def _model_run(tracker: Any, fold: RunFolder) -> str:
    found = cross_validation(fold.model_folder)
    known = None if isinstance(found, str) else tracker.known_run(model_key(found), MODEL_KEY_TAG)
    return "" if known is None else str(known.run_id)
