"""The runs that a name may mean: those that a cluster's campaigns report, and those that only folders know."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator.campaign.follower import Follower
from orchestrator.cluster import submissions
from orchestrator.cluster.home import Home
from orchestrator.cluster.target import Target
from orchestrator.run.below import RESULTS, results_absence, results_folder
from orchestrator.run.names import left_text
from orchestrator.run.status import RunStatus, match_all, without_removed

log = logging.getLogger(__name__)


class Known(NamedTuple):
    """The runs that a name may mean."""

    reported: list[RunStatus]
    """Those that campaigns of the cluster have reported, and those of submissions that a head took and did not begin, which come first."""
    stored: Sequence[RunStatus] = ()
    """Those that only their folders know."""
    left: Sequence[str] = ()
    """As in `Snapshot`."""

    @property
    def all(self) -> list[RunStatus]:
        """Reported ones first."""
        return [*self.reported, *self.stored]

    def named(self, names: Sequence[str], *, hints: bool = True) -> list[RunStatus]:
        """As `match_all`, with a warning of what is left out."""
        found = match_all(names, self.all, hints=hints, left=self.left)
        warn_of(self.left)
        return found


def follower_of(meant: Target) -> Follower | None:
    """One for a whole verb: it reads each campaign's log once. None where no cluster runs."""
    return None if meant.reached is None else Follower(meant.reached)


def reported_runs(meant: Target, follower: Follower, campaign: str | None) -> list[RunStatus]:
    """What campaigns report, without what was removed or is not to be shown."""
    statuses = submissions.shown(Home.default(), follower.statuses(campaign))
    return without_removed(statuses) if meant.is_here else statuses


def known_runs(meant: Target, follower: Follower | None, campaign: str | None = None, results: Path | None = None) -> Known:
    """The runs of a cluster and of the results folder; of one campaign none that only its folder knows.

    Raises ConfigError where nnUNet_results names no folder and no campaign has reported a run.
    """
    home = Home.default()
    reported = [] if follower is None else reported_runs(meant, follower, campaign)
    if campaign is not None:
        return Known(reported)
    failed = {status.run_key: status.reason for status in reported if not status.is_claimed}  # their folders may know more of them
    stored, left = _stored_runs([status for status in reported if status.is_claimed], meant, results)
    stored = [status.model_copy(update={"reason": failed.get(status.run_key, status.reason)}) for status in stored]
    shown = {status.run_key for status in stored}
    reported = [status for status in reported if status.run_key not in shown]
    shown |= {status.run_key for status in reported}
    lacking = submissions.never_begun(home, {} if follower is None else follower.campaigns()) if meant.is_here else []
    never_begun = [status for status in submissions.shown(home, lacking) if status.run_key not in shown]
    return Known([*never_begun, *reported], stored, left)


def _stored_runs(statuses: Sequence[RunStatus], meant: Target, results: Path | None) -> tuple[list[RunStatus], list[str]]:
    if results is None and not (meant.is_here and os.environ.get(RESULTS)):
        return [], []
    if results is None and statuses and (absence := results_absence(os.environ)):
        log.warning("%s", absence)  # what the cluster knows is shown and stopped all the same
        return [], []
    from orchestrator.resume.stored import stored_below

    return stored_below(results_folder(results, os.environ), {status.run_key for status in statuses})


def warn_of(left: Sequence[str]) -> None:
    """Name the run folders that were left out, in a warning."""
    if left:
        log.warning("%s", left_text(left))
