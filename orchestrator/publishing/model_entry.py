"""The one entry of a run in MLflow's Models tab and registry: made after the full validation, of the best checkpoint."""

import logging
import re

from orchestrator.publishing.shared_files import dataset_file, plans_file
from orchestrator.tracking.client import Tracker
from orchestrator.tracking.records import DIGEST_LENGTH, ModelEntry, run_name, validation_data
from orchestrator.tracking.scores import scored_unix
from trainers.contract.commits import Manifest
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec

log = logging.getLogger(__name__)

DECISIVE_METRIC = "full/best/dice_mean"
"""A run that has it has been validated."""


def finalise_model(tracker: Tracker, run_id: str, folder: RunFolder, best: Manifest) -> str | None:
    """Make the READY model of a validated run, once, and return its id; None while the run has no full validation.

    The model holds what nnU-Net loads: plans.json, dataset.json, fold_<k>/checkpoint_best.pth. Its scores carry the digest of the
    validation cases, so MLflow's Models tab compares only models that were scored on the same cases. Raises TrackingError.
    """
    scores = {key: value for key, value in tracker.metrics(run_id).items() if key.startswith("full/best/")}
    if DECISIVE_METRIC not in scores:
        return None
    spec = folder.spec()
    entry = ModelEntry(
        name=re.sub(r"[^\w\-]+", "_", run_name(spec)),
        sha256=best.sha256,
        files={
            "plans.json": plans_file(folder, spec),
            "dataset.json": dataset_file(folder, spec),
            f"fold_{spec.fold}/checkpoint_best.pth": folder.root / best.file,
        },
        params=_params(spec),
        scores=scores,
        unix=scored_unix(folder, "best"),
        data=(f"{spec.dataset} fold {spec.fold}", validation_data(spec)[:DIGEST_LENGTH]),
    )
    missing = [str(path) for path in entry.files.values() if not path.is_file()]
    if missing:
        log.warning("run %s gets no entry in MLflow's Models tab: %s missing", spec.run_key, ", ".join(missing))
        return None
    return tracker.record_model(run_id, entry)


def _params(spec: RunSpec) -> dict[str, str]:
    return {key: str(getattr(spec, key)) for key in ("dataset", "configuration", "trainer", "plans", "fold", "seed")}
