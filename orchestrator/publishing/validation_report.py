"""From per-case results to nnU-Net's summary.json, to our own numbers beside it, and to the tracking server.

Everything stands in the run folder before anything goes over the network, so a tracking server that is away costs no result.
"""

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import Superseded, TrackingError
from orchestrator.publishing.candidates import send_candidates
from orchestrator.run.undelivered import forget_undelivered, note_undelivered
from orchestrator.tracking.binding import bound_run, server_of
from orchestrator.tracking.scores import holds_scores, scored_unix, tracked_metrics
from trainers.contract.commits import newest_committed
from trainers.contract.fencing import check_driver_fence
from trainers.contract.plans import Labels, labels_of, load_dataset_json
from trainers.contract.pseudonyms import pseudonym, pseudonym_salt
from trainers.contract.records import read_result
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointName, RunSpec, WeightsName
from trainers.contract.summary import CaseResult, Row, extended_summary, summarise, summary_bytes, table_rows, worst_first
from trainers.storage.files import write_if_changed

if TYPE_CHECKING:
    from orchestrator.tracking.client import Tracker

log = logging.getLogger(__name__)

WHAT = "full validation"
"""By this name `status` calls what is sent from here."""


@dataclass(frozen=True)
class ValidationReport:
    """A finished full validation with one checkpoint, as it goes to the tracking server."""

    name: CheckpointName
    metrics: dict[str, float]
    """Names below `full/<name>/`."""
    table: list[Row]
    summary_file: Path
    """nnU-Net's summary.json; with pseudonyms a copy in which they stand for the case ids."""
    pictures: dict[str, Path]
    """Artifact path -> file."""


def picture_file(folder: RunFolder, name: WeightsName, case_id: str) -> Path:
    """Where the picture of a validated case lies."""
    return folder.own / "overlays" / name / f"{case_id}.png"


def write_report(folder: RunFolder, spec: RunSpec, labels: Labels, name: CheckpointName, results: Sequence[CaseResult]) -> ValidationReport:
    """Write the summaries of a checkpoint into the run folder (see `write_summaries`); returns what goes to the tracking server."""
    summary, extended = write_summaries(folder, spec, labels, name, results)
    summary_file = folder.summary(name)
    salt = pseudonym_salt(folder.model_folder.parent) if spec.pseudonyms else None
    if salt is not None:
        summary_file = folder.shared_summary(name)
        write_if_changed(summary_file, summary_bytes(without_case_ids(summary, results, salt)))
    return ValidationReport(
        name=name,
        metrics=tracked_metrics(extended),
        table=worst_first(table_rows(results, labels, name, salt)),
        summary_file=summary_file,
        pictures=_pictures(folder, name, results, salt) if spec.images else {},
    )


