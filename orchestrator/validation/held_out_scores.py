"""Scores of a held-out test set: nnU-Net's summary.json and ours in the output folder, a record in the model folder, by which models are
compared, and the columns `test/<test set>/...` of MLflow."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.compare.cross_validation import cross_validation
from orchestrator.compare.model_run import model_key
from orchestrator.compare.published_test_sets import SCORES, TEST_SETS
from orchestrator.errors import NnfleetError
from orchestrator.tracking.binding import server_of
from orchestrator.tracking.records import MODEL_KEY_TAG, metric_path
from orchestrator.tracking.saved_views import TEST_SETS_TAG
from trainers.contract.held_out import HeldOut, HeldOutScores, digest_of_cases, scores_below, scores_file
from trainers.contract.plans import Labels, labels_of, load_dataset_json
from trainers.contract.pseudonyms import pseudonym_salt
from trainers.contract.records import read_mlflow_run
from trainers.contract.run_folder import RunFolder
from trainers.contract.summary import CaseResult, extended_summary, summarise, summary_bytes, table_rows
from trainers.storage.files import remove_quietly, write_atomic, write_json_atomic

if TYPE_CHECKING:
    from orchestrator.tracking.client import Tracker


def scores_of(held: HeldOut, output: RunFolder, folds: Sequence[str], results: Sequence[CaseResult]) -> HeldOutScores:
    """The record of a test set of which every case is scored. Pure."""
    first = next(iter(held.cases.values()))
    assert first.labels is not None
    return HeldOutScores(
        name=held.name,
        sha256=digest_of_cases(results),
        checkpoint=held.checkpoint,
        folds=tuple(folds),
        weights_sha256=held.weights_sha256,
        images=first.images[0].parent,
        labels=first.labels.parent,
        output=output.root,
        results=tuple(results),
    )


def write_scores(scores: HeldOutScores, model_folder: Path) -> dict[str, Any]:
    """Write summary.json as nnU-Net does and test_scores.json with distances and per-case rows; returns the means. Raises StorageError."""
    labels, output = _labels(model_folder), RunFolder(scores.output)
    write_atomic(output.root / "summary.json", summary_bytes(summarise(scores.results, labels)))
    summary = extended_summary(scores.results, labels)
    rows = table_rows(scores.results, labels, scores.checkpoint, None)
    test_set = {"name": scores.label, "sha256": scores.sha256}
    write_json_atomic(output.own / "test_scores.json", {**summary, "test_set": test_set, "cases": rows})
    return summary


def record_scores(scores: HeldOutScores, model_folder: Path) -> str:
    """Keep the scores where comparisons look for them, in the place of earlier ones of the same output folder. Returns why not; '' if kept.

    A model folder may be somebody else's, and read-only: the predictions are there all the same.
    """
    target = scores_file(model_folder, scores)
    try:
        write_json_atomic(target, scores.model_dump(mode="json"))
        for earlier in scores_below(model_folder)[0]:
            if earlier.output == scores.output and (path := scores_file(model_folder, earlier)) != target:
                remove_quietly(path)
    except (NnfleetError, OSError) as err:
        return f"{target} cannot be written: {err}".removesuffix(".")
    return ""


def column_of(scores: HeldOutScores, whole: Sequence[str]) -> str:
    """What stands between `test/` and the metric's name in MLflow: the test set, and what is not usual of the weights. Pure.

    `whole`: the folds that the MLflow run is of.
    """
    best = "-best" if scores.checkpoint == "best" else ""
    return scores.label + best + ("" if set(scores.folds) == set(whole) else f"-folds-{'-'.join(scores.folds)}")


def metrics_of(summary: Mapping[str, Any], column: str) -> dict[str, float]:
    """`test/<column>/...`: the means over classes, and Dice, HD95 and surface Dice of each class. Pure."""
    values = {name: summary[name] for name in ("dice_mean", "hd95_mm_mean", "nsd_mean")} | {"num_cases": float(summary["n_cases"])}
    for name, means in summary["classes"].items():
        values |= {f"{metric}/{name}": means[metric] for metric in ("dice", "hd95_mm", "nsd")}
    return {metric_path(f"{TEST_SETS}/{column}/{name}"): value for name, value in values.items() if math.isfinite(value)}


def publish_scores(scores: HeldOutScores, folds: Sequence[RunFolder], summary: dict[str, Any], *, is_private: bool) -> str:
    """Send the scores to MLflow: to the run of a single fold, or that of the cross-validation of several. Returns why not; '' if sent."""
    bound = read_mlflow_run(folds[0])
    if bound is None:
        return "the runs are not tracked"
    try:
        tracker = server_of(bound)
        run_id, whole = (bound.run_id, scores.folds) if len(folds) == 1 else _model_run(tracker, folds[0])
        if not run_id:
            return (
                f"MLflow has no run of the cross-validation of {folds[0].spec().model} yet: `nnfleet sync` makes it once its folds are "
                "validated; then run this command again, which predicts nothing anew"
            )
        _send(scores, folds[0].model_folder, summary, tracker, run_id, column_of(scores, whole), is_private=is_private)
    except NnfleetError as err:
        return str(err)
    return ""


def _send(
    scores: HeldOutScores, model_folder: Path, summary: dict[str, Any], tracker: "Tracker", run_id: str, column: str, *, is_private: bool
) -> None:
    """The metrics come last, before the view that shows them: where they are, the files are too."""
    folder, salt = metric_path(f"{TEST_SETS}/{column}"), pseudonym_salt(model_folder.parent) if is_private else None
    tracker.log_table(run_id, f"{folder}/per_case.json", table_rows(scores.results, _labels(model_folder), scores.checkpoint, salt))
    if not is_private:
        tracker.upload_bytes(run_id, scores.model_dump_json().encode(), f"{folder}/{SCORES}")
        tracker.upload_bytes(run_id, (scores.output / "summary.json").read_bytes(), f"{folder}/summary.json")
    plural = "s" if len(scores.folds) > 1 else ""
    text = (
        f"{summary['n_cases']} cases of {scores.images}, {scores.checkpoint} checkpoint{plural} of fold{plural} {', '.join(scores.folds)}, "
        f"predictions in {scores.output}"
    )
    known = set(filter(None, tracker.tags(run_id).get(TEST_SETS_TAG, "").split(", ")))
    test_sets = ", ".join(sorted({*known, folder.removeprefix(f"{TEST_SETS}/")}))
    tracker.set_tags(run_id, {f"nnfleet.{folder.replace('/', '.')}": text, TEST_SETS_TAG: test_sets})
    tracker.log_scores(run_id, metrics_of(summary, column), time.time())
    tracker.show_test_sets(run_id)


def _model_run(tracker: "Tracker", fold: RunFolder) -> tuple[str, tuple[str, ...]]:
    """Id of the MLflow run of the cross-validation, '' where there is none, and the folds that it is of."""
    found = cross_validation(fold.model_folder)
    if isinstance(found, str):
        return "", ()
    known = tracker.known_run(model_key(found), MODEL_KEY_TAG)
    return ("" if known is None else known.run_id), found.folds


def _labels(model_folder: Path) -> Labels:
    return labels_of(load_dataset_json(model_folder), str(model_folder / "dataset.json"))
