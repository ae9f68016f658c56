"""What follows a failure in Ray Train's controller: our budgets decide, not Ray's counters, which know neither whose fault it was nor
whether there was progress in between.

Runs in the controller, on the head node, once per failed start. What it counts is in its memory; the files are for people, and for the
driver, which reports how the job ended.
"""

import logging
import time
from typing import Any

from ray.train.v2._internal.exceptions import (  # Ray's marks of workers that are gone or find no capacity
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, TrainingFailedError, WorkerGroupError

from orchestrator.run.failure import Failure
from orchestrator.run.outcome import EVIDENCE_CHARACTERS
from orchestrator.training.failures import MESSAGE_CHARACTERS, Blame, RankError, blame, write_failure
from orchestrator.training.retry_budgets import STARTS_WITHOUT_PROGRESS, final_failure, starts_charged
from trainers.contract.commits import committed_position
from trainers.contract.fencing import newest_token_of
from trainers.contract.run_folder import RunFolder
from trainers.errors import NnfleetError

log = logging.getLogger(__name__)
NEW_WAIT_S = 60.0
"""A gang that waits again after so long had started in between."""
WAITING_LOG_S = 600.0


class BudgetPolicy(FailurePolicy):
    """Starts the workers again as long as the budgets allow it (`retry_budgets.final_failure`)."""

    def __init__(self, folder: RunFolder, driver: str, fencing_token: int) -> None:
        super().__init__(FailureConfig())
        self._folder, self._driver, self._fencing_token = folder, driver, fencing_token
        self._position = (0, 0)
        self._failures: list[Failure] = []
        self._waited_s = self._reported_s = float("-inf")
        """When the workers last waited for capacity, and when that was last logged, on the monotonic clock."""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """RETRY or RAISE. A gang that finds no capacity in time is no failure: it keeps waiting.

        An error of the controller's own ends the job, also a rank's death while the gang is set up: Ray 2.60 then keeps the resources
        of the half-started gang for ever, from the next one too. The end of the controller frees it, and the campaign starts another job.
        """
        cause = getattr(training_failed_error, "controller_failure", None)
        if isinstance(cause, WorkerGroupStartupTimeoutError):
            self._report_waiting(cause)
            return FailureDecision.RETRY
        found = blame_of(training_failed_error)
        self._update_position()
        failure = Failure(
            driver=self._driver,
            fencing_token=self._fencing_token,
            kind=found.kind,
            state=found.state,
            epochs_done=self._position[0],
            iteration=self._position[1],
            message=found.message,
            evidence=found.evidence,
            rank=found.rank,
            unix=time.time(),
        )
        self._failures.append(failure)
        is_rays = isinstance(training_failed_error, ControllerError)
        final = failure if is_rays else final_failure(self._failures)
        write_failure(self._folder, failure if final is None else final.model_copy(update={"is_final": True}))
        decision = "the workers start again" if final is None else "the job ends"
        charged = f"{starts_charged(self._failures)} of {STARTS_WITHOUT_PROGRESS.get(failure.kind, 'any number')} without progress"
        start = f"start {failure.fencing_token} failed in {failure.where}"
        log.warning("%s: %s (%s failure, %s): %s\n%s", decision, start, failure.kind, charged, failure.message, failure.evidence)
        return FailureDecision.RETRY if final is None else FailureDecision.RAISE

    def _report_waiting(self, cause: Exception) -> None:
        """Log that the workers wait when that begins, and now and then again: Ray asks in rounds of 20 s."""
        now_s = time.monotonic()
        is_new, self._waited_s = now_s - self._waited_s >= NEW_WAIT_S, now_s
        if is_new or now_s - self._reported_s >= WAITING_LOG_S:
            self._reported_s = now_s
            log.warning("no capacity for the workers yet, they wait: %s", cause)

    def _update_position(self) -> None:
        """Number of the start and how far training has come; where the disk cannot be read, they stay what they were."""
        try:
            self._position = committed_position(self._folder)
            self._fencing_token = newest_token_of(self._folder, self._driver) or self._fencing_token
        except (NnfleetError, OSError) as err:
            log.warning("%s cannot be read, so no progress is seen: %s", self._folder.root, err)


def blame_of(error: TrainingFailedError) -> Blame:
    """What an error of Ray Train comes to; pure."""
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        return blame({rank: rank_error(found) for rank, found in error.worker_failures.items()})
    text = str(error)
    kind: Any = "preemption" if isinstance(error, PreemptionError) else "cluster"
    return Blame(kind, "FAILED_CLUSTER", text[:MESSAGE_CHARACTERS], text[-EVIDENCE_CHARACTERS:])


def rank_error(error: Exception) -> RankError:
    """Ray Train's error of one rank: it marks those of ranks that are gone, and hands on what a rank's own code raised."""
    if isinstance(error, WorkerHealthCheckFailedError):
        return RankError(error.health_check_failure, is_raised=False)
    return RankError(error, is_raised=not isinstance(error, WorkerHealthCheckTimeoutError))
