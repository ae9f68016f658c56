"""The end of a run, published to MLflow by the job that ended it."""

import logging

from orchestrator.run.outcome import Outcome, is_newest
from orchestrator.tracking.binding import bound_run, server_of
from orchestrator.tracking.records import shared_reason
from trainers.contract.run_folder import RunFolder
from trainers.contract.states import RunState
from trainers.errors import NnfleetError, TrackingError

log = logging.getLogger(__name__)


REFUSALS = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "BAD_REQUEST", "PERMISSION_DENIED"})
"""MLflow's codes for a request that would fail again: the run was deleted, or may not be changed by us."""


def is_refusal(error: TrackingError) -> bool:
    """True when the tracking server answered and refused; False when it is away."""
    return getattr(error.__cause__, "error_code", "") in REFUSALS


def publish_end(folder: RunFolder, outcome: Outcome) -> bool:
    """Publish to MLflow how a run ended, from the job that ended it: its campaign may be dead. True if MLflow has the end now.

    Only a final outcome of the newest driver is published; the campaign publishes the same, so the order does not matter. Raises nothing.
    """
    try:
        end = final_state(outcome)
        spec = folder.spec()
        bound = bound_run(folder, spec)
        if end is None or bound is None or not is_newest(folder, outcome.fencing_token):
            return False
        tracker = server_of(bound)
        tracker.set_state(bound.run_id, end)
        tracker.set_tags(bound.run_id, {"nnfleet.reason": shared_reason(spec, "" if end is RunState.SUCCEEDED else outcome.message)})
    except Exception as err:
        known = isinstance(err, NnfleetError)
        log.warning("MLflow did not get the end of the run in %s (`nnfleet sync` publishes it): %s", folder.root, err, exc_info=not known)
        return False
    return True


def final_state(outcome: Outcome | None) -> RunState | None:
    """The state in which an outcome leaves its run; None while something is still to be done. Pure."""
    if outcome is None or outcome.is_open or outcome.state == "SUPERSEDED":
        return None
    return RunState(outcome.state)
