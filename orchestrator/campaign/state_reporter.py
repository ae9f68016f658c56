"""Keeps the states of a campaign's runs in MLflow up to date. A server that is away or refuses holds nothing else up."""

import logging
import time
from collections.abc import Callable, Sequence

from orchestrator.campaign.run_watch import RunWatch
from orchestrator.tracking.binding import TrackingServer
from orchestrator.tracking.end_state import is_refusal
from orchestrator.tracking.records import shared_reason
from trainers.contract.errors import TrackingError

log = logging.getLogger(__name__)

RETRY_S = 30.0
LOOK_S = 300.0
"""How often a campaign looks whether MLflow shows its open runs as ended."""
PATIENCE_S = 600.0
"""How long a campaign whose runs have all ended waits for a tracking server that is away."""


class StateReporter:
    """The states that MLflow does not know yet."""

    def __init__(self, campaign: str, tracker: TrackingServer | None, warn: Callable[[str], None]) -> None:
        self._campaign = campaign
        self._tracker = tracker
        self._warn = warn
        self._unreported: dict[str, RunWatch] = {}
        self._refused: set[str] = set()
        self._looked_at = time.monotonic()
        self._again_at = 0.0
        self._ended_at: float | None = None

    def note(self, run: RunWatch) -> None:
        """A run has come into another state."""
        if self._tracker is not None:
            self._unreported[run.spec.run_key] = run

    def forget(self, run: RunWatch) -> None:
        """A run is another's affair from now on."""
        self._unreported.pop(run.spec.run_key, None)

    def refresh(self, open_runs: Sequence[RunWatch]) -> None:
        """Now and then, tell again those that MLflow shows as ended: another cluster, which cannot know that they live, has ended them."""
        now = time.monotonic()
        if self._tracker is None or not open_runs or now < max(self._again_at, self._looked_at + LOOK_S):
            return
        self._looked_at = now
        try:
            self._tracker.ping()  # fails within seconds, where other calls wait for minutes: the campaign waits with them
            shown = {run.run_id for run in self._tracker.open_runs()}
        except TrackingError as err:
            self._again_at = time.monotonic() + RETRY_S
            log.warning("the tracking server was not asked what it shows of the runs: %s", err)
            return
        ended = [run for run in open_runs if run.tracked.run_id not in shown]
        self._unreported.update({run.spec.run_key: run for run in ended if run.spec.run_key not in self._refused})

    def tell(self) -> None:
        """Tell MLflow the new states. A run that it refuses is not told again; a server that is away is asked later, other runs first."""
        if self._tracker is None or time.monotonic() < self._again_at:
            return
        for key, run in list(self._unreported.items()):
            del self._unreported[key]
            try:
                self._tracker.ping()
                self._tracker.set_state(run.tracked.run_id, run.state)
                self._tracker.set_tags(
                    run.tracked.run_id, {"nnfleet.campaign": self._campaign, "nnfleet.reason": shared_reason(run.spec, run.reason)}
                )
            except TrackingError as err:
                if is_refusal(err):
                    self._refused.add(key)
                    self._warn(f"MLflow refuses the state {run.state} of {key} and is not told it again: {err}")
                    continue
                self._unreported[key] = run  # at the end of the row
                self._again_at = time.monotonic() + RETRY_S
                log.warning("states go to the tracking server in %.0f s: %s", RETRY_S, err)
                return

    def is_over(self) -> bool:
        """Asked once all runs have ended: True when MLflow knows it, or has been away for too long since."""
        if not self._unreported:
            return True
        self._ended_at = self._ended_at or time.monotonic()
        if time.monotonic() - self._ended_at < PATIENCE_S:
            return False
        left = ", ".join(f"{key} ({run.state})" for key, run in self._unreported.items())
        self._warn(f"MLflow was away for {PATIENCE_S / 60:.0f} minutes and does not know the end of {left}. `nnfleet sync` tells it.")
        return True
