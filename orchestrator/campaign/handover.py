"""What a submission to the local cluster meets, checked by the process that submits: it need not wait until its campaign runs.

Nothing is changed here. The campaign does everything again, under the locks that all campaigns share, before it takes possession of a run.
Where this process cannot know what the campaign will find (`Unseen`), the campaign is sent and its own answer waited for.
"""

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from orchestrator.campaign.follower import Follower
from orchestrator.campaign.planning import begin_yet, plan_beside, planned, queue_of, refuse_all, refuse_never, sees_campaigns
from orchestrator.campaign.resuming import chosen, plan_of_resume
from orchestrator.campaign.validating import checked
from orchestrator.cluster import list_nodes, local_services
from orchestrator.cluster.home import Home
from orchestrator.cluster.target import Target
from orchestrator.experiment.model import Experiment
from orchestrator.experiment.plan import PlanReport
from orchestrator.follow.reserved import runs_at_work
from orchestrator.preprocessing.due import due_of
from orchestrator.queue.gang_fit import NodeResources
from orchestrator.queue.registry import Registry
from orchestrator.resume.orphan_workers import unknown_owner
from orchestrator.resume.resume_check import sound_now
from orchestrator.run.job_record import HandedRun, JobRecord, handed_text, kinds_text
from orchestrator.run.progress import Progress, progress_of
from orchestrator.run.status import RunStatus
from orchestrator.tracking.asked import lacks_runs
from orchestrator.tracking.binding import noted_run_id
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.errors import ClusterError, NnfleetError, joined

T = TypeVar("T")
MOST_HANDED_BYTES = 65_536
"""An environment variable of Linux holds 128 KiB, and this one holds more than the runs."""


class Unseen(Exception):
    """Only a job of the cluster can know."""


@dataclass(frozen=True)
class Here:
    """The local cluster, as a process sees it that is no job of it."""

    jobs: Sequence[JobRecord]
    registry: Registry
    address: str
    """Of its control store, as its jobs know it."""
    nodes: Callable[[], Sequence[NodeResources]]
    """Waits for the list that is being made. Raises Unseen where it cannot be made."""


def seen_here(meant: Target, look: Callable[[Here], T], *, lists_nodes: bool = True) -> T | None:
    """What `look` finds of the cluster that is meant, if that is the local one. None where only a job of it can know."""
    try:
        with _looking(meant, lists_nodes=lists_nodes) as here:
            return look(here)
    except Unseen:
        return None


def registry_here() -> Registry | None:
    """Where the campaigns of the local cluster meet; None where no head has noted its address."""
    store = local_services.control_store(Home.default())
    return Registry.of_cluster(store) if store else None


@contextlib.contextmanager
def _looking(meant: Target, *, lists_nodes: bool) -> Iterator[Here]:
    store = local_services.control_store(Home.default())
    if meant.local is None or not store:
        raise Unseen
    local = meant.local
    with ThreadPoolExecutor(1) as beside:
        listed = beside.submit(list_nodes.nodes_of, store, local.token_file) if lists_nodes else None

        def nodes() -> Sequence[NodeResources]:
            try:
                return listed.result() if listed is not None else []
            except ClusterError as err:
                raise Unseen from err

        jobs, registry = meant.jobs.records(), Registry.of_cluster(store)
        if not sees_campaigns(jobs, registry, time.time()):
            raise Unseen
        yield Here(jobs, registry, store, nodes)


def plan(experiment: Experiment, here: Here, *, replaces: bool = False) -> PlanReport:
    """The plan of an experiment. Raises ConfigError, DataError as the campaign would, Unseen."""
    if not (experiment.nnUNet_raw and experiment.nnUNet_preprocessed and experiment.nnUNet_results):
        raise Unseen  # the head may know folders that are not named here
    if (due := due_of(experiment)) is not None:
        return plan_beside(experiment, due, lambda: here.jobs, here.nodes, here.registry, here.address)
    return planned(experiment, here.jobs, here.nodes, here.registry, here.address, replaces=replaces)


def submission(experiment: Experiment, here: Here, *, replaces: bool) -> PlanReport:
    """Likewise for an experiment that is submitted. Raises ClusterError too, for a run that fits never."""
    report = plan(experiment, here, replaces=replaces)
    _refuse_unclear([row.spec for row in report.rows], here)
    if report.awaited and experiment.tracking.uri and not lacks_runs(experiment.tracking.uri, ()):
        raise Unseen
    refuse_never(report)
    return _refuse_too_many(report)


