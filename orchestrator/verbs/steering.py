"""The verbs that change what runs do: stopped, given another place in the queue, validated again."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.campaign.follower import Follower
from orchestrator.campaign.stopping import HowToEnd, ask_each, ask_to_stop, end_test_sets, meant_test_sets, of_all_campaigns, stop_paused
from orchestrator.cluster import submissions
from orchestrator.cluster.home import Home
from orchestrator.cluster.target import is_idle, reach
from orchestrator.errors import ConfigError, StorageError
from orchestrator.run.job_record import is_test_set
from orchestrator.run.status import RunStatus, cannot_finish, match_all, unlike_ends
from orchestrator.verbs.known_runs import Known, follower_of, known_runs
from trainers.contract.states import RunState

if TYPE_CHECKING:
    from orchestrator.run.job_record import JobRecord

log = logging.getLogger(__name__)


def stop(
    runs: Sequence[str] = (),
    now: bool = False,
    cluster: str | None = None,
    *,
    campaign: str | None = None,
    everything: bool = False,
    finish: bool = False,
    anneal: int = 0,
    on_wait: Callable[[str], None] | None = None,
    on_test_set: "Callable[[JobRecord], None] | None" = None,
) -> list[RunStatus]:
    """Ask runs to stop after their epoch or the cases in work, or at once: those that the names mean, with `campaign` those of that
    campaign, with `everything` all. Returns their status before. Submitted again, they continue.

    With `finish` they end after their epoch as trained runs, which are validated, or after `anneal` more epochs over which the learning
    rate is annealed; runs that wait without an epoch, or are trained, are not asked (`orchestrator/run/status.py`: `cannot_finish`).

    Jobs of test sets (named `test-...`, or with `everything`) end at once and keep finished cases; `on_test_set` gets each.
    Runs that never began are not shown any more, unless they are submitted again; paused ones count as stopped from then on. Those of a
    campaign that still begins are asked last, once it owns them; `on_wait` gets what is waited for, and before anything is asked a warning
    for each model whose folds end unlike.
    Raises ConfigError when nothing is named, or for a name that means nothing; ClusterError when some could not be asked; the error of a
    campaign that fails first.
    """
    if not (runs or campaign or everything):
        raise ConfigError("stop: no run is named. Name runs, a campaign (--campaign ID), or all that live (--all).")
    if anneal > 0 and not (now or finish):
        raise ConfigError("stop: the learning rate is annealed for runs that end as trained ones: add --finish to --anneal.")
    if (now and finish) or anneal < 0 or (anneal and not finish):
        raise ConfigError(
            f"stop: now={now}, finish={finish}, anneal={anneal} do not go together. `anneal` belongs to `finish`, not to `now`."
        )
    if finish and (tests := [name for name in runs if is_test_set(name)]):
        raise ConfigError(f"stop: {tests[0]} is a test set, which trains nothing. Stop it without --finish.")
    meant = reach(cluster)
    follower = follower_of(meant)
    names = [name for name in runs if not is_test_set(name)]
    known = known_runs(meant, follower, campaign) if names or not runs else Known([])
    statuses = known.all
    found = known.named(names, hints=False) if names else [status for status in statuses if _is_open(status, campaign)]
    _hide([status for status in found if not (status.is_claimed or finish)])
    living = [status for status in found if status.campaign and not status.state.is_final]
    ending = [] if finish else meant_test_sets(runs, follower, everything=everything)
    if follower is not None:
        asked = [status for status in living if not (finish and cannot_finish(status))]
        if finish and on_wait is not None:
            for warning in unlike_ends(statuses, asked, anneal):
                on_wait(f"Warning: {warning}")
        asked = asked if campaign is not None else of_all_campaigns(asked, follower)
        asking = partial(ask_to_stop, asked, meant, follower, HowToEnd(now, finish, anneal), on_wait)
        ask_each([partial(end_test_sets, ending, meant.jobs, on_test_set), asking])
    if not finish and (paused := [status for status in found if status.state is RunState.PAUSED]):
        stop_paused(paused, meant, is_now=now)
    return found


def place(runs: Sequence[str], cluster: str | None = None, *, priority: int | None = None, is_first: bool = False) -> list[RunStatus]:
    """Give waiting runs another place in the queue: a priority (0-100), or the front of their own user's. Returns their status before.

    It holds from the campaign's next look on, and for later starts too, until the run is submitted with another priority. Raises
    ConfigError for a name that means nothing, or a run that does not wait.
    """
    from orchestrator.campaign.stopping import ask_for_place

    meant = reach(cluster)
    follower = follower_of(meant)
    found = match_all(runs, known_runs(meant, follower).reported, hints=False)
    if ended := [status.address for status in found if status.state.is_final]:
        raise ConfigError(f"queue: {', '.join(ended)} has ended and waits for nothing. `nnfleet queue` shows the runs that wait.")
    if follower is not None:
        ask_for_place(found, meant, follower, priority=priority, is_first=is_first)
    return found


def validate(runs: Sequence[str], cluster: str | None = None, *, npz: bool = False, best: bool = False) -> list[str]:
    """Start the full validation of trained runs, again if need be; returns the submission ids.

    `npz`: from now on the runs keep probabilities. `best`: a run that was stopped before its end is validated with its best checkpoint.
    Raises ConfigError for a run that is not trained, after the others have been started.
    """
    from orchestrator.campaign import handover

    if is_idle(cluster):
        known = known_runs(reach(cluster), None)
        match_all(runs, known.stored, left=known.left)
    meant = reach(cluster, starts=True)
    follower = Follower(meant.jobs)
    found = known_runs(meant, follower).named(runs)
    return handover.send_revalidations(meant, follower, found, npz=npz, best=best)


def _is_open(status: RunStatus, campaign: str | None) -> bool:
    """Whether a stop that names no run means this one: it has not ended, or it never began and its campaign is named."""
    return not status.state.is_final or (campaign is not None and not status.is_claimed)


def _hide(statuses: Sequence[RunStatus]) -> None:
    """Show runs that never began no more: the user who stops one needs no reminder of it."""
    home = Home.default()
    submissions.drop_runs(home, {status.run_key for status in statuses})
    try:
        submissions.hide(home, statuses)
    except (OSError, StorageError) as err:
        log.warning("runs that never began are shown again, as it cannot be noted that they need not be: %s", err)
