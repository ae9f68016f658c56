"""The verbs of nnfleet for Python; the command line only renders what they return.

Where a verb takes `cluster`, None means: the cluster that Ray's own variables name (RAY_API_SERVER_ADDRESS, then RAY_ADDRESS), else the
local services. Every verb may raise ClusterError; a `run` is named as `run_status.match` says, else ConfigError lists the candidates.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.campaign.events import CampaignLog
from orchestrator.campaign.next_step import death
from orchestrator.campaign.resume import find_runs, results_folder, verdict_on
from orchestrator.campaign.resume import lost as lost_status
from orchestrator.cluster import local_services
from orchestrator.cluster.home import Home
from orchestrator.cluster.jobs import Jobs, named_by_environment
from orchestrator.cluster.local_services import Services
from orchestrator.cluster.nodes import this_machine as this_machine
from orchestrator.errors import ClusterError, ConfigError, NnfleetError
from orchestrator.experiment.expansion import expand
from orchestrator.experiment.model import FOLDERS, Experiment
from orchestrator.experiment.plan import PlanReport, plan_report
from orchestrator.run.events import EVENT_PREFIX, events_in
from orchestrator.run.job_record import JobRecord
from orchestrator.run.status import RunStatus, match

if TYPE_CHECKING:
    from orchestrator.drill.order import DrillEvent, Report
    from orchestrator.tracking.reconcile import Synced

POLL_S = 1.0
FIRST_EVENT_POLL_S = 0.3
LOG_CHARACTERS_PER_S = 2e6
"""A long log is asked for less often: Ray gives it as a whole each time."""
PATIENCE_S = 60.0
"""How long `wait` puts up with a cluster that does not answer."""


@dataclass(frozen=True)
class Submission:
    """A campaign that has been taken on."""

    campaign_id: str
    submission_id: str
    plan: PlanReport


def up(home: Home | None = None) -> Services:
    """Start the local Ray head and MLflow server, or find them running."""
    return local_services.up(home)


def down(home: Home | None = None) -> None:
    """End the local services with everything that runs on them."""
    local_services.down(home)


def plan(experiment: Experiment, cluster: str | None = None) -> PlanReport:
    """What `submit` would send. Starts nothing: with no cluster it is read here, for this machine. Raises ConfigError, DataError."""
    jobs = _running_jobs(cluster)
    if jobs is None:
        return plan_report(experiment, expand(experiment), [this_machine()], cluster="this machine, which runs nothing yet")
    campaign_id = secrets.token_hex(4)
    submission_id = jobs.submit_campaign(campaign_id, _as_sent(experiment, jobs).to_yaml(), plan_only=True)
    return _first_plan(jobs, submission_id)


def submit(
    experiment: Experiment,
    cluster: str | None = None,
    on_submit: Callable[[str], None] | None = None,
    on_wait: Callable[[str], None] | None = None,
) -> Submission:
    """Start a campaign and return once it has taken possession of its runs; it goes on without us.

    Starts the local services when no cluster is named. `on_submit` is told the campaign's id just before it is sent: whoever is
    interrupted from then on has to `withdraw` it. `on_wait` is told why it takes long, if it does. Raises what the campaign raises:
    ConfigError, DataError, TrackingError, ClusterError.
    """
    jobs = Jobs.of(cluster)
    campaign_id = secrets.token_hex(4)
    if on_submit is not None:
        on_submit(campaign_id)
    submission_id = jobs.submit_campaign(campaign_id, _as_sent(experiment, jobs).to_yaml())
    return Submission(campaign_id, submission_id, _first_plan(jobs, submission_id, on_wait))


def resume(
    runs: Sequence[str] = (),
    results: Path | None = None,
    cluster: str | None = None,
    on_submit: Callable[[str], None] | None = None,
    on_wait: Callable[[str], None] | None = None,
) -> Submission:
    """Continue what a dead driver, campaign or head left unfinished, from the runs' own folders: like `submit` without the experiment.

    `runs`: names of those to continue; else all that did not come to an end of their own. `results`: the folder that holds them, as the
    head sees it; default: nnUNet_results of this process for the local services, else of the head. The plan's `left` says what is left
    as it is, and why. `on_wait` is told why it takes long: old workers may still be at work. Raises as `submit` does.
    """
    jobs = Jobs.of(cluster)
    local = _local_services(jobs)
    place = str(results_folder(results, os.environ)) if local is not None else str(results or "")
    campaign_id = secrets.token_hex(4)
    if on_submit is not None:
        on_submit(campaign_id)
    submission_id = jobs.submit_resume(campaign_id, place, runs, local.mlflow_uri if local is not None else "")
    return Submission(campaign_id, submission_id, _first_plan(jobs, submission_id, on_wait))


def lost(cluster: str | None = None, results: Path | None = None) -> list[RunStatus]:
    """Runs below a results folder that no campaign of the cluster knows and that did not come to an end of their own.

    `results`: default nnUNet_results of this process where the cluster is the local one; without a folder that is seen here: none.
    """
    if results is None and (cluster is not None or not is_local()):
        return []
    try:
        found, _ = find_runs(results_folder(results, os.environ))
    except ConfigError:
        if results is not None:
            raise
        return []
    if not any(verdict_on(run).is_taken for run in found):
        return []
    known = {item.run_key for item in status(cluster)}
    return [lost_status(run) for run in found if run.spec.run_key not in known and verdict_on(run).is_taken]


def withdraw(campaign_id: str, cluster: str | None = None) -> list[str]:
    """End a campaign with everything that it has started, at once; returns the submission ids of the jobs that were told to end."""
    jobs = _required_jobs(cluster)
    ended: list[str] = []
    for kinds in (("campaign",), ("train", "validate")):  # the campaign first, else it would start again what has ended
        living = [job.submission_id for job in jobs.records() if job.campaign == campaign_id and job.kind in kinds and job.is_live]
        for submission_id in living:
            jobs.stop(submission_id)
        deadline = time.monotonic() + PATIENCE_S
        while any(jobs.find(submission_id).is_live for submission_id in living) and time.monotonic() < deadline:
            time.sleep(FIRST_EVENT_POLL_S)
        ended += living
    return ended


def status(cluster: str | None = None, campaign: str | None = None) -> list[RunStatus]:
    """Where every run stands, or those of one campaign; of a run in several campaigns the newest counts. Empty if nothing runs here."""
    jobs = _running_jobs(cluster)
    return [] if jobs is None else _statuses(jobs, campaign)


def logs(run: str, cluster: str | None = None, follow: bool = False, earlier: bool = False) -> Iterator[str]:
    """The log of the newest training job of a run, then of its validation; with `follow` as it grows, until the run has ended.

    With `earlier` the logs of all its jobs, oldest first, each below a line with the job's name and state.
    """
    jobs = _required_jobs(cluster)
    wanted = match(run, _statuses(jobs, None))
    return _logs(jobs, wanted.run_key, wanted.campaign, follow=follow, earlier=earlier)


def stop(run: str, now: bool = False, cluster: str | None = None) -> list[RunStatus]:
    """Ask a run to stop after its epoch, or at once; returns how it stood. It can be submitted again and then continues."""
    jobs = _required_jobs(cluster)
    wanted = match(run, _statuses(jobs, None))
    if not wanted.state.is_final:
        arguments = ["stop", str(wanted.run_folder), *(["--now"] if now else [])]
        _finished(jobs, jobs.submit_control(f"stop-{wanted.run_key}-{secrets.token_hex(3)}", arguments))
    return [wanted]


def validate(run: str, cluster: str | None = None) -> str:
    """Start the full validation of a trained run, again if need be; returns the submission id. Raises ConfigError if it is not trained."""
    jobs = _required_jobs(cluster)
    wanted = match(run, _statuses(jobs, None))
    submission_id = jobs.submit_revalidation(secrets.token_hex(4), wanted.run_folder)
    told = _first_event(jobs, submission_id)
    if told.error is not None:
        raise told.error
    return submission_id


def sync(run: str = "", results: Path | None = None, cluster: str | None = None) -> "list[Synced]":
    """Deliver to MLflow what run folders hold and it lacks, of all runs below `results` or of one, and end there the runs whose jobs died.

    `results`: by default nnUNet_results of this shell, or of the named cluster's head. Raises ConfigError when there is none.
    """
    from orchestrator.tracking.reconcile import SYNC_EVENTS, sync_below

    jobs = _running_jobs(cluster)
    if jobs is not None and (cluster is not None or not is_local()):
        arguments = ["sync", *([run] if run else []), *(["--results", str(results)] if results else [])]
        submission_id = jobs.submit_control(f"sync-{secrets.token_hex(4)}", arguments)
        _finished(jobs, submission_id)
        return [event.synced for event in events_in(jobs.logs(submission_id), SYNC_EVENTS)]
    return list(sync_below(results, run, jobs.records() if jobs is not None else []))


def drill(
    parts: Sequence[str] = (),
    cluster: str | None = None,
    folder: Path | None = None,
    *,
    gpus: bool = False,
    is_sure: bool = False,
    keeps: bool = False,
    on_event: Callable[["DrillEvent"], None] = lambda event: None,
) -> "Report":
    """Train a toy run on the cluster, kill `parts` of it (worker, node, driver, tracking; default worker and driver), say what was lost.

    `folder`: where the nodes see it; default nnUNet_results of this process for the local services, else of the head. Raises ConfigError
    for what may not be killed, ClusterError.
    """
    from orchestrator.drill.order import follow, order_of

    jobs = Jobs.of(cluster)
    here = _local_services(jobs)
    place = str(folder or "")
    if here is not None and not place:
        place = os.environ.get(FOLDERS[2]) or str(Home.default().root)
    uri, mlflow = (here.mlflow_uri, here.mlflow) if here is not None else ("", None)
    order = order_of(parts, folder=place, tracking_uri=uri, mlflow=mlflow, gpus=int(gpus), is_sure=is_sure, keeps=keeps)

    def mended(event: "DrillEvent") -> None:
        if event.event == "mend":
            local_services.up()
        on_event(event)

    try:
        return follow(jobs, order, mended)
    finally:
        if "tracking" in order.parts:
            local_services.up()


def export(run: str, target: Path, tracking_uri: str | None = None) -> Path:
    """Make `target` an nnU-Net model folder from what MLflow holds of a run. `tracking_uri`: default the local server."""
    from orchestrator.tracking.export import export_model

    local = None if tracking_uri else local_services.running()
    if local is None and not tracking_uri:
        raise ConfigError("export: no tracking server is named and none runs here. Name one by its URI, or start ours: `nnfleet up`.")
    return export_model(run, target, tracking_uri or (local.mlflow_uri if local else ""))


def wait(campaign_id: str, cluster: str | None = None, on_status: Callable[[list[RunStatus]], None] | None = None) -> list[RunStatus]:
    """Return when every run of a campaign has ended; `on_status` gets each new list of states.

    Raises the campaign's own error, or ClusterError when it died (its runs go on; submit the experiment again to follow them).
    """
    jobs = _required_jobs(cluster)
    submission_id, told = f"campaign-{campaign_id}", CampaignLog()
    shown: list[RunStatus] = []
    quiet_since: float | None = None
    while True:
        try:
            job = jobs.find(submission_id)
            text = jobs.logs(submission_id)
            told.update(text)
            quiet_since = None
        except ClusterError:
            quiet_since = quiet_since or time.monotonic()
            if time.monotonic() - quiet_since > PATIENCE_S:
                raise
            time.sleep(POLL_S)
            continue
        current = list(told.statuses.values())
        if on_status is not None and current != shown:
            on_status(current)
            shown = current
        if told.error is not None:
            raise told.error
        if told.exit_code is not None:
            return current
        if not job.is_live:
            raise _death_of(job)
        time.sleep(POLL_S + len(text) / LOG_CHARACTERS_PER_S)


def tracking_outage(cluster: str | None = None) -> str:
    """A sentence if the local services are meant and their MLflow server has died; else nothing."""
    local = local_services.running() if cluster is None and is_local() else None
    if local is None or local_services.tracking_answers(local):
        return ""
    return "MLflow is down: what it lacks waits in the run folders. `nnfleet up` starts it again, `nnfleet sync` delivers what no job does."


def is_local() -> bool:
    """True if a verb that is given no cluster means this machine: Ray's own variables name none."""
    return named_by_environment() is None


