"""What MLflow lacks of a finished run: it was not tracked before, another server was meant, or its MLflow run was lost."""

from orchestrator.publishing.candidates import holds_candidates
from orchestrator.publishing.published import published_in
from orchestrator.run.progress import checkpoints_due
from orchestrator.tracking.binding import TrackedRun, TrackingServer
from orchestrator.tracking.records import MARKER_METRIC, KnownRun
from orchestrator.tracking.scores import holds_scores
from trainers.contract.commits import Committed, newest_committed
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec


def lacks_results(spec: RunSpec, tracked: TrackedRun, tracker: TrackingServer | None) -> bool:
    """True when MLflow lacks epochs, a checkpoint or scores of a finished run. Raises TrackingError."""
    if tracker is None:
        return False
    folder, known = RunFolder(spec.run_folder), tracker.recorded_run(tracked.run_id)
    committed = newest_committed(folder)
    if known is None or (committed is not None and _lacks_training(committed, known)):
        return True
    has_scores = all(holds_scores(known.metrics, folder, name) for name in checkpoints_due(spec, committed))
    return not (has_scores and holds_candidates(known.metrics, folder))


def _lacks_training(committed: Committed, known: KnownRun) -> bool:
    """True unless MLflow has an epoch and the very checkpoints that are committed. Pure."""
    if committed.history and MARKER_METRIC not in known.metrics:
        return True
    held = {manifest: published_in(known.tags, name) for name, manifest in committed.checkpoints.items()}
    return any(record is None or record.manifest.sha256 != manifest.sha256 for manifest, record in held.items())
