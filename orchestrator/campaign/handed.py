"""What is shown of the runs that a campaign was handed, or that wait for their data to be preprocessed, until it has reported them itself.
Pure."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from orchestrator.campaign.events import CampaignLog
from orchestrator.cluster.submissions import AGAIN, CHANGE, Stage
from orchestrator.errors import ConfigError, DataError, NeverFits, NnfleetError
from orchestrator.run.job_record import HandedRun, JobRecord
from orchestrator.run.names import UNPLANNED
from orchestrator.run.status import RunStatus
from trainers.contract.states import RunState


def handed_statuses(
    job: JobRecord, log: CampaignLog, end: str, known: Mapping[str, RunStatus], followed: Collection[str]
) -> dict[str, RunStatus]:
    """The runs of a campaign that has reported none: QUEUED, or with the reason why it could not begin.

    `end`: how its job ended, if it did. `known`: what earlier campaigns reported; what is known of a run stays. `followed`: runs that
    another living campaign goes on with; they are shown as that one reports them. A campaign that was withdrawn leaves nothing.
    """
    if job.state == "STOPPED":
        return {}
    runs = [run for run in _runs_before_reports(job, log) if run.run_key not in followed]
    begun = {key: status for key, status in known.items() if status.is_claimed}
    return {run.run_key: _status(run, job, log, end, begun.get(run.run_key)) for run in runs}


def awaited_runs(job: JobRecord, log: CampaignLog) -> list[HandedRun]:
    """The runs of a campaign that have no key yet, since their data are being preprocessed first."""
    return [run for run in _runs_before_reports(job, log) if run.run_key.startswith(UNPLANNED)]


def _runs_before_reports(job: JobRecord, log: CampaignLog) -> tuple[HandedRun, ...]:
    """The runs that a campaign was handed or awaits; none once it has reported its own."""
    if log.statuses or log.exit_code is not None:
        return ()
    if log.plan is None:
        return job.handed
    return (job.handed or log.plan.awaited) if log.plan.preprocesses else ()


def _status(run: HandedRun, job: JobRecord, log: CampaignLog, end: str, before: RunStatus | None) -> RunStatus:
    base = before or RunStatus(
        run_key=run.run_key,
        address=run.address,
        campaign=job.campaign,
        epochs_done=run.epochs_done,
        epochs=run.epochs,
        run_folder=run.run_folder,
    )
    news = {"campaign": job.campaign, "since_unix": job.started_unix, "seconds_left": None, "validation": None}
    if log.error is None and job.is_live:
        return base.model_copy(update={**news, "state": RunState.QUEUED, "reason": log.waits or "its campaign begins."})
    why = str(log.error) if log.error is not None else f"it {end}. {AGAIN}"
    reason = f"its campaign {job.campaign} could not begin: {why}"
    if before is not None:  # an earlier campaign's run: its jobs may go on
        return before.model_copy(update={"reason": reason})
    if isinstance(log.error, ConfigError | NeverFits):
        reason = f"{reason.rstrip('.')}. {CHANGE}"
    return base.model_copy(update={**news, "state": _end_of(log.error), "reason": reason, "is_claimed": False})


def _end_of(error: NnfleetError | None) -> RunState:
    return RunState.FAILED_CONFIG if isinstance(error, ConfigError | DataError) else RunState.FAILED_CLUSTER


def stage_of(job: JobRecord, log: CampaignLog) -> Stage:
    """How far a campaign has come."""
    if job.state == "STOPPED" or log.statuses or log.exit_code is not None:
        return "begun"
    return "begins" if job.is_live and log.error is None else "failed"


def current(statuses: Collection[RunStatus], jobs: Sequence[JobRecord]) -> list[RunStatus]:
    """Without the runs that others of their folders have replaced: of those that had no key yet, one that was reported since; of those
    whose campaign could not begin, one of a later campaign."""
    begun = {job.campaign: job.started_unix for job in jobs if job.kind == "campaign"}
    reported = {status.run_folder: status.since_unix for status in statuses if not _is_unplanned(status)}
    submitted: dict[Path, float] = {}
    for status in statuses:
        submitted[status.run_folder] = max(submitted.get(status.run_folder, 0.0), begun.get(status.campaign, 0.0))
    return [
        status
        for status in statuses
        if (not _is_unplanned(status) or reported.get(status.run_folder, 0.0) < status.since_unix)
        and (status.is_claimed or submitted[status.run_folder] <= begun.get(status.campaign, 0.0))
    ]


def _is_unplanned(status: RunStatus) -> bool:
    return status.run_key.startswith(UNPLANNED)