def _running_jobs(cluster: str | None) -> Jobs | None:
    """The jobs of the named cluster, else of the local services if they run. Starts nothing."""
    if cluster is not None or named_by_environment() is not None:
        return Jobs.of(cluster)
    local = local_services.running()
    return None if local is None else Jobs.of(local.ray_address)


def _required_jobs(cluster: str | None) -> Jobs:
    jobs = _running_jobs(cluster)
    if jobs is None:
        raise ClusterError("cluster: none is named and no local one runs. Name one (--cluster), or submit something: that starts it.")
    return jobs


def _local_services(jobs: Jobs) -> Services | None:
    """The local services if `jobs` are theirs; None for any other cluster."""
    local = local_services.running()
    return local if local is not None and jobs.address.rstrip("/") == local.ray_address else None


def _as_sent(experiment: Experiment, jobs: Jobs) -> Experiment:
    """The experiment as the cluster gets it: on this machine with this shell's folders and the local MLflow server filled in."""
    local = _local_services(jobs)
    if local is None:
        return experiment
    resolved = experiment.with_folders_resolved(required=False)
    if resolved.tracking.uri:
        return resolved
    return resolved.model_copy(update={"tracking": resolved.tracking.model_copy(update={"uri": local.mlflow_uri})})


def _first_event(jobs: Jobs, submission_id: str, on_wait: Callable[[str], None] | None = None) -> CampaignLog:
    """What a campaign says first: its plan, a state or an error. Raises ClusterError when it dies before."""
    told, said = CampaignLog(), ""
    while True:
        job = jobs.find(submission_id)
        told.update(jobs.logs(submission_id))
        if on_wait is not None and told.waits != said:
            said = told.waits
            on_wait(said)
        if told.plan is not None or told.error is not None or told.statuses:
            return told
        if not job.is_live:
            raise _death_of(job)
        time.sleep(FIRST_EVENT_POLL_S)


