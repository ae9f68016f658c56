"""The verbs that look: runs, test sets and comparisons of a cluster, their logs, its queue."""

import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.campaign.follower import Follower
from orchestrator.cluster import local_services
from orchestrator.cluster.target import outage_of, reach
from orchestrator.errors import ClusterError
from orchestrator.run.job_record import is_preprocessing, preprocessing_named_in
from orchestrator.run.status import RunStatus, match
from orchestrator.run.training_log import has_begun_its_log, job_logs, own_lines, stored_logs, training_logs
from orchestrator.verbs.known_runs import follower_of, known_runs, reported_runs, warn_of
from orchestrator.verbs.services import is_local

if TYPE_CHECKING:
    from orchestrator.campaign.events import ComparisonMade
    from orchestrator.campaign.queue_view import QueueReport
    from orchestrator.run.job_record import JobRecord


@dataclass(frozen=True)
class Look:
    """One of several looks at a cluster."""

    statuses: list[RunStatus]
    """As `status` returns them."""
    test_sets: "list[JobRecord]"
    """The jobs of `evaluate` and `predict` that are alive, or were at an earlier look; none where one campaign is asked for."""
    comparisons: "Sequence[ComparisonMade]" = ()
    """Of models whose campaign has ended, in MLflow."""
    ending: Collection[str] = ()
    """Campaigns whose runs have all ended, and which still deliver, or compare the models."""


@dataclass(frozen=True)
class Snapshot:
    """What one look at a cluster shows."""

    statuses: list[RunStatus]
    """Every run that a campaign of the cluster has reported, and those of submissions that a head took and did not begin."""
    stored: list[RunStatus]
    """Runs below the results folder that no campaign of the cluster knows: finished before a `down` or a reboot, or cut off by it."""
    outage: str
    """A sentence if the MLflow server of the local services is down."""
    test_sets: "list[JobRecord]"
    """The living jobs of `evaluate` and `predict`; none where one campaign is asked for."""
    left: list[str]
    """A sentence for each folder of a run below the results folder that cannot be followed: it is damaged, or was moved or copied."""
    comparisons: "Sequence[ComparisonMade]" = ()
    """As in `Look`."""


def status(cluster: str | None = None, campaign: str | None = None) -> list[RunStatus]:
    """The state of every run, or of those of one campaign; of a run in several campaigns the newest counts. Empty if nothing runs here."""
    return next(looks(cluster, campaign)).statuses


def looks(cluster: str | None = None, campaign: str | None = None) -> Iterator[Look]:
    """`status` again at each `next`, over one connection, with test sets; ends after an empty look if nothing runs here."""
    meant = reach(cluster)
    if meant.reached is None:
        yield Look([], [])
        return
    follower = Follower(meant.reached)
    while True:
        statuses = reported_runs(meant, follower, campaign)
        test_sets = follower.test_sets() if campaign is None else []
        yield Look(statuses, test_sets, follower.comparisons(), follower.ending(statuses))


def snapshot(cluster: str | None = None, campaign: str | None = None, results: Path | None = None) -> Snapshot:
    """`status`, `stored` and `tracking_outage` at one look, which asks the job server for its list once."""
    meant = reach(cluster)
    follower = follower_of(meant)
    known = known_runs(meant, follower, campaign, results)
    test_sets = follower.test_sets() if follower is not None and campaign is None else []
    comparisons = follower.comparisons() if follower is not None else []
    return Snapshot(known.reported, [*known.stored], outage_of(meant.local), test_sets, [*known.left], comparisons)


def stored(cluster: str | None = None, results: Path | None = None) -> list[RunStatus]:
    """Runs below a results folder that no campaign of the cluster knows, read from their folders.

    `results`: default nnUNet_results of this process where the cluster is the local one; without a folder that is seen here: none.
    """
    seen = snapshot(cluster, results=results)
    warn_of(seen.left)
    return seen.stored


def local_runs() -> list[RunStatus]:
    """The runs that campaigns of the local services have reported; none where these do not run."""
    local = local_services.running()
    return [] if local is None else Follower(reach(local.ray_address).jobs).statuses()


def tracking_outage(cluster: str | None = None) -> str:
    """A sentence if the local services are meant and their MLflow server is down; else nothing."""
    return outage_of(local_services.running()) if cluster is None and is_local() else ""


def logs(
    run: str,
    cluster: str | None = None,
    follow: bool = False,
    earlier: bool = False,
    on_found: Callable[[RunStatus], None] = lambda status: None,
) -> Iterator[str]:
    """The training log of a run from its folder, then what its validation job printed; where none was begun, or with `follow` as it grows
    until the run has ended, what its newest training job printed instead.

    With `earlier` all training logs and what all its jobs printed, oldest first, each below a line with its name; without it no line that
    Ray prints of itself, so that a text may be empty. Of a run that no campaign
    of the cluster knows: what its folder holds. `on_found` gets the run's status before its first line.
    """
    meant = reach(cluster)
    follower = follower_of(meant)
    if follower is not None and is_preprocessing(run):
        return _printed(follower, run, follow=follow, earlier=earlier)
    known = known_runs(meant, follower)
    found = match(run, known.all, left=known.left)
    warn_of(known.left)
    on_found(found)
    if follower is not None and (job := preprocessing_named_in(found.reason)):
        return _printed(follower, job, follow=follow, earlier=earlier)
    if not found.campaign or follower is None:
        return stored_logs(found.run_folder, earlier=earlier)
    if follow:
        printed = follower.logs(found.run_key, found.campaign, follow=True, earlier=earlier)
        return printed if earlier else map(own_lines, printed)
    return _logs_so_far(follower, found, earlier=earlier)


def _printed(follower: Follower, submission_id: str, *, follow: bool, earlier: bool) -> Iterator[str]:
    printed = follower.printed(submission_id, follow=follow)
    return printed if earlier else map(own_lines, printed)


def _logs_so_far(follower: Follower, run: RunStatus, *, earlier: bool) -> Iterator[str]:
    jobs = follower.jobs_of(run.run_key)
    if earlier:
        yield from training_logs(run.run_folder, earlier=True)
        yield from job_logs(run.run_folder, but={job.submission_id for job in jobs})
    trainings = [job for job in jobs if job.kind == "train"]
    has_log = not earlier and has_begun_its_log(run.run_folder, trainings[-1].started_unix if trainings else 0.0)
    if has_log:
        yield from training_logs(run.run_folder)
    printed = follower.logs(run.run_key, run.campaign, earlier=earlier, but_training=has_log)
    yield from printed if earlier else map(own_lines, printed)


def queue(cluster: str | None = None) -> "QueueReport":
    """Which runs wait on the cluster, in their order, and what each user holds; nothing waits where no cluster runs."""
    from orchestrator.campaign import handover
    from orchestrator.campaign.queue_view import QUEUE_EVENTS, QueueReport, queue_report

    meant = reach(cluster)
    if meant.reached is None:
        return QueueReport()
    seen = handover.seen_here(meant, lambda here: queue_report(here.jobs, here.nodes(), here.registry))
    if seen is not None:
        return seen
    submission_id = meant.reached.submit_control(f"queue-{secrets.token_hex(4)}", ["queue"])
    events, failure = Follower(meant.reached).ended(submission_id, QUEUE_EVENTS)
    if not events:
        raise failure or ClusterError(f"queue: {submission_id} printed nothing. See its log in Ray's dashboard.")
    return events[-1].queue
