"""What is shown of the runs that a campaign was handed, or that wait for their data to be preprocessed, until it has reported them itself.
Pure."""

from collections.abc import Collection, Mapping

from orchestrator.campaign.events import CampaignLog
from orchestrator.errors import ConfigError, DataError, NnfleetError
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
    return {run.run_key: _status(run, job, log, end, known.get(run.run_key)) for run in runs}


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
    why = str(log.error) if log.error is not None else f"it {end}. Submit it again."
    reason = f"its campaign {job.campaign} could not begin: {why}"
    if before is not None:  # an earlier campaign's run: its jobs may go on
        return before.model_copy(update={"reason": reason})
    return base.model_copy(update={**news, "state": _end_of(log.error), "reason": reason, "is_claimed": False})


def _end_of(error: NnfleetError | None) -> RunState:
    return RunState.FAILED_CONFIG if isinstance(error, ConfigError | DataError) else RunState.FAILED_CLUSTER
