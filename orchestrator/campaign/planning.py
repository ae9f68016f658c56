"""What a submission would meet on a cluster at this moment, by the list of jobs and the registry where campaigns meet."""

import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.campaign.preprocessing import job_workers
from orchestrator.dataset.model_folder import folders_of_others
from orchestrator.dataset.problems import listed
from orchestrator.experiment.awaited import plan_to_come
from orchestrator.experiment.expansion import expand
from orchestrator.experiment.model import Experiment
from orchestrator.experiment.plan import PlanReport, Queue, plan_report
from orchestrator.experiment.preprocess import Preprocess
from orchestrator.follow.reserved import reservations, runs_at_work
from orchestrator.preprocessing.due import Due
from orchestrator.preprocessing.order import entry_key, jobs_of, place_of
from orchestrator.queue.gang_fit import NodeResources
from orchestrator.queue.order import Waiting
from orchestrator.queue.registry import Entry, Registry
from orchestrator.resume.takeover import refuse
from orchestrator.run.aside import aside_name
from orchestrator.run.job_record import JobRecord, living_campaigns, living_members
from trainers.contract.run_spec import RunSpec
from trainers.errors import ClusterError, NeverFits

BEGINS_S = 120.0
"""How long a campaign's job may take from its submission until it leaves its entry in the registry."""


def queue_of(jobs: Sequence[JobRecord], registry: Registry) -> Queue:
    """What all campaigns of the cluster hold and wait for at this moment."""
    by_campaign = registry.entries(living_members(jobs))
    entries = by_campaign.values()
    living = {job.run_key for job in jobs if job.is_live and job.kind in ("train", "validate")}
    return Queue(
        reservations(jobs, entries, registry.room(time.time())),
        [run for entry in entries for run in entry.waiting if run.run_key not in living],
        living,
        {campaign: entry.runs for campaign, entry in by_campaign.items()},
    )


def sees_campaigns(jobs: Sequence[JobRecord], registry: Registry, now_unix: float) -> bool:
    """False where living campaigns have left nothing in this registry, and do not just begin with runs that are known: their head meets in
    another folder."""
    living = living_campaigns(jobs)
    return registry.entries(living).keys() | {job.campaign for job in begin_yet(jobs, registry, now_unix)} == living


def begin_yet(jobs: Sequence[JobRecord], registry: Registry, now_unix: float) -> list[JobRecord]:
    """The campaigns that were started a moment ago, have left nothing in the registry yet, and say which runs they were handed."""
    entries = registry.entries(living_campaigns(jobs))
    young = [job for job in jobs if job.kind == "campaign" and job.is_live and job.handed and now_unix - job.started_unix < BEGINS_S]
    return [job for job in young if job.campaign not in entries]


def _waiting_yet(beginning: Sequence[JobRecord], living: Collection[str]) -> list[Waiting]:
    """What such campaigns are about to wait for: the workers of all their runs but the `living`, which have a job."""
    return [
        Waiting(
            run_key=run.run_key,
            address=run.address,
            campaign=job.campaign,
            workers=run.workers,
            since_unix=job.started_unix,
            position=position,
            priority=run.priority,
            user=run.user,
        )
        for job in beginning
        for position, run in enumerate(job.handed)
        if run.run_key not in living
    ]


def refuse_all(specs: Sequence[RunSpec], jobs: Sequence[JobRecord], registry: Registry, leaving: Collection[Path] = ()) -> None:
    """Raise ConfigError or DataError for the first run that could not be taken possession of now. Changes nothing.

    `leaving`: run folders that are to be moved aside."""
    at_work = runs_at_work(jobs, registry)
    for spec in specs:
        refuse(spec, jobs, at_work, leaving)


def replacements(specs: Sequence[RunSpec]) -> list[str]:
    """What `--replace` moves aside, in a sentence; nothing if no folder is another run's."""
    folders = sorted(map(str, folders_of_others(specs)))
    if not folders:
        return []
    called = aside_name(Path(folders[0]), "replaced", "<UTC time>")
    what = "1 run folder of another run was" if len(folders) == 1 else f"{len(folders)} run folders of other runs were"
    return [f"results: {what} moved aside, to `{called}` beside its place: {listed(folders)}."]