def write_summaries(
    folder: RunFolder, spec: RunSpec, labels: Labels, name: WeightsName, results: Sequence[CaseResult]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write summary.json and validation_<name>.json into the run folder, atomically, and return both; files that would not change are left
    alone, and so is the summary.json that nnU-Net wrote of a run that it trained."""
    summary = summarise(results, labels)
    summary_file = folder.summary(name)
    if spec.imported is None or not summary_file.is_file():
        write_if_changed(summary_file, summary_bytes(summary))
    extended = extended_summary(results, labels)
    difference = minus_ema(extended["dice_mean"], ema_of(folder, name, results[0].checkpoint_sha256))
    extended |= {"checkpoint": name, "checkpoint_sha256": results[0].checkpoint_sha256, "minus_ema_pseudo_dice": difference}
    extended["surface_tolerance_mm"] = spec.validation.surface_tolerance_mm
    if extended["no_distances"]:
        log.warning("no HD95 and no surface Dice for %s", extended["no_distances"])
    extended["cases"] = table_rows(results, labels, name, None)
    write_if_changed(folder.extended_summary(name), json.dumps(extended, indent=1).encode())
    return summary, extended


def _pictures(folder: RunFolder, name: CheckpointName, results: Sequence[CaseResult], salt: str | None) -> dict[str, Path]:
    """The name of a picture begins with the Dice, so that the list of them begins with the worst case."""
    files = {picture_name(r, salt): picture_file(folder, name, r.case_id) for r in results}
    return {f"{overlay_folder(name)}/{shown}": path for shown, path in files.items() if path.is_file()}


def overlay_folder(name: CheckpointName) -> str:
    """Artifact path of the pictures of a checkpoint's validation."""
    return f"fullval/{name}/overlays"


def picture_name(result: CaseResult, salt: str | None) -> str:
    """`0.873_case.png`; `none` for a case that has no Dice. Pure."""
    dice = "none" if math.isnan(result.dice_mean) else f"{result.dice_mean:.3f}"
    return f"{dice}_{result.case_id if salt is None else pseudonym(result.case_id, salt)}.png"


def without_case_ids(summary: dict[str, Any], results: Sequence[CaseResult], salt: str) -> dict[str, Any]:
    """The summary with pseudonyms in place of file names, in the same order. Pure."""
    cases = [
        {**case, "reference_file": pseudonym(r.case_id, salt), "prediction_file": pseudonym(r.case_id, salt)}
        for case, r in zip(summary["metric_per_case"], results, strict=True)
    ]
    return {**summary, "metric_per_case": cases}


def minus_ema(dice_mean: float, ema_pseudo_dice: float | None) -> float | None:
    """How far the full validation lies from what training estimated of the same weights; None when either is unknown."""
    return None if ema_pseudo_dice is None or math.isnan(dice_mean) else dice_mean - ema_pseudo_dice


def ema_of(folder: RunFolder, name: WeightsName, checkpoint_sha256: str) -> float | None:
    """The smoothed pseudo-Dice of the weights in this checkpoint, from the newest committed state; None when that names other weights."""
    committed = newest_committed(folder)
    manifest = None if committed is None else committed.weights.get(name)
    if manifest is None or manifest.sha256 != checkpoint_sha256:
        log.warning("no committed state of %s names %s: its Dice is not compared with the pseudo-Dice", folder.root, name)
        return None
    return manifest.ema_pseudo_dice


def deliver_reports(
    folder: RunFolder,
    spec: RunSpec,
    reports: Sequence[ValidationReport],
    fencing_token: int,
    waits_s: Sequence[float] = (1, 2, 4, 8, 15, 30, 60),
) -> str | None:
    """Send reports to the MLflow run of this folder, trying again after each of `waits_s`. Returns None, or why it was not delivered.

    With them goes what the run folder says of candidates. A run that is not tracked has nothing to deliver. May be called again at any
    time: the same report sent twice changes nothing. Of a driver that was superseded nothing is sent. While it is not delivered the run
    folder says so, for `status`.
    """
    began_unix = time.time()
    for wait_s in (*waits_s, None):
        try:
            _send(folder, spec, reports, fencing_token)
        except TrackingError as err:
            note_undelivered(folder, WHAT, began_unix, str(err))
            if wait_s is None:
                return str(err)
            log.warning("the tracking server did not take the validation; next try in %.0f s: %s", wait_s, err)
            time.sleep(wait_s)
        except Superseded as err:
            return str(err)
        except Exception as err:  # results are safe on disk: no fault of delivery may fail the validation
            log.exception("delivery of the validation failed")
            return f"{type(err).__name__}: {err}"
        else:
            forget_undelivered(folder, WHAT)
            return None
    raise AssertionError("unreachable")


def stored_reports(folder: RunFolder, spec: RunSpec, held: Mapping[str, float]) -> list[ValidationReport]:
    """Reports of full validations whose every case lies in the run folder and whose scores are not those that MLflow has, `held`."""
    found = []
    for name in spec.validation.checkpoints:
        if holds_scores(held, folder, name) or not folder.summary(name).is_file():
            continue
        results = [result for case in spec.val_cases if (result := read_result(folder, name, case)) is not None]
        if results and len(results) == len(spec.val_cases) and len({result.checkpoint_sha256 for result in results}) == 1:
            labels = labels_of(load_dataset_json(folder.model_folder), str(folder.model_folder / "dataset.json"))
            found.append(write_report(folder, spec, labels, name, results))
    return found


def _send(folder: RunFolder, spec: RunSpec, reports: Sequence[ValidationReport], fencing_token: int) -> None:
    bound = bound_run(folder, spec)
    if bound is None:
        return
    check_driver_fence(folder, fencing_token)
    tracker = server_of(bound)
    for report in reports:
        check_driver_fence(folder, fencing_token)
        _send_pictures(tracker, bound.run_id, report)
        unix = scored_unix(folder, report.name)
        tracker.log_validation(bound.run_id, report.name, report.metrics, report.table, report.summary_file, unix)
    send_candidates(tracker, bound.run_id, folder)


def _send_pictures(tracker: "Tracker", run_id: str, report: ValidationReport) -> None:
    """Those of an earlier validation, with another Dice in their names, are removed."""
    directory = overlay_folder(report.name)
    if report.pictures and not set(tracker.list_files(run_id, directory)) <= report.pictures.keys():
        tracker.delete_directory(run_id, directory)
    for path, file in report.pictures.items():
        tracker.upload_file(run_id, file, *split_path(path))


def split_path(path: str) -> tuple[str, str]:
    """Directory and name of an artifact path."""
    directory, _, name = path.rpartition("/")
    return directory, name
