"""Keeps the states of a campaign's runs in MLflow up to date. A server that is away or refuses delays nothing else."""

import logging
from collections.abc import Callable, Sequence

from orchestrator.follow.followed_run import FollowedRun
from orchestrator.run.clock import Clock
from orchestrator.tracking.binding import TrackingServer
from orchestrator.tracking.end_state import is_refusal
from orchestrator.tracking.records import shared_reason
from trainers.contract.states import RunState
from trainers.errors import TrackingError

log = logging.getLogger(__name__)

RETRY_S = 30.0
REFRESH_S = 300.0
"""How often a campaign checks whether MLflow shows its open runs as ended."""
PATIENCE_S = 600.0
"""How long a campaign whose runs have all ended waits for a tracking server that is away."""


class StateReporter:
    """The states that MLflow does not know yet."""

    def __init__(self, campaign: str, tracker: TrackingServer | None, warn: Callable[[str], None], clock: Clock) -> None:
        self._campaign = campaign
        self._tracker = tracker
        self._warn = warn
        self._clock = clock
        self._unreported: dict[str, FollowedRun] = {}
        self._refused: set[str] = set()
        self._refreshed_s = clock.monotonic()
        self._retry_s = 0.0
        """No earlier than then the server is asked anything again."""
        self._all_ended_s: float | None = None

    def note(self, run: FollowedRun) -> None:
        """A run has come into another state."""
        if self._tracker is not None:
            self._unreported[run.key] = run

    def forget(self, run: FollowedRun) -> None:
        """A run is another's affair from now on."""
        self._unreported.pop(run.key, None)

    def refresh(self, open_runs: Sequence[FollowedRun]) -> None:
        """Now and then, report those again that MLflow shows as ended: another cluster, which cannot see that they live, ended them."""
        now_s = self._clock.monotonic()
        if self._tracker is None or not open_runs or now_s < max(self._retry_s, self._refreshed_s + REFRESH_S):
            return
        self._refreshed_s = now_s
        try:
            self._tracker.ping()  # fails within seconds, where other calls wait for minutes: the campaign waits with them
            shown = {run.run_id for run in self._tracker.open_runs()}
        except TrackingError as err:
            self._retry_s = self._clock.monotonic() + RETRY_S
            log.warning("the tracking server was not asked which runs it shows as open: %s", err)
            return
        ended = [run for run in open_runs if run.tracked.run_id not in shown]
        self._unreported.update({run.key: run for run in ended if run.key not in self._refused})

    def report(self) -> None:
        """Send MLflow the new states. One that it refuses is dropped; a server that is away is asked later, other runs first."""
        if self._tracker is None or self._clock.monotonic() < self._retry_s:
            return
        for key, run in list(self._unreported.items()):
            del self._unreported[key]
            try:
                self._tracker.ping()
                self._tracker.restore_run(run.tracked.run_id)
                self._tracker.set_state(run.tracked.run_id, run.state, is_waiting=run.is_waiting)
                tags = {"nnfleet.campaign": self._campaign, "nnfleet.reason": shared_reason(run.spec, run.reason)}
                self._tracker.set_tags(run.tracked.run_id, tags | ({"nnfleet.halving": run.halving_tag} if run.halving_tag else {}))
            except TrackingError as err:
                if is_refusal(err):
                    self._refused.add(key)
                    self._warn(f"MLflow refuses the state {run.state} of {key}; it is not sent again: {err}")
                    continue
                self._unreported[key] = run  # behind the others
                self._retry_s = self._clock.monotonic() + RETRY_S
                log.warning("states are sent to the tracking server again in %.0f s: %s", RETRY_S, err)
                return

    def withdraw(self, queued: Sequence[FollowedRun]) -> None:
        """The campaign is interrupted: MLflow shows the runs that no job follows as ended, if it answers at once."""
        if self._tracker is None:
            return
        try:
            for run in queued:
                self._tracker.ping()  # fails within seconds, and an interrupt leaves no more
                self._tracker.set_state(run.tracked.run_id, RunState.STOPPED)
                self._tracker.set_tags(run.tracked.run_id, {"nnfleet.reason": "its campaign was ended; `nnfleet resume` continues it."})
        except TrackingError as err:
            log.warning("MLflow shows queued runs as scheduled until the next campaign starts: %s", err)

    def is_over(self) -> bool:
        """Asked once all runs have ended: True when MLflow knows it, or has been away for too long since."""
        if not self._unreported:
            return True
        now_s = self._clock.monotonic()
        self._all_ended_s = now_s if self._all_ended_s is None else self._all_ended_s
        if now_s - self._all_ended_s < PATIENCE_S:
            return False
        missing = ", ".join(f"{key} ({run.state})" for key, run in self._unreported.items())
        self._warn(f"MLflow was unavailable for {PATIENCE_S / 60:.0f} minutes and lacks the end of {missing}. `nnfleet sync` delivers it.")
        return True
