"""One of the two channels from a run folder to MLflow: the measurements of its epochs."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from orchestrator.tracking.binding import Destination
from orchestrator.tracking.plan_params import class_names
from orchestrator.tracking.records import LIMITED_BY_TAG
from trainers.contract.bottleneck import limit_of
from trainers.contract.commits import RECENT_EPOCHS, EpochRow
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
        self._limit = ""

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
        newest = self._destination.committed()  # training went on meanwhile
        return newest is None or not epochs_missing(newest.history, self._logged)

    def _tag_limit(self, tracker: "Tracker", run_id: str, history: Sequence[EpochRow]) -> None:
        limit = limit_of(history[-RECENT_EPOCHS:])
        if limit is not None and limit.name != self._limit:
            tracker.set_tags(run_id, {LIMITED_BY_TAG: limit.name})
            self._limit = limit.name

    def forget_server(self) -> None:
        """Ask anew what MLflow has: it failed, and may come back with another database."""
        self._destination.forget()
        self._logged, self._limit = None, ""
