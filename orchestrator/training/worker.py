"""One worker of a training, in Ray Train's worker group: acquires a fencing token, restores, trains, and returns how it ended."""

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from orchestrator.training.failures import RecentLog, can_be_sent, keep_evidence
from trainers.contract.fencing import acquire_token, check_driver_fence, claims_seen
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.contract.states import TrainingEnd
from trainers.storage.faults import retry_storage

if TYPE_CHECKING:
    from trainers.training.world import World

log = logging.getLogger("trainers.training.threads")  # below `trainers`, whose lines the training log has


@dataclass(frozen=True)
class WorkerJob:
    """What Ray hands to every worker."""

    run_folder: str
    driver: str
    fencing_token: int
    """The driver's own number: its workers start only while no other driver has acquired a later one."""


def train_worker(config: dict[str, Any]) -> TrainingEnd:
    """One worker: acquire a fencing token for this start, restore, train, and return how it ended."""
    job = WorkerJob(**config)
    folder = RunFolder(Path(job.run_folder))
    recent = RecentLog()
    logging.getLogger().addHandler(recent)
    logging.getLogger("trainers").setLevel(logging.INFO)
    try:
        from trainers.training.world import current_world

        spec = retry_storage(folder.living_spec, f"the start of {folder.root}")
        world = current_world(spec.workers.gpus)
        what = f"acquiring a start of {folder.root}"
        fencing_token = world.from_main(
            retry_storage(lambda: acquire_start(folder, job, world.world_size, step_threads(spec)), what) if world.is_main else 0
        )
        return train_here(spec, folder, world, fencing_token)
    except Exception as err:
        sent = err if can_be_sent(err) else RuntimeError(f"{type(err).__name__}: {err}").with_traceback(err.__traceback__)
        keep_evidence(sent, f"On node {this_node()}", recent.text())
        raise sent  # noqa: B904 # mostly the very same
    finally:
        logging.getLogger().removeHandler(recent)


def acquire_start(folder: RunFolder, job: WorkerJob, world_size: int, threads: int) -> int:
    """A fencing token for this start of the workers. Raises Superseded when another driver has taken the run, whose workers go on."""
    check_driver_fence(folder, job.fencing_token)
    info = {"role": "workers", "pid": os.getpid(), "node": this_node(), "world_size": world_size, "threads": threads}
    return acquire_token(folder, job.driver, info)


def step_threads(spec: RunSpec) -> int:
    """Threads that a worker computes its steps with: its CPUs less the loaders that take of them."""
    return max(1, spec.workers.cpus - spec.loader.num_local)


def warn_of_threads(folder: RunFolder, spec: RunSpec, fencing_token: int) -> None:
    """Log where a run on CPUs computed with another number of threads before: sums are then rounded in another order."""
    before = next((claim.threads for claim in reversed(claims_seen(folder)) if claim.threads and claim.fencing_token < fencing_token), 0)
    threads = step_threads(spec)
    if before and before != threads and not spec.workers.gpus:
        log.warning(
            "each worker computes with %d threads, and did with %d before: from here on weights may differ in rounding from those of a run "
            "that keeps them. They follow from workers.cpus, loader.actors and loader.placement.",
            threads,
            before,
        )


def this_node() -> str:
    """Ray's id of this process's node."""
    return str(ray.get_runtime_context().get_node_id())


def is_leaving() -> bool:
    """True once a node of the run is to be taken away, as Ray has notified this worker. `get_preemption_info` would be a barrier."""
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info is not None


def train_here(spec: RunSpec, folder: RunFolder, world: "World", fencing_token: int) -> TrainingEnd:
    """Train on this worker until the run is trained, stopped or paused, by our loop or by that of a trainer of the user's."""
    import torch

    from orchestrator.training.loader_pool import LoaderPool
    from trainers.training.rank import train_rank

    torch.set_num_threads(step_threads(spec))
    if world.is_main:
        start_training_log(folder)
        warn_of_threads(folder, spec, fencing_token)
    if spec.own.trainer is not None:
        from trainers.training.own_loop import train_by_own_loop

        return train_by_own_loop(spec, folder, world, fencing_token)
    return train_rank(spec, folder, world, fencing_token, lambda *place: LoaderPool(spec, folder, *place), is_leaving)


def start_training_log(folder: RunFolder) -> None:
    """Write what the trainers log to nnU-Net's place and name for it, a new file per start."""
    handler = logging.FileHandler(folder.root / time.strftime("training_log_%Y_%m_%d_%H_%M_%S.txt"))
    handler.setFormatter(logging.Formatter("%(asctime)s: %(message)s"))
    logging.getLogger("trainers").addHandler(handler)
