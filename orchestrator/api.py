"""The verbs of nnfleet for Python; the command line only renders what they return.

Where a verb takes `cluster`, None means: the cluster that Ray's own variables name (RAY_API_SERVER_ADDRESS, then RAY_ADDRESS), else the
local services. Every verb may raise ClusterError. `orchestrator/run/names.py` holds how a `run` is named; ConfigError lists the known ones.
"""

import logging
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.campaign.follower import Follower
from orchestrator.campaign.stopping import HowToEnd, ask_each, ask_to_stop, end_test_sets, meant_test_sets, of_all_campaigns, stop_paused
from orchestrator.cluster import local_services, submissions
from orchestrator.cluster.code_package import keep_code
from orchestrator.cluster.discovery import named_by_environment
from orchestrator.cluster.home import Home, login_name
from orchestrator.cluster.local_services import Services
from orchestrator.cluster.target import Target, is_idle, outage_of, reach
from orchestrator.errors import ClusterError, ConfigError, StorageError
from orchestrator.maintenance_verbs import drill as drill
from orchestrator.maintenance_verbs import free as free
from orchestrator.maintenance_verbs import garbage as garbage
from orchestrator.maintenance_verbs import removable as removable
from orchestrator.maintenance_verbs import remove as remove
from orchestrator.maintenance_verbs import sync as sync
from orchestrator.maintenance_verbs import warn_of
from orchestrator.model_verbs import compare as compare
from orchestrator.model_verbs import diff as diff
from orchestrator.model_verbs import evaluate as evaluate
from orchestrator.model_verbs import export as export
from orchestrator.model_verbs import import_folder as import_folder
from orchestrator.model_verbs import predict as predict
from orchestrator.model_verbs import publish_report as publish_report
from orchestrator.model_verbs import write_report as write_report
from orchestrator.run.below import RESULTS, results_absence, results_folder
from orchestrator.run.job_record import is_preprocessing, is_test_set, preprocessing_named_in
from orchestrator.run.status import RunStatus, cannot_finish, match, match_all, unlike_ends, without_removed
from orchestrator.run.training_log import has_begun_its_log, job_logs, own_lines, stored_logs, training_logs
from trainers.contract.states import RunState

if TYPE_CHECKING:
    from orchestrator.campaign.events import ComparisonMade
    from orchestrator.campaign.queue_view import QueueReport
    from orchestrator.experiment.model import Experiment
    from orchestrator.experiment.plan import PlanReport
    from orchestrator.queue.gang_fit import NodeResources
    from orchestrator.run.job_record import HandedRun, JobRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Submission:
    """A campaign that runs."""

    campaign_id: str
    """This and the next are empty where nothing was left to do, and no campaign was started."""
    submission_id: str
    plan: "PlanReport"


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


def up(
    home: Home | None = None,
    *,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    memory_gib: float | None = None,
    allow_hosts: Sequence[str] = (),
    artifacts: Path | None = None,
) -> Services:
    """Start the local Ray head and MLflow server, or find them running; the options are those of `nnfleet up`.

    The numbers are what the head gives out to runs, until `down`; default: what this process may use. The options of MLflow are kept.
    Raises ConfigError when the head runs with others.
    """
    return local_services.up(
        home, num_cpus=num_cpus, num_gpus=num_gpus, memory_gib=memory_gib, allow_hosts=allow_hosts, artifacts=artifacts
    )


def down(home: Home | None = None) -> None:
    """End the local services with everything that runs on them."""
    local_services.down(home)


def local_runs() -> list[RunStatus]:
    """The runs that campaigns of the local services have reported; none where these do not run."""
    local = local_services.running()
    return [] if local is None else Follower(reach(local.ray_address).jobs).statuses()


