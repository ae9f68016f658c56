"""What a submission would meet on a cluster at this moment, by the list of jobs and the registry where campaigns meet."""

import time
from collections.abc import Callable, Sequence

from orchestrator.experiment.expansion import expand
from orchestrator.experiment.model import Experiment
from orchestrator.experiment.plan import PlanReport, Queue, plan_report
from orchestrator.follow.reserved import reservations, runs_at_work
from orchestrator.queue.gang_fit import NodeResources
from orchestrator.queue.registry import Registry
from orchestrator.resume.takeover import refuse
from orchestrator.run.job_record import JobRecord, living_campaigns, living_members
from trainers.contract.run_spec import RunSpec


def queue_of(jobs: Sequence[JobRecord], registry: Registry) -> Queue:
    """What all campaigns of the cluster hold and wait for at this moment."""
    entries = registry.entries(living_members(jobs)).values()
    living = {job.run_key for job in jobs if job.is_live and job.kind in ("train", "validate")}
    return Queue(
        reservations(jobs, entries, registry.room(time.time())),
        [run for entry in entries for run in entry.waiting if run.run_key not in living],
        living,
    )


def sees_campaigns(jobs: Sequence[JobRecord], registry: Registry) -> bool:
    """False where living campaigns have left nothing in this registry: their head meets in another folder, or they only begin."""
    living = living_campaigns(jobs)
    return registry.entries(living).keys() == living


def refuse_all(specs: Sequence[RunSpec], jobs: Sequence[JobRecord], registry: Registry) -> None:
    """Raise ConfigError or DataError for the first run that could not be taken possession of now. Changes nothing."""
    at_work = runs_at_work(jobs, registry)
    for spec in specs:
        refuse(spec, jobs, at_work)


def planned(
    experiment: Experiment, jobs: Sequence[JobRecord], nodes: Callable[[], Sequence[NodeResources]], registry: Registry, address: str
) -> PlanReport:
    """The plan of an experiment whose folders are seen here. Starts nothing. Raises ConfigError, DataError as the campaign would.

    `nodes` is asked last: whoever lists them may still be at it."""
    specs = expand(experiment)
    refuse_all(specs, jobs, registry)
    return plan_report(experiment, specs, nodes(), queue_of(jobs, registry), cluster=address)
