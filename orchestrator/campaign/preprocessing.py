"""The first stage of a campaign whose data are not all preprocessed: a job that makes what is due, waited for before anything is planned.

Campaigns that need the same dataset at the same time start one job of it, and all wait for that.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from orchestrator.campaign.dispatch import ClusterJobs
from orchestrator.errors import ClusterError, NeverFits, StorageError, error_named
from orchestrator.experiment.model import Experiment
from orchestrator.experiment.preprocess import Preprocess
from orchestrator.follow.next_step import death
from orchestrator.preprocessing.due import Due, due_of
from orchestrator.preprocessing.order import PREPROCESS_EVENTS, Order, Progressed, Refused, entry_key, jobs_of, place_of, submission_id
from orchestrator.queue.gang_fit import NodeResources, grows
from orchestrator.queue.registry import Entry
from orchestrator.run.events import events_in
from orchestrator.run.job_record import JobRecord
from orchestrator.validation.held_out_admission import QueuePlace, granted, let_go
from trainers.contract.run_spec import WorkerSpec
from trainers.storage.faults import is_there

Answer = TypeVar("Answer")

USUAL_CPUS = 8
"""Most cores of a job that nobody asked for otherwise: nnU-Net's number of processes."""
LOOK_S = 2.0
MOST_DEATHS = 3
"""Jobs in a row that may die without getting further before it is an error: a node that was taken away, a head that was busy."""

LATE_LOOKS = 45
"""For files that a share shows late: 90 s of looks; the NFS client remembers for 60 s at most (acdirmax) what a folder lacks."""
MOST_FRUITLESS = 2
"""Jobs that may succeed without the head seeing it before it is an error."""


@dataclass(frozen=True)
class Stage:
    """One campaign that preprocesses."""

    experiment: Experiment
    place: QueuePlace
    cluster: ClusterJobs
    on_wait: Callable[[str], None]

    @property
    def asked(self) -> Preprocess:
        """The key of the experiment."""
        return self.experiment.preprocess or Preprocess()


@dataclass(frozen=True)
class Deaths:
    """Jobs of a campaign that died in a row without getting further."""

    count: int = 0
    reached: Progressed | None = None
    """How far the last job that got further had come: cases that are whole wait for the next."""

    def and_one(self, reached: Progressed | None) -> "Deaths":
        """With one more, which had come so far; before the cases are counted it had come to none. Pure."""
        if reached is None or not reached.total or reached == self.reached:
            return Deaths(self.count + 1, self.reached)
        return Deaths(1, reached)


def preprocess_first(stage: Stage) -> None:
    """Return once all that the experiment asks for is preprocessed. Raises what refuses it: ConfigError, DataError, ClusterError,
    StorageError, each with the name of the job whose log has more."""
    try:
        _preprocess(stage)
    finally:
        let_go(stage.place)


def _preprocess(stage: Stage) -> None:
    deaths, fruitless, refuses = Deaths(), 0, True
    while (due := _due(stage)) is not None:
        jobs = _records(stage)
        job = next((job for job in jobs_of(place_of(due), jobs) if job.is_live), None)
        name = job.submission_id if job is not None else _begun(stage, due, refuses=refuses)
        refuses = False  # from here on what no node has may be on one that reboots
        if not name:
            stage.place.clock.sleep(LOOK_S)
            continue
        ended, reached = _ended(stage, due, name)
        _hold_nothing(stage)
        if ended.campaign != stage.place.job:
            continue
        if ended.state != "SUCCEEDED":
            deaths = deaths.and_one(reached)
            _refuse_failed(stage, ended, deaths.count)
        elif _seen_after(stage, due, name) == due:
            fruitless += 1
            if fruitless == MOST_FRUITLESS:
                raise ClusterError(f"preprocessing: {name} has ended, and {place_of(due)} still lacks {due.text} as seen from the head.")
    _hold_nothing(stage)


def _seen_after(stage: Stage, due: Due, name: str) -> Due | None:
    """What is due after a job of this campaign that succeeded. A share may show its files late: they are waited for."""
    for _ in range(LATE_LOOKS):
        if _due(stage) is None:
            return None
        stage.on_wait(f"waits for preprocessing of {due.text}: {name} has ended, and the head does not see all its files yet.")
        stage.place.clock.sleep(LOOK_S)
    return _due(stage)


