"""One of the two channels from a run folder to MLflow: the measurements of its epochs."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from orchestrator.run.estimate import estimate_metrics
from orchestrator.tracking.binding import Destination
from orchestrator.tracking.plan_params import class_names
from orchestrator.tracking.records import LIMITED_BY_TAG, early_end_tags
from trainers.contract.bottleneck import limit_of
from trainers.contract.commits import RECENT_EPOCHS, Committed, EpochRow, early_end_of
from trainers.contract.run_folder import RunFolder

if TYPE_CHECKING:
    from orchestrator.tracking.client import Tracker


def epochs_missing(history: Sequence[EpochRow], logged: Collection[int]) -> list[int]:
    """Epochs of a committed history that MLflow lacks, in order; gaps are filled too."""
    return [row.epoch for row in history if row.epoch not in logged]


class MetricsChannel:
    """Sends the committed epochs that MLflow lacks. Can be interrupted anywhere and repeated by anybody: metrics carry fixed times."""

    name = "metrics"

    def __init__(self, folder: RunFolder, fencing_token: int) -> None:
        self._destination = Destination(folder, fencing_token)
        self._logged: frozenset[int] | None = None
        self._limit = self._early_end = ""
        self._has_estimate = False

    def send(self, closing: bool) -> bool:
        """Send what is missing; when `closing`, MLflow is asked again what it has. Returns True when all that is committed has arrived.

        Raises TrackingError, Superseded.
        """
        committed = self._destination.committed()
        opened = self._destination.open()
        if opened is None or committed is None:
            return True
        tracker, run_id = opened
        if self._logged is None or closing:
            self._logged = tracker.logged_epochs(run_id)
        if epochs_missing(committed.history, self._logged):
            self._destination.check_fence()
            self._logged = tracker.log_epochs(run_id, committed.history, class_names(self._destination.spec), self._logged)
            self._tag_limit(tracker, run_id, committed.history)
        self._tag_early_end(tracker, run_id, committed)
        self._send_estimate(tracker, run_id, committed)
        newest = self._destination.committed()  # training went on meanwhile
        return newest is None or not epochs_missing(newest.history, self._logged)

    def _tag_early_end(self, tracker: "Tracker", run_id: str, committed: Committed) -> None:
        early = early_end_of(self._destination.spec, committed)
        if early != self._early_end:
            self._destination.check_fence()
            tracker.set_tags(run_id, early_end_tags(self._destination.spec, early))
            self._early_end = early

    def _send_estimate(self, tracker: "Tracker", run_id: str, committed: Committed) -> None:
        """How wrong the expected duration was, once the run is trained."""
        values = {} if self._has_estimate else estimate_metrics(self._destination.folder, committed)
        if values:
            tracker.log_scores(run_id, values, committed.history[-1].ended_unix)
            self._has_estimate = True

    def _tag_limit(self, tracker: "Tracker", run_id: str, history: Sequence[EpochRow]) -> None:
        limit = limit_of(history[-RECENT_EPOCHS:])
        if limit is not None and limit.name != self._limit:
            tracker.set_tags(run_id, {LIMITED_BY_TAG: limit.name})
            self._limit = limit.name

    def forget_server(self) -> None:
        """Ask anew what MLflow has: it failed, and may come back with another database."""
        self._destination.forget()
        self._logged, self._limit, self._early_end, self._has_estimate = None, "", "", False
