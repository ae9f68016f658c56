"""The verbs about trained models: used on new images, compared, exported and imported."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.campaign.follower import Follower
from orchestrator.cluster import local_services
from orchestrator.cluster.home import login_name
from orchestrator.cluster.target import is_idle, reach
from orchestrator.errors import CheckpointError, ClusterError, ConfigError, DataError, NnfleetError, StorageError
from orchestrator.run.below import PREPROCESSED, RAW, RESULTS, results_absence, results_folder
from orchestrator.run.interrupts import HungUp

if TYPE_CHECKING:
    from orchestrator.cluster.jobs import Jobs
    from orchestrator.compare.answer import Answer
    from orchestrator.compare.choice import Compared
    from orchestrator.compare.run_differences import RunDiff
    from orchestrator.export.model import Exported
    from orchestrator.imported.importing import ImportedFold
    from orchestrator.report.case_pictures import CasePictures
    from orchestrator.tracking.client import Tracker
    from orchestrator.validation.held_out_events import HeldOutEvent
    from trainers.contract.run_spec import CheckpointName

log = logging.getLogger(__name__)


def evaluate(
    model: str,
    images: Path,
    labels: Path | None = None,
    output: Path | None = None,
    *,
    checkpoint: "CheckpointName" = "final",
    results: Path | None = None,
    cluster: str | None = None,
    workers: Mapping[str, int] | None = None,
    on_wait: Callable[[str], None] | None = None,
    on_job: Callable[[str, bool], None] | None = None,
) -> "HeldOutEvent":
    """Predict a held-out test set with the folds that `model` means, as nnU-Net's ensemble, and with `labels` score it. Returns at its end.

    Folders are those of the cluster; `output`: default a folder beside the folds. Finished cases are kept: the same call continues, and
    follows one that is at work. Interrupted, but by HungUp, the one that began the job stops it. `workers`: `count`, `gpus`, `cpus` of
    each; what is left open the cluster decides. `on_wait` gets what it waits for, and warnings; `on_job` the job's id just before it is
    sent, or followed, and whether this call began it. Raises ConfigError, DataError or ClusterError before a worker starts; at its end what
    is to blame for cases that failed.
    """
    from orchestrator.validation.held_out_cases import held_out_cases
    from orchestrator.validation.held_out_folds import folds_of
    from trainers.contract.plans import load_dataset_json

    if is_idle(cluster):
        folds, _ = folds_of(model, results_folder(results, os.environ))
        held_out_cases(images.absolute(), None if labels is None else labels.absolute(), load_dataset_json(folds[0].model_folder))
    meant = reach(cluster, starts=True)
    place = results_folder(results, os.environ) if meant.is_here else results
    folders = {"--images": images, "--labels": labels, "--output": output, "--results": place}
    relative = [str(folder) for folder in folders.values() if folder is not None and not folder.is_absolute()]
    if relative and not meant.is_here:
        raise ConfigError(f"test set: {', '.join(relative)} starts at no folder of the cluster. Name whole paths, as its nodes see them.")
    named = [f"{option}={folder.absolute() if meant.is_here else folder}" for option, folder in folders.items() if folder is not None]
    arguments = [model, *named, f"--checkpoint={checkpoint}"]
    how = [f"--user={login_name()}", *([f"--workers={json.dumps(dict(workers))}"] if workers else [])]
    return _followed_to_its_end(meant.jobs, arguments, how, on_wait, on_job)


def _followed_to_its_end(
    jobs: "Jobs",
    arguments: list[str],
    how: list[str],
    on_wait: Callable[[str], None] | None = None,
    on_job: Callable[[str, bool], None] | None = None,
) -> "HeldOutEvent":
    """Start the job of a test set, or follow the one that the same command has started. `how`: options that change no result."""
    from orchestrator.validation.held_out_events import HELD_OUT_EVENTS, HeldOutEvent, HeldOutReport, HeldOutWaits, HeldOutWarned

    warnings: list[HeldOutWarned] = []

    def shown(event: HeldOutReport) -> None:
        if isinstance(event, HeldOutWaits) and on_wait is not None:
            on_wait(f"It waits for its workers: it {event.because}" if event.because.startswith("needs") else f"It waits: {event.because}")
        if isinstance(event, HeldOutWarned) and on_wait is not None and event not in warnings:
            warnings.append(event)
            on_wait(f"Warning: {event.message}")

    name = hashlib.sha256(json.dumps(arguments).encode()).hexdigest()[:12]
    earlier = [job for job in jobs.records() if job.submission_id.startswith(f"test-{name}-")]
    living = next((job.submission_id for job in earlier if job.is_live), "")
    if living and on_wait is not None:
        on_wait(f"The same command is at work already as job {living}: this one follows it. `nnfleet stop {living}` ends it.")
    attempt = f"{name}-{len(earlier)}"
    submission_id = living or f"test-{attempt}"
    if on_job is not None:
        on_job(submission_id, not living)
    try:
        if not living:
            jobs.submit_held_out(attempt, [*arguments, *how])
        events, failure = Follower(jobs).ended(submission_id, HELD_OUT_EVENTS, shown)
    except KeyboardInterrupt as interrupt:
        if not living and not isinstance(interrupt, HungUp):
            _end(jobs, submission_id)
        raise
    for event in events:
        if isinstance(event, HeldOutWarned):  # of a job that ended before it was looked at again
            shown(event)
    ended = next((event for event in reversed(events) if isinstance(event, HeldOutEvent)), None)
    if ended is None:
        raise failure or ClusterError(f"test set: {submission_id} left no result. See its log in Ray's dashboard.")
    if ended.exit_code:
        kinds: tuple[type[NnfleetError], ...] = (ConfigError, DataError, CheckpointError, StorageError, ClusterError)
        raise next((kind for kind in kinds if kind.exit_code == ended.exit_code), NnfleetError)(ended.message)
    return ended


def _end(jobs: "Jobs", submission_id: str) -> None:
    """End a job of ours, which the cluster may not have stored yet."""
    try:
        jobs.stop(submission_id)
    except ClusterError as err:
        log.warning("%s may be at work. `nnfleet status` shows it then, `nnfleet stop %s` ends it. (%s)", submission_id, submission_id, err)


def predict(
    model: str,
    images: Path,
    output: Path,
    *,
    checkpoint: "CheckpointName" = "final",
    results: Path | None = None,
    cluster: str | None = None,
    workers: Mapping[str, int] | None = None,
    on_wait: Callable[[str], None] | None = None,
    on_job: Callable[[str, bool], None] | None = None,
) -> "HeldOutEvent":
    """As `evaluate`, without labels."""
    return evaluate(
        *(model, images, None, output),
        checkpoint=checkpoint,
        results=results,
        cluster=cluster,
        workers=workers,
        on_wait=on_wait,
        on_job=on_job,
    )


def export(
    model: str, target: Path, tracking_uri: str | None = None, results: Path | None = None, candidate: str | None = None
) -> "Exported":
    """Make `target` an nnU-Net model folder with every fold that `model` means, or add them to what was exported there.

    From the run folders below `results`, else from the server `tracking_uri`; with neither from nnUNet_results of this process, and from
    MLflow (MLFLOW_TRACKING_URI, else the local server) where no such run lies there. `candidate`: `winner` or `candidate_<epoch>`, whose
    weights, which run folders alone have, are added beside best and final; they are optimistic. Raises ConfigError, CheckpointError,
    TrackingError.
    """
    from orchestrator.export.fold_sources import folds_below, refuse_unknown
    from orchestrator.export.model import export_model

    wanted = candidate or ""
    refuse_unknown(wanted)

    if results is not None and tracking_uri:
        raise ConfigError("export: --results and --tracking-uri both name where the model comes from. Name one of them.")
    place = results or (Path(os.environ[RESULTS]) if os.environ.get(RESULTS) and not tracking_uri else None)
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or _local_mlflow()
    if place is not None and (results is not None or place.is_dir()):
        folder = results_folder(place, os.environ)
        try:
            folds = folds_below(folder, model, wanted)
        except ConfigError:  # nothing here is called so
            if results is not None or not uri:
                raise
        else:
            return export_model(model, target, folds, f"below {folder}", wanted)
    if absence := "" if place is None else results_absence(os.environ):
        if not uri:
            raise ConfigError(absence)
        log.warning("%s", absence)
    if not uri:
        raise ConfigError(
            "export: no run folder lies here (nnUNet_results, --results), no tracking server is named and none runs here. "
            "Name one by its URI, or start ours: `nnfleet up`."
        )
    if wanted:
        raise ConfigError(f"export: MLflow holds no weights of candidates. Export {wanted} where the run folders are: --results FOLDER.")
    from orchestrator.export.mlflow_folds import folds_in_mlflow

    unseen = " (no folder of results is seen here: nnUNet_results, --results)" if place is None and not tracking_uri else ""
    return export_model(model, target, folds_in_mlflow(uri, model), f"in MLflow at {uri}{unseen}")


def import_folder(
    folder: Path,
    results: Path | None = None,
    tracking_uri: str | None = None,
    *,
    continues: bool = False,
    workers: Mapping[str, int] | None = None,
) -> "list[ImportedFold]":
    """Make the folds in a model folder that nnU-Net itself trained, or the one fold that `folder` is, runs that are compared beside ours.

    The dataset must lie in nnUNet_preprocessed of this process as it was trained on. `results`: nnUNet_results to link it into; default:
    it becomes a run where it lies. Sent to the MLflow server `tracking_uri` (default: MLFLOW_TRACKING_URI, else the local one, else none).
    What is `lacking` of a fold says why it was not imported. Raises ConfigError where no fold is meant.

    `continues`: the folds are half-done trainings, from whose checkpoint_latest.pth runs of ours begin, beside nnU-Net's folder; `resume`
    goes on with them, with these `workers` (as in an experiment file).
    """
    from orchestrator.compare.model_run import with_models
    from orchestrator.imported.continuing import continue_folder
    from orchestrator.imported.importing import import_folder
    from orchestrator.publishing.reconcile import Synced

    preprocessed = os.environ.get(PREPROCESSED)
    if not preprocessed:
        raise ConfigError(
            f"import: {PREPROCESSED} is not set. Set it to the folder that holds the dataset of the training: export {PREPROCESSED}=..."
        )
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or _local_mlflow()
    if continues:
        return list(continue_folder(folder, Path(preprocessed).absolute(), results, uri, workers))
    folds = list(import_folder(folder, Path(preprocessed).absolute(), results, uri))
    for model in with_models([Synced(run_key=fold.run_key, run_folder=fold.run_folder) for fold in folds if fold.run_folder], []):
        if model.lacking:
            log.warning("MLflow lacks of %s %s `nnfleet sync` sends it.", model.run_folder, model.lacking)
    return folds


def _local_mlflow() -> str:
    local = local_services.running()
    return local.mlflow_uri if local else ""


def compare(
    runs: Sequence[str] = (),
    results: Path | None = None,
    checkpoint: "CheckpointName" = "final",
    patients: str | None = None,
    tracking_uri: str | None = None,
    *,
    is_forced: bool = False,
) -> "Compared":
    """Which models are better, by their full validations in the run folders below `results` (default: nnUNet_results), or in MLflow.

    With `tracking_uri` also of the runs on that server whose folders are not seen; without it and `results`, where no folder of such runs
    is seen, of those on MLFLOW_TRACKING_URI, else on the local server. `runs`: names of runs or of what holds several
    (`17/3d_fullres`), else all. `patients`: see `answer`. Raises ConfigError, TrackingError.
    """
    from orchestrator.compare.choice import Places, compared

    absence = "" if results is not None else results_absence(os.environ)
    is_seen = not absence and bool(results or os.environ.get(RESULTS))
    uri = tracking_uri or ("" if results is not None else os.environ.get("MLFLOW_TRACKING_URI") or _local_mlflow())
    place = results_folder(results, os.environ) if is_seen or not uri else None
    if absence:
        log.warning("%s", absence)
    server = (lambda: _tracker(uri, "compare: --tracking-uri")) if uri else None
    return compared(Places(place, server, bool(tracking_uri)), runs, checkpoint, patients, is_forced=is_forced)


def _tracker(uri: str, option: str) -> "Tracker":
    """A tracking server that answers. Raises ConfigError for an address with credentials, TrackingError."""
    from orchestrator.tracking.address import refuse_credentials
    from orchestrator.tracking.client import Tracker

    refuse_credentials(uri, option)
    tracker = Tracker(uri)
    tracker.ping()
    return tracker


def diff(first: str, second: str, results: Path | None = None) -> "RunDiff":
    """In what two runs below `results` (default: nnUNet_results) differ. Raises ConfigError for a name that means no run or several."""
    from orchestrator.compare.run_facts import diff_below

    return diff_below(results_folder(results, os.environ), first, second)


def write_report(answer: "Answer", target: Path, raw: Path | None = None, *, images: bool = False) -> None:
    """Write the report of a comparison as one HTML file. `raw`: nnUNet_raw, default: the environment's. `images`: also pictures of cases of
    runs with `images: false`.

    Raises ConfigError where it cannot be written.
    """
    from orchestrator.report.page import write_report

    try:
        write_report(answer, _pictures(answer, raw, images=images), target.absolute())
    except (OSError, StorageError) as err:
        raise ConfigError(f"compare: {target} cannot be written: {err}. Name a file that you may write: --report.") from err


def publish_report(answer: "Answer", tracking_uri: str | None = None, raw: Path | None = None, *, images: bool = False) -> str:
    """Send the report of a comparison to MLflow, as a run of its own or into the one that this comparison has; returns the link to it.

    To the server `tracking_uri`; default: MLFLOW_TRACKING_URI, else the local one, else that of the compared runs. The rest as in
    `write_report`. Raises ConfigError where no server is known, TrackingError.
    """
    from orchestrator.report.comparison_run import publish_comparison

    known = (model.spec.tracking_uri for model in answer.models if model.spec.tracking_uri)
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or _local_mlflow() or next(known, "")
    if not uri:
        raise ConfigError("compare: no MLflow server is known for the report. Name one (--tracking-uri), or start ours: `nnfleet up`.")
    tracker = _tracker(uri, "compare: --tracking-uri")
    return publish_comparison(answer, _pictures(answer, raw, images=images), tracker)


def _pictures(answer: "Answer", raw: Path | None, *, images: bool) -> "CasePictures":
    from orchestrator.report.case_pictures import case_pictures

    named = os.environ.get(RAW)
    return case_pictures(answer.models, raw or (Path(named) if named else None), on_request=images)