def _hold_nothing(stage: Stage) -> None:
    stage.place.registry.post(stage.place.job, Entry())  # others see that it lives


def _begun(stage: Stage, due: Due, *, refuses: bool) -> str:
    """As `_started`; '' too, with the reason shown, where the job server or whoever holds the lock does not answer: it is asked again.

    `refuses`: raises NeverFits for what no node has, which else is waited for, too.
    """
    nodes = _nodes(stage)
    if refuses:
        job_workers(stage.asked, nodes)  # raises it
    try:
        return _started(stage, due, job_workers(stage.asked, nodes))
    except ClusterError as err:
        stage.on_wait(f"waits for preprocessing of {due.text}: {err}")
        return ""


def _started(stage: Stage, due: Due, workers: WorkerSpec) -> str:
    """Start the job of a dataset once its cores fit; its id. '' where another campaign is about to start it."""
    place, key = stage.place, entry_key(place_of(due))
    with place.registry.locked():
        owner = next((campaign for campaign, entry in place.others(place.records()).items() if key in entry.runs), "")
        if owner:
            stage.on_wait(f"waits for preprocessing of {due.text}, which campaign {owner} begins.")
            return ""
        place.registry.post(place.job, Entry(runs=(key,)))

    def on_wait(because: str) -> None:
        stage.on_wait(f"waits for preprocessing of {due.text}, which waits: {because}")

    lacking = partial(_lacking_memory, stage.asked, workers.cpus)
    held = granted(place, key, workers, on_wait, is_placed=False, lacking=lacking)  # until Ray has placed the job
    order = Order(due=due, processes=held.cpus)
    name = submission_id(order.place, _records(stage))
    carried = {"campaign": place.job, "dataset_folder": order.place}
    return stage.cluster.submit_preprocessing(name, order.model_dump_json(), carried, held.cpus, stage.asked.memory_gib)


def job_workers(asked: Preprocess, nodes: Sequence[NodeResources]) -> WorkerSpec:
    """What the job takes: the cores that were asked for, else those of the largest node with the memory, up to the usual number. Pure.

    Raises NeverFits for what no node has. Where an autoscaler starts nodes, those with enough cores may be yet to come.
    """
    most = _most_cores(nodes)
    if not most or (asked.cpus or 1) > most:
        if grows(nodes):
            return WorkerSpec(count=1, gpus=0, cpus=asked.cpus or USUAL_CPUS)
        raise NeverFits(
            f"preprocessing: no node of this cluster has {asked.cpus or 1} CPU cores (the largest has {most}). Ask for fewer: "
            "preprocess: {cpus: N}."
        )
    memory_gib = max(map(_memory_gib, nodes))
    if asked.memory_gib is not None and asked.memory_gib > memory_gib:
        raise NeverFits(
            f"preprocessing: no node of this cluster has {asked.memory_gib:g} GiB of memory (the largest has {memory_gib:.1f}). Ask for "
            "less: preprocess: {memory_gib: N}."
        )
    most_with_memory = _most_cores([node for node in nodes if _memory_gib(node) >= (asked.memory_gib or 0)])
    if (asked.cpus or 1) > most_with_memory:
        raise NeverFits(
            f"preprocessing: no node of this cluster has {asked.cpus or 1} CPU cores and {asked.memory_gib:g} GiB of memory (with so much "
            f"memory the largest has {most_with_memory} cores). Ask for less: preprocess: {{cpus: N, memory_gib: N}}."
        )
    return WorkerSpec(count=1, gpus=0, cpus=asked.cpus or min(most_with_memory, USUAL_CPUS))


def _most_cores(nodes: Sequence[NodeResources]) -> int:
    return int(max((node.total.get("CPU", 0) for node in nodes), default=0))


def _memory_gib(node: NodeResources) -> float:
    return node.total.get("memory", 0) / 2**30