def _first_plan(jobs: Jobs, submission_id: str, on_wait: Callable[[str], None] | None = None) -> PlanReport:
    told = _first_event(jobs, submission_id, on_wait)
    if told.error is not None:
        raise told.error
    if told.plan is None:
        raise NnfleetError(f"campaign: {submission_id} runs another version of nnfleet than this one. Update the older of the two.")
    return told.plan


_TOLD: dict[tuple[str, str], tuple[CampaignLog, bool]] = {}
"""By cluster and submission id: what a campaign has told this process so far, and whether that is all."""


def _told(jobs: Jobs, job: JobRecord) -> CampaignLog:
    """What a campaign has told; the log of one that has ended is read once."""
    told, is_all = _TOLD.get((jobs.address, job.submission_id), (CampaignLog(), False))
    if not is_all:
        told.update(jobs.logs(job.submission_id))
        _TOLD[jobs.address, job.submission_id] = (told, not job.is_live)
    return told


def _statuses(jobs: Jobs, campaign: str | None) -> list[RunStatus]:
    """One status of each run, from the logs of all campaigns: of a living one that is not done with it, else the newest.

    A dead campaign is said to be dead.
    """
    found: dict[str, RunStatus] = {}
    ranks: dict[str, tuple[bool, int, float]] = {}
    for job in jobs.records():
        if job.kind != "campaign" or (campaign is not None and job.campaign != campaign):
            continue
        for key, status in _told(jobs, job).statuses.items():
            rank = (
                job.is_live and not status.state.is_final,
                status.num_drivers,
                status.since_unix,
            )  # a clock may jump, attempts only grow
            if key not in ranks or rank >= ranks[key]:
                ranks[key] = rank
                found.pop(key, None)
                found[key] = status if job.is_live or status.state.is_final else _orphan(status, job)
    if campaign is not None and not found and not any(job.campaign == campaign for job in jobs.records()):
        raise ConfigError(f"campaign: there is no campaign {campaign!r} on {jobs.address}.")
    return list(found.values())


