"""The verbs that begin campaigns: planned, submitted, continued, withdrawn, waited for."""

import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.campaign.follower import Follower
from orchestrator.cluster import local_services, submissions
from orchestrator.cluster.code_package import keep_code
from orchestrator.cluster.home import Home, login_name
from orchestrator.cluster.local_services import Services
from orchestrator.cluster.target import Target, is_idle, reach
from orchestrator.errors import ConfigError, StorageError
from orchestrator.run.below import results_folder
from orchestrator.run.status import RunStatus
from orchestrator.verbs.known_runs import follower_of, known_runs
from orchestrator.verbs.services import is_local, this_machine

if TYPE_CHECKING:
    from orchestrator.experiment.model import Experiment
    from orchestrator.experiment.plan import PlanReport
    from orchestrator.run.job_record import HandedRun

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Submission:
    """A campaign that runs."""

    campaign_id: str
    """This and the next are empty where nothing was left to do, and no campaign was started."""
    submission_id: str
    plan: "PlanReport"


def plan(experiment: "Experiment", cluster: str | None = None) -> "PlanReport":
    """What `submit` would send. Starts nothing: with no cluster it is read here, for this machine. Raises ConfigError, DataError."""
    meant = reach(cluster)
    if meant.reached is None:
        return _plan_here(experiment)
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

    _check_here(experiment, cluster, replaces=replaces)
    meant = reach(cluster, starts=True)
    sent = _as_sent(experiment, meant.local)
    keep_code(Home.default(), [source.files for source in sent.all_sources])

    def send(campaign_id: str, runs: "Sequence[HandedRun]") -> str:
        return meant.jobs.submit_campaign(campaign_id, sent.to_yaml(), replaces=replaces, handed=runs)

    report = handover.seen_here(meant, lambda here: handover.submission(sent, here, replaces=replaces))
    if report is not None:
        _make_results_folder(sent)
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

    `runs`: names of those to continue, each may mean several; else all that were cut off and on which no living campaign is at work.
    `results`: the folder that holds them, as the head sees it; default: nnUNet_results of this process for the local services, else of the
    head. The plan's `left` names what is left as it is, and why. `on_wait` gets the reason when it takes long: old workers may still be
    active. With `only_failed` those that failed are continued, of the named ones or of all, and none that was stopped or cut off.
    `campaign`: as without `runs`, but of its runs alone. Raises as `submit` does.
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


def _runs_of_campaign(campaign: str, runs: Sequence[str], cluster: str | None) -> list[str]:
    """The run keys of a campaign of the cluster. Raises ConfigError for one that it does not know, and beside names of runs."""
    if runs:
        raise ConfigError("resume: runs and a campaign are both named. Name one of the two.")
    meant = reach(cluster)
    reported = known_runs(meant, follower_of(meant), campaign).reported
    if not reported:
        raise ConfigError(f"resume: no campaign {campaign} is known to this cluster. `nnfleet status --json` names them; or name the runs.")
    return [status.run_key for status in reported]


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


def _make_results_folder(experiment: "Experiment") -> None:
    """Make nnUNet_results of a submission to this machine, as nnU-Net does: other verbs look there, also before the first run begins."""
    assert experiment.nnUNet_results is not None
    with suppress(OSError):  # its campaign meets it too, and names it
        experiment.nnUNet_results.mkdir(parents=True, exist_ok=True)


def _note_taken(campaign: str, runs: "Sequence[HandedRun]", again: str) -> None:
    taken = submissions.TakenSubmission(campaign=campaign, sent_unix=time.time(), command=again, folder=Path.cwd(), runs=tuple(runs))
    try:
        submissions.keep(Home.default(), taken)
    except (OSError, StorageError) as err:
        log.warning("campaign %s is submitted, but not noted here for the case that the head ends before it begins: %s", campaign, err)


def _plan_here(experiment: "Experiment", *, replaces: bool = False) -> "PlanReport":
    """The plan of an experiment on this machine, on which nothing runs yet. Raises ConfigError, DataError, NeverFits."""
    from orchestrator.campaign.preprocessing import job_workers
    from orchestrator.experiment.awaited import plan_to_come
    from orchestrator.experiment.expansion import expand
    from orchestrator.experiment.plan import plan_report
    from orchestrator.experiment.preprocess import Preprocess
    from orchestrator.preprocessing.due import due_of

    if (due := due_of(experiment)) is not None:
        job_workers(experiment.preprocess or Preprocess(), [this_machine()])
        return plan_to_come(experiment.with_folders_resolved(), due.dataset, due.names, [this_machine()])
    crowded = local_services.crowding_of(Home.default(), local_services.offered())
    node, name = this_machine(), "this machine, which runs nothing yet"
    return plan_report(experiment, expand(experiment, replaces=replaces), [node], cluster=name, warnings=[crowded] if crowded else [])


def _check_here(experiment: "Experiment", cluster: str | None, *, replaces: bool) -> None:
    """Where this machine is meant: that what the experiment names is there and that the machine can hold its runs, before services are
    started for it. Raises as `check_named`, and ClusterError."""
    if is_idle(cluster):
        from orchestrator.campaign.planning import refuse_never

        refuse_never(_plan_here(experiment, replaces=replaces))
    elif cluster is None and is_local():
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