def plan(experiment: "Experiment", cluster: str | None = None) -> "PlanReport":
    """What `submit` would send. Starts nothing: with no cluster it is read here, for this machine. Raises ConfigError, DataError."""
    meant = reach(cluster)
    if meant.reached is None:
        from orchestrator.experiment.awaited import plan_to_come
        from orchestrator.experiment.expansion import expand
        from orchestrator.experiment.plan import plan_report
        from orchestrator.preprocessing.due import due_of

        if (due := due_of(experiment)) is not None:
            return plan_to_come(experiment.with_folders_resolved(), due.dataset, due.names, [this_machine()])
        crowded = local_services.crowding_of(Home.default(), local_services.offered())
        node, name = this_machine(), "this machine, which runs nothing yet"
        return plan_report(experiment, expand(experiment), [node], cluster=name, warnings=[crowded] if crowded else [])
    from orchestrator.campaign import handover

    sent = _as_sent(experiment, meant.local)
    if (report := handover.seen_here(meant, lambda here: handover.plan(sent, here))) is not None:
        return report
    submission_id = meant.reached.submit_campaign(secrets.token_hex(4), sent.to_yaml(), plan_only=True)
    return Follower(meant.reached).first_plan(submission_id)


def submit(
    experiment: "Experiment",
    cluster: str | None = None,
    on_submit: Callable[[str], None] | None = None,
    on_wait: Callable[[str], None] | None = None,
    *,
    replaces: bool = False,
    again: str = "",
) -> Submission:
    """Start a campaign, which goes on without us. Starts the local services when no cluster is named.

    Returns once the job server has stored it: to the local services it is sent after all that it will meet was checked here, and `status`
    shows its runs from then on, or why it could not begin after all. Elsewhere, and where only the campaign can know (another one is about
    to take the same folders, old workers may still be active, MLflow does not answer), once it owns its runs.

    `replaces`: folders of other runs, which have other settings or data, are moved aside, unless one is at work; nothing is deleted.
    `again`: the command that submits it again, for `status` to show where the head ends before the campaign begins.
    `on_submit` gets the campaign's id just before it is sent: whoever is interrupted from then on has to `withdraw` it. `on_wait` gets
    the reason when it takes long. Raises what the campaign raises: ConfigError, DataError, TrackingError, ClusterError.
    """
    from orchestrator.campaign import handover

    _check_here(experiment, cluster)
    meant = reach(cluster, starts=True)
    sent = _as_sent(experiment, meant.local)
    keep_code(Home.default(), [source.files for source in sent.all_sources])

    def send(campaign_id: str, runs: "Sequence[HandedRun]") -> str:
        return meant.jobs.submit_campaign(campaign_id, sent.to_yaml(), replaces=replaces, handed=runs)

    report = handover.seen_here(meant, lambda here: handover.submission(sent, here, replaces=replaces))
    submission = _submitted(meant, report, send, on_submit, on_wait)
    if report is not None and (runs := handover.handed(report)):
        _note_taken(submission.campaign_id, runs, again)
    return submission


def resume(
    runs: Sequence[str] = (),
    results: Path | None = None,
    cluster: str | None = None,
    on_submit: Callable[[str], None] | None = None,
    on_wait: Callable[[str], None] | None = None,
    *,
    only_failed: bool = False,
    campaign: str | None = None,
) -> Submission:
    """Continue what a dead driver, campaign or head left unfinished, from the runs' own folders: like `submit` without the experiment.

    `runs`: names of those to continue, each may mean several; else all that were cut off. `results`: the folder that holds them, as the
    head sees it; default: nnUNet_results of this process for the local services, else of the head. The plan's `left` names what is left
    as it is, and why. `on_wait` gets the reason when it takes long: old workers may still be active. With `only_failed` those that failed
    are continued, of the named ones or of all, and none that was stopped or cut off. `campaign`: as without `runs`, but of
    its runs alone. Raises as `submit` does.
    """
    from orchestrator.campaign import handover

    is_filter = campaign is not None
    if campaign is not None:
        runs = _runs_of_campaign(campaign, runs, cluster)
    if is_idle(cluster):
        from orchestrator.resume.unfinished import choose, find_runs

        folder = results_folder(results, os.environ)
        choose(*find_runs(folder), runs, folder, only_failed=only_failed, is_filter=is_filter)
    meant = reach(cluster, starts=True)
    place, uri = str(results or ""), ""
    if meant.local is not None:
        place, uri = str(results_folder(results, os.environ)), meant.local.mlflow_uri

    def send(campaign_id: str, going_on: "Sequence[HandedRun]") -> str:
        return meant.jobs.submit_resume(campaign_id, place, runs, uri, handed=going_on, only_failed=only_failed, is_filter=is_filter)

    report = handover.seen_here(
        meant, lambda here: handover.resumption(Path(place), runs, uri, here, only_failed=only_failed, is_filter=is_filter)
    )
    return _submitted(meant, report, send, on_submit, on_wait) if report is None or report.rows else Submission("", "", report)