def _lacking_memory(asked: Preprocess, cpus: int, nodes: Sequence[NodeResources]) -> str:
    """Why no node has the memory free that was asked for, beside the cores; '' where one has. Ray ends a job that it cannot place. Pure."""
    if asked.memory_gib is None:
        return ""
    free = max((node.free.get("memory", 0) for node in nodes if node.free.get("CPU", 0) >= cpus), default=0) / 2**30
    if asked.memory_gib <= free:
        return ""
    is_there = any(node.total.get("memory", 0) / 2**30 >= asked.memory_gib for node in nodes if node.total.get("CPU", 0) >= cpus)
    end = "Other work holds the rest." if is_there else "No node has so much in all; ask for less: preprocess: {memory_gib: N}."
    return f"needs {asked.memory_gib:g} GiB of memory on a node with {cpus} free CPU cores; {free:.1f} GiB free now. {end}"


def _ended(stage: Stage, due: Due, name: str) -> tuple[JobRecord, Progressed | None]:
    """Wait for the end of a job; its last record, and how far it was seen to have come."""
    reason, is_placed, reached = "", False, None
    while True:
        job = next((job for job in _records(stage) if job.submission_id == name), None)
        if job is None or not job.is_live:
            forgotten = JobRecord(submission_id=name, kind="preprocess", state="FAILED", message="the cluster has forgotten it")
            return job or forgotten, reached
        entry = stage.place.registry.entries({stage.place.job}).get(stage.place.job)
        if job.state == "RUNNING" and not is_placed and entry is not None and entry.holding:
            placed = tuple(held.model_copy(update={"is_placed": True}) for held in entry.holding)
            stage.place.registry.post(stage.place.job, entry.model_copy(update={"holding": placed}))
            is_placed = True
        reached = _progress(stage, name) or reached  # a node that died took the log with it
        because = f"waits for preprocessing of {due.text}: {_in_words(reached)} (nnfleet logs {name})."
        if because != reason:
            reason = because
            stage.on_wait(because)
        stage.place.clock.sleep(LOOK_S)


def _progress(stage: Stage, name: str) -> Progressed | None:
    """How far a job is; None: it begins, or its log is not there."""
    return next((event for event in reversed(_events(stage, name)) if isinstance(event, Progressed)), None)


def _in_words(progress: Progressed | None) -> str:
    if progress is None:
        return "its job begins"
    return f"{progress.what}, {progress.done} of {progress.total} cases" if progress.total else progress.what


def _events(stage: Stage, name: str) -> list[Progressed | Refused]:
    try:
        return list(events_in(stage.cluster.logs(name), PREPROCESS_EVENTS))
    except ClusterError:  # its node is away, and its log with it
        return []


def _refuse_failed(stage: Stage, job: JobRecord, deaths: int) -> None:
    """Raise why a job of this campaign failed; returns where it died, as with its node, and the next may get further."""
    where = f"Its log: nnfleet logs {job.submission_id}."
    for event in _events(stage, job.submission_id):
        if isinstance(event, Refused):
            raise error_named(event.error, f"{event.message} {where}")
    if job.state == "STOPPED":
        raise ClusterError(f"preprocessing: {job.submission_id} was stopped. Submit again: what is whole is kept.")
    if deaths >= MOST_DEATHS:
        raise ClusterError(
            f"preprocessing: {deaths} jobs in a row died without a reason of their own and got no further; the last, {death(job)}. {where}"
        )


def _records(stage: Stage) -> list[JobRecord]:
    """The jobs of the cluster, once it answers."""
    return _answer(stage, stage.cluster.records)


def _nodes(stage: Stage) -> Sequence[NodeResources]:
    """The nodes of the cluster, once they are listed."""
    return _answer(stage, stage.place.nodes)


def _due(stage: Stage) -> Due | None:
    """What is due, once the shares of the datasets answer."""
    experiment = stage.experiment.with_folders_resolved()

    def ask() -> Due | None:
        for folder in (experiment.nnUNet_raw, experiment.nnUNet_preprocessed):
            if folder is not None:
                is_there(folder)  # raises where its share is unavailable, which else looks like a folder without datasets
        return due_of(experiment)

    return _answer(stage, ask)


def _answer(stage: Stage, ask: Callable[[], Answer]) -> Answer:
    """What the cluster, or a share, answers, once it does."""
    while True:
        try:
            return ask()
        except (ClusterError, StorageError) as err:
            stage.on_wait(f"waits for preprocessing: {err}")
            stage.place.clock.sleep(LOOK_S)