def _orphan(status: RunStatus, job: JobRecord) -> RunStatus:
    reason = f"its campaign {job.campaign} {_end_of(job)}; this is what it said last. `nnfleet resume` continues it."
    return status.model_copy(update={"reason": reason, "seconds_left": None})


def _end_of(job: JobRecord) -> str:
    if job.state == "STOPPED":
        return "was stopped"
    said = [line.strip() for line in job.message.splitlines() if line.strip() and not line.startswith(EVENT_PREFIX)]
    return f"died ({death(job)}{f': {said[-1][-200:]}' if job.has_failed_by_itself and said else ''})"


def _death_of(job: JobRecord) -> ClusterError:
    return ClusterError(
        f"campaign: {job.submission_id} {'was stopped' if job.state == 'STOPPED' else 'died'}. Its runs go on where they run; "
        f"`nnfleet resume`, or the experiment submitted again, follows them.\n{job.message[-2000:]}"
    )


def _finished(jobs: Jobs, submission_id: str) -> None:
    """Wait for a control job. Raises ClusterError with its log when it fails."""
    while (job := jobs.find(submission_id)).is_live:
        time.sleep(FIRST_EVENT_POLL_S)
    if job.state != "SUCCEEDED":
        raise ClusterError(f"control: {submission_id} failed. {job.message[-2000:]}")


def _logs(jobs: Jobs, run_key: str, campaign: str, *, follow: bool, earlier: bool) -> Iterator[str]:
    """Log text, in whole lines, of the newest training job (or of the first job) and of what came after it."""
    printed: dict[str, int] = {}
    first = ""
    while True:
        own = [job for job in jobs.records() if job.run_key == run_key and job.kind in ("train", "validate")]
        trainings = [job.submission_id for job in own if job.kind == "train"]
        first = first or (trainings[-1] if trainings and not earlier else "")
        begin = next((i for i, job in enumerate(own) if job.submission_id == first), 0)
        for job in own[begin:]:
            text = jobs.logs(job.submission_id)
            end = text.rfind("\n") + 1 if follow and job.is_live else len(text)
            if end > (start := printed.get(job.submission_id, 0)):
                printed[job.submission_id] = end
                if earlier and not start:
                    yield f"--- {job.submission_id} ({job.state})\n"
                yield text[start:end]
        if not follow or (not any(job.is_live for job in own) and not _goes_on(jobs, run_key, campaign)):
            return
        time.sleep(POLL_S)


def _goes_on(jobs: Jobs, run_key: str, campaign: str) -> bool:
    """True while a living campaign means to do more with a run."""
    job = jobs.find(f"campaign-{campaign}")
    told = _told(jobs, job)
    return job.is_live and run_key in told.statuses and not told.statuses[run_key].state.is_final
