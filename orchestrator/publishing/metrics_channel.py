"""One of the two channels from a run folder to MLflow: the measurements of its epochs."""

from collections.abc import Collection, Sequence

from orchestrator.tracking.binding import Destination
from orchestrator.tracking.plan_params import class_names
from trainers.contract.commits import EpochRow
from trainers.contract.run_folder import RunFolder


def epochs_missing(history: Sequence[EpochRow], logged: Collection[int]) -> list[int]:
    """Epochs of a committed history that MLflow lacks, in order; gaps are filled too."""
    return [row.epoch for row in history if row.epoch not in logged]


class MetricsChannel:
    """Sends the committed epochs that MLflow lacks. Can be interrupted anywhere and repeated by anybody: metrics carry fixed times."""

    name = "metrics"

    def __init__(self, folder: RunFolder, fencing_token: int) -> None:
        self._destination = Destination(folder, fencing_token)
        self._logged: frozenset[int] | None = None

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
        newest = self._destination.committed()  # training went on meanwhile
        return newest is None or not epochs_missing(newest.history, self._logged)

    def forget_server(self) -> None:
        """Ask anew what MLflow has: it failed, and may come back with another database."""
        self._destination.forget()
        self._logged = None