def _runs_of_campaign(campaign: str, runs: Sequence[str], cluster: str | None) -> list[str]:
    """The run keys of a campaign of the cluster. Raises ConfigError for one that it does not know, and beside names of runs."""
    if runs:
        raise ConfigError("resume: runs and a campaign are both named. Name one of the two.")
    meant = reach(cluster)
    reported = _known(meant, _follower(meant), campaign).reported
    if not reported:
        raise ConfigError(f"resume: no campaign {campaign} is known to this cluster. `nnfleet status --json` names them; or name the runs.")
    return [status.run_key for status in reported]


def withdraw(campaign_id: str, cluster: str | None = None) -> list[str]:
    """End a campaign with everything that it has started, at once; returns the submission ids of the jobs that were ended.

    None: it has ended, or the job server has not stored it after some seconds.
    """
    return Follower(reach(cluster).jobs).withdraw(campaign_id)


def wait(campaign_id: str, cluster: str | None = None, on_status: Callable[[list[RunStatus]], None] | None = None) -> list[RunStatus]:
    """Return when every run of a campaign has ended; `on_status` gets each new list of states.

    Raises the campaign's own error, or ClusterError when it died (its jobs continue; `resume` follows them).
    """
    return Follower(reach(cluster).jobs).wait(campaign_id, on_status)


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
        statuses = _reported(meant, follower, campaign)
        test_sets = follower.test_sets() if campaign is None else []
        yield Look(statuses, test_sets, follower.comparisons(), follower.ending(statuses))


def snapshot(cluster: str | None = None, campaign: str | None = None, results: Path | None = None) -> Snapshot:
    """`status`, `stored` and `tracking_outage` at one look, which asks the job server for its list once."""
    meant = reach(cluster)
    follower = _follower(meant)
    known = _known(meant, follower, campaign, results)
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
    follower = _follower(meant)
    if follower is not None and is_preprocessing(run):
        return _printed(follower, run, follow=follow, earlier=earlier)
    known = _known(meant, follower)
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
    follower = _follower(meant)
    names = [name for name in runs if not is_test_set(name)]
    known = _known(meant, follower, campaign) if names or not runs else Known([])
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


def place(runs: Sequence[str], cluster: str | None = None, *, priority: int | None = None, is_first: bool = False) -> list[RunStatus]:
    """Give waiting runs another place in the queue: a priority (0-100), or the front of their own user's. Returns their status before.

    It holds from the campaign's next look on, and for later starts too, until the run is submitted with another priority. Raises
    ConfigError for a name that means nothing, or a run that does not wait.
    """
    from orchestrator.campaign.stopping import ask_for_place

    meant = reach(cluster)
    follower = _follower(meant)
    found = match_all(runs, _known(meant, follower).reported, hints=False)
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
        known = _known(reach(cluster), None)
        match_all(runs, known.stored, left=known.left)
    meant = reach(cluster, starts=True)
    follower = Follower(meant.jobs)
    found = _known(meant, follower).named(runs)
    return handover.send_revalidations(meant, follower, found, npz=npz, best=best)


def is_local() -> bool:
    """True if a verb that is given no cluster means this machine: Ray's own variables name none, or its local head (`auto`)."""
    return named_by_environment() is None or reach().is_here


def this_machine() -> "NodeResources":
    """This machine as the node that the local head is, or would be. Starts nothing."""
    from orchestrator.cluster import nodes

    return nodes.node_of(local_services.offered())