def never_fits(report: PlanReport) -> list[str]:
    """The runs of a plan that its cluster can never hold, those among them that are planned only once data are preprocessed; each in a
    sentence."""
    never = [f"{row.address} {row.because}" for row in report.rows if row.fits == "never"]
    if report.never_awaited:  # all of them ask for the same
        never += [f"{run.address} {report.never_awaited}" for run in report.awaited]
    return never


def refuse_never(report: PlanReport) -> None:
    """Raise NeverFits for runs that the cluster can never hold."""
    if never := never_fits(report):
        raise NeverFits("\n".join(["cluster: it can never hold", *never, "Ask for less under `workers`, or for a larger cluster."]))


def planned(
    experiment: Experiment,
    jobs: Sequence[JobRecord],
    nodes: Callable[[], Sequence[NodeResources]],
    registry: Registry,
    address: str,
    *,
    replaces: bool = False,
) -> PlanReport:
    """The plan of an experiment whose folders are seen here. Starts nothing. Raises ConfigError, DataError as the campaign would.

    `nodes` is asked last: whoever lists them may still be at it. `replaces`: folders of other runs are to be moved aside."""
    specs = expand(experiment, replaces=replaces)
    refuse_all(specs, jobs, registry, folders_of_others(specs) if replaces else ())
    queue, beginning = queue_of(jobs, registry), begin_yet(jobs, registry, time.time())
    campaigns = {job.campaign: [run.run_key for run in job.handed] for job in beginning}
    waiting = [*queue.waiting, *_waiting_yet(beginning, queue.living)]
    queue = replace(queue, waiting=waiting, campaigns={**campaigns, **queue.campaigns})
    return plan_report(experiment, specs, nodes(), queue, cluster=address, warnings=replacements(specs) if replaces else [])


def plan_beside(
    experiment: Experiment,
    due: Due,
    jobs: Callable[[], Sequence[JobRecord]],
    nodes: Callable[[], Sequence[NodeResources]],
    registry: Registry,
    address: str,
    *,
    campaign: str = "",
) -> PlanReport:
    """The plan of an experiment whose data are preprocessed first, with the campaign that is at it already. Starts nothing.

    The experiment's folders are known. `campaign`: the one that plans, if one does. Where the cluster does not answer, the one that is at
    it is not named, and nothing that fits never is found: the campaign goes on without. Raises NeverFits for cores or memory of the
    preprocessing that no node has."""
    seen, by = None, ""
    with contextlib.suppress(ClusterError):
        seen = nodes()
    report = plan_to_come(experiment, due.dataset, due.names, seen, address)
    with contextlib.suppress(ClusterError, OSError):
        by = _preprocessed_by(due, {run.run_key for run in report.awaited}, jobs(), registry, but=campaign)
    if seen is not None and not by:
        job_workers(experiment.preprocess or Preprocess(), seen)
    return report.model_copy(update={"preprocessed_by": by})


def _preprocessed_by(due: Due, awaited: Collection[str], jobs: Sequence[JobRecord], registry: Registry, *, but: str) -> str:
    """The campaign, other than `but`, whose job preprocesses a dataset, which is about to start it, or begins with the same `awaited`
    runs; '' where none does."""
    place, now_unix = place_of(due), time.time()
    at_work = [job.campaign for job in jobs_of(place, jobs) if job.is_live]
    living = [job for job in jobs if job.kind == "campaign" and job.is_live and job.campaign != but]
    entries = registry.entries([job.campaign for job in living])
    waiting = [campaign for campaign, entry in entries.items() if entry_key(place) in entry.runs]
    young = [job for job in living if now_unix - job.started_unix < BEGINS_S and entries.get(job.campaign, Entry()) == Entry()]
    beginning = [job.campaign for job in young if any(run.run_key in awaited for run in job.handed)]
    return next(iter([*at_work, *waiting, *beginning]), "")