def resumption(
    results: Path, names: Sequence[str], tracking_uri: str, here: Here, *, only_failed: bool = False, is_filter: bool = False
) -> PlanReport:
    """What a resume continues, and what it leaves. Raises likewise."""
    at_work = runs_at_work(here.jobs, here.registry)
    choice = chosen(results, names, tracking_uri, at_work, only_failed=only_failed, is_filter=is_filter)
    raises = bool(names) and not is_filter
    taken = [run.spec for run in choice.taken]
    _refuse_unclear(taken, here)
    specs, faults = sound_now(taken, lambda: here.jobs, here.registry, raises=raises)
    queue = queue_of(here.jobs, here.registry) if specs else None
    nodes = here.nodes() if specs else []
    return _refuse_too_many(plan_of_resume(specs, [*choice.left, *faults], nodes, queue, here.address, raises=raises))


def revalidation(meant: Target, folder: RunFolder, run_key: str, *, best: bool) -> HandedRun | None:
    """A trained run that is validated again; None where only a job of the cluster can know. Raises ConfigError as the campaign would."""

    def look(here: Here) -> HandedRun:
        if not folder.spec_file.is_file():
            raise Unseen
        spec = checked(folder, run_key, here.jobs, best=best)
        _refuse_unclear([spec], here)
        refuse_all([spec], here.jobs, here.registry)
        return _handed(spec, progress_of(spec))

    return seen_here(meant, look, lists_nodes=False)


def send_revalidations(meant: Target, follower: Follower, runs: Sequence[RunStatus], *, npz: bool, best: bool) -> list[str]:
    """Start the validation of each run that can be validated; returns the submission ids.

    Raises the first refusal, with the texts of all, and with what was started.
    """
    options = [*(["--npz"] if npz else []), *(["--best"] if best else [])]
    sent: list[str] = []
    unchecked: list[str] = []
    refused: list[NnfleetError] = []
    for status in runs:
        try:
            run = revalidation(meant, RunFolder(status.run_folder), status.run_key, best=best)
            known = [run] if run is not None else []
            name = meant.jobs.submit_revalidation(secrets.token_hex(4), status.run_folder, status.run_key, options, known)
            sent.append(name)
            unchecked += [] if known else [name]
        except NnfleetError as err:
            refused.append(err)
    for name in unchecked:
        try:
            follower.first_report(name)
        except NnfleetError as err:
            refused.append(err)
            sent.remove(name)
    if refused:
        raise joined(refused, *([f"Started: {', '.join(sent)}."] if sent else []))
    return sent


def handed(report: PlanReport) -> list[HandedRun]:
    """The runs of a plan that its campaign goes on with."""
    return [*report.awaited, *(_handed(row.spec, row.progress) for row in report.rows if row.progress.stage != "finished")]


def _refuse_too_many(report: PlanReport) -> PlanReport:
    """Raise Unseen for more runs than a job can carry: Ray hands its metadata on in one environment variable."""
    runs = handed(report)
    if len(handed_text(runs)) + len(kinds_text({run.run_key: run.workers for run in runs})) > MOST_HANDED_BYTES:
        raise Unseen
    return report


def _handed(spec: RunSpec, progress: Progress) -> HandedRun:
    return HandedRun(
        run_key=spec.run_key,
        address=spec.address,
        epochs=spec.schedule.epochs,
        epochs_done=progress.epochs_done,
        run_folder=spec.run_folder,
        workers=spec.gang,
        priority=spec.priority,
        user=spec.user,
    )


def _refuse_unclear(specs: Sequence[RunSpec], here: Here) -> None:
    """Raise Unseen where the campaign will have to wait, or may meet what is not to be seen yet: leftover workers, a tracking server that
    is away or has other epochs of the same run, a campaign that is about to take the same folders."""
    taken = {run.run_folder for job in begin_yet(here.jobs, here.registry, time.time()) for run in job.handed}
    if any(spec.run_folder in taken or unknown_owner(spec, here.jobs, here.address) is not None for spec in specs):
        raise Unseen
    for uri in {spec.tracking_uri for spec in specs} - {""}:
        unrecorded = [spec.run_key for spec in specs if spec.tracking_uri == uri and not noted_run_id(RunFolder(spec.run_folder))]
        if not lacks_runs(uri, unrecorded):
            raise Unseen