def _submitted(
    meant: Target,
    report: "PlanReport | None",
    send: "Callable[[str, Sequence[HandedRun]], str]",
    on_submit: Callable[[str], None] | None,
    on_wait: Callable[[str], None] | None,
) -> Submission:
    """`report`: what the campaign will do, as it was seen here; None: the campaign says it."""
    campaign_id = secrets.token_hex(4)
    if on_submit is not None:
        on_submit(campaign_id)
    if report is None:
        submission_id = send(campaign_id, ())
        return Submission(campaign_id, submission_id, Follower(meant.jobs).first_plan(submission_id, on_wait))
    from orchestrator.campaign import handover

    return Submission(campaign_id, send(campaign_id, handover.handed(report)), report)


def _note_taken(campaign: str, runs: "Sequence[HandedRun]", again: str) -> None:
    taken = submissions.TakenSubmission(campaign=campaign, sent_unix=time.time(), command=again, folder=Path.cwd(), runs=tuple(runs))
    try:
        submissions.keep(Home.default(), taken)
    except (OSError, StorageError) as err:
        log.warning("campaign %s is submitted, but not noted here for the case that the head ends before it begins: %s", campaign, err)


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


def _check_here(experiment: "Experiment", cluster: str | None) -> None:
    """Where this machine is meant: that what the experiment names is there, before services are started for it. Raises as `check_named`."""
    if cluster is None and is_local():
        from orchestrator.experiment.expansion import check_named
        from orchestrator.preprocessing.due import due_of

        if due_of(experiment) is None:
            check_named(experiment)


def _as_sent(experiment: "Experiment", local: Services | None) -> "Experiment":
    """The experiment as the cluster gets it: on this machine with this shell's folders and the local MLflow server filled in, and relative
    paths beginning in the current directory. Raises ConfigError for those where another cluster is meant.
    """
    experiment = experiment if experiment.user else experiment.model_copy(update={"user": login_name()})
    if local is None:
        experiment.refuse_relative_paths()
        return experiment
    resolved = experiment.with_folders_resolved(required=False)
    if resolved.tracking.uri:
        return resolved
    return resolved.model_copy(update={"tracking": resolved.tracking.model_copy(update={"uri": local.mlflow_uri})})


def _follower(meant: Target) -> Follower | None:
    """One for a whole verb: it reads each campaign's log once. None where no cluster runs."""
    return None if meant.reached is None else Follower(meant.reached)


def _reported(meant: Target, follower: Follower, campaign: str | None) -> list[RunStatus]:
    """What campaigns report, without what was removed or is not to be shown."""
    statuses = submissions.shown(Home.default(), follower.statuses(campaign))
    return without_removed(statuses) if meant.is_here else statuses


def _known(meant: Target, follower: Follower | None, campaign: str | None = None, results: Path | None = None) -> Known:
    """The runs of a cluster and of the results folder; of one campaign none that only its folder knows.

    Raises ConfigError where nnUNet_results names no folder and no campaign has reported a run.
    """
    home = Home.default()
    reported = [] if follower is None else _reported(meant, follower, campaign)
    if campaign is not None:
        return Known(reported)
    failed = {status.run_key: status.reason for status in reported if not status.is_claimed}  # their folders may know more of them
    stored, left = _stored([status for status in reported if status.is_claimed], meant, results)
    stored = [status.model_copy(update={"reason": failed.get(status.run_key, status.reason)}) for status in stored]
    shown = {status.run_key for status in stored}
    reported = [status for status in reported if status.run_key not in shown]
    shown |= {status.run_key for status in reported}
    lacking = submissions.never_begun(home, {} if follower is None else follower.campaigns()) if meant.is_here else []
    never_begun = [status for status in submissions.shown(home, lacking) if status.run_key not in shown]
    return Known([*never_begun, *reported], stored, left)


def _stored(statuses: Sequence[RunStatus], meant: Target, results: Path | None) -> tuple[list[RunStatus], list[str]]:
    if results is None and not (meant.is_here and os.environ.get(RESULTS)):
        return [], []
    if results is None and statuses and (absence := results_absence(os.environ)):
        log.warning("%s", absence)  # what the cluster knows is shown and stopped all the same
        return [], []
    from orchestrator.resume.stored import stored_below

    return stored_below(results_folder(results, os.environ), {status.run_key for status in statuses})
