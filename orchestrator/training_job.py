"""The training job: `python -m orchestrator.training_job RUN_FOLDER`, one Ray job per run.

Driver (head node): claim an attempt, check everything, start the publisher, let Ray Train run the workers, deliver what is left,
hand over to the full-validation job, write how it ended. Workers (anywhere): the loop of `trainers/loop.py`, nothing else.
Ray restarts the workers when one dies; each start continues from the newest state in the run folder, not from a checkpoint of Ray's.
"""

import argparse
import logging
import os
import socket
import sys
import time
import traceback
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from orchestrator.outcome import Fault, Outcome, read_fault, write_fault, write_outcome
from trainers.spec.attempts import claim_attempt
from trainers.spec.committed import newest_committed
from trainers.spec.errors import ConfigError, DataError, NnfleetError, Superseded
from trainers.spec.folder import RunFolder
from trainers.spec.run_spec import RunSpec

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

log = logging.getLogger(__name__)
WORKER_RESTARTS = 3
"""How often Ray restarts the workers within one job before the job gives up and the campaign decides."""
COLLECTIVE_TIMEOUT_S = 600
DELIVERY_S = 600.0
"""How long a finished training waits for the tracking server to take what is left."""


@dataclass(frozen=True)
class WorkerJob:
    """What Ray hands to every worker."""

    run_folder: str
    driver: str


def main(arguments: list[str] | None = None) -> int:
    """Train the run of a run folder; the exit code is 0 unless it failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_folder", type=Path)
    folder = RunFolder(parser.parse_args(arguments).run_folder)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stdout)
    ray.init(logging_level=logging.WARNING)
    outcome = run_training(folder)
    print(outcome.message)
    return 1 if outcome.is_failure else 0


def run_training(folder: RunFolder, *, hands_over: bool = True) -> Outcome:
    """Train, publish and, if `hands_over`, submit the validation job. Returns and stores the outcome; raises nothing of the run's own."""
    driver = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    spec = folder.spec()
    attempt = claim_attempt(folder, driver, {"job": os.environ.get("NNFLEET_SUBMISSION_ID", ""), "role": "driver", "pid": os.getpid()})
    outcome = preflight(spec, attempt)
    if outcome is None:
        outcome = train_and_publish(spec, folder, driver, attempt)
    write_outcome(folder, outcome)
    if outcome.state == "TRAINED" and hands_over:
        from orchestrator.jobs import Jobs

        Jobs.inside_job().submit_validation(folder, spec, attempt)
    return outcome


def preflight(spec: RunSpec, attempt: int) -> Outcome | None:
    """Everything that can be checked without a worker; a problem here never takes a GPU and is never retried."""
    from orchestrator.data_check import check_run

    try:
        problems = check_run(spec)
    except NnfleetError as err:
        problems = [str(err)]
    if not problems:
        return None
    return Outcome(job="training", state="FAILED_CONFIG", attempt=attempt, message="; ".join(problems))


def train_and_publish(spec: RunSpec, folder: RunFolder, driver: str, attempt: int) -> Outcome:
    """Run the workers to their end with the publisher beside them, then deliver what is left."""
    from orchestrator.publisher import Publisher

    publisher = Publisher(folder, attempt)
    publisher.start()
    try:
        outcome = fit(spec, folder, driver, attempt)
        if outcome.state != "SUPERSEDED" and not publisher.flush(DELIVERY_S):
            log.warning("the tracking server did not take everything within %.0f s; the next job of this run delivers it", DELIVERY_S)
    finally:
        publisher.stop()
    return outcome


def fit(spec: RunSpec, folder: RunFolder, driver: str, attempt: int) -> Outcome:
    """Let Ray Train run the workers and say how that ended."""
    from ray.train import ControllerError, TrainingFailedError

    try:
        result = trainer(spec, folder, driver, attempt).fit()
    except TrainingFailedError as err:
        fault = read_fault(folder, driver)
        evidence = fault.evidence if fault else "".join(traceback.format_exception(err))[-4000:]
        state = "FAILED_CLUSTER" if isinstance(err, ControllerError) and fault is None else "FAILED_CODE"
        message = fault.message if fault else f"training ended with {type(err).__name__}: {err}"
        return Outcome(job="training", state=state, attempt=attempt, message=message[:2000], evidence=evidence)
    return ended(folder, attempt, result.return_value)  # type: ignore[attr-defined] # Train v2 has it, the annotation is of v1


def ended(folder: RunFolder, attempt: int, record: dict[str, Any] | None) -> Outcome:
    """The outcome of workers that all returned, from rank 0's record."""
    state = record["state"] if record else "FAILED_CODE"
    if state in ("TRAINED", "STOPPED"):
        reached = newest_committed(folder)
        epochs = reached.epochs_done if reached else 0
        return Outcome(job="training", state=state, attempt=attempt, message=f"{state.lower()} after {epochs} epochs")
    message = record["message"] if record else "the workers returned nothing"
    return Outcome(job="training", state=state, attempt=attempt, message=message, evidence=record["evidence"] if record else "")


def trainer(spec: RunSpec, folder: RunFolder, driver: str, attempt: int) -> "TorchTrainer":
    """The gang of DDP workers: placed all at once or not at all, restarted together."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = {"CPU": float(spec.workers.cpus)}
    if spec.workers.gpus:
        resources["GPU"] = float(spec.workers.gpus)
    return TorchTrainer(
        train_worker,  # type: ignore[arg-type] # Train v2 passes on what it returns
        train_loop_config={"run_folder": str(folder.root), "driver": driver},
        scaling_config=ScalingConfig(
            num_workers=spec.workers.count, use_gpu=spec.workers.gpus > 0, resources_per_worker=resources, placement_strategy="PACK"
        ),
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if spec.workers.gpus else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S),
        run_config=RunConfig(
            name=f"a{attempt:04d}",  # of its own per attempt: Ray's stored state is never what we resume from
            storage_path=str(folder.own / "ray_train"),
            failure_config=FailureConfig(max_failures=WORKER_RESTARTS),
        ),
    )


def train_worker(config: dict[str, str]) -> dict[str, Any]:
    """One worker: restore, train, and return how it ended. Errors that a restart cannot mend are returned, not raised, by every rank."""
    job = WorkerJob(**config)
    folder = RunFolder(Path(job.run_folder))
    fault = read_fault(folder, job.driver)
    if fault is not None and not fault.is_worth_a_retry:
        return fault.record()
    try:
        return {"state": train_here(folder.spec(), folder, job.driver)}
    except Superseded as err:
        write_fault(folder, Fault.of(job.driver, "SUPERSEDED", err))
        raise
    except (ConfigError, DataError) as err:
        write_fault(folder, Fault.of(job.driver, "FAILED_CONFIG", err))
        raise
    except Exception as err:
        write_fault(folder, Fault.of(job.driver, "FAILED_CODE", err))
        raise


def train_here(spec: RunSpec, folder: RunFolder, driver: str) -> str:
    """Train on this worker until the run is trained or stopped."""
    import torch

    from orchestrator.loader_pool import LoaderPool
    from trainers.assemble import assemble, blueprint, newest_everywhere, reached_by, restore, state_writer, warm_up
    from trainers.loop import train
    from trainers.spec.split_batch import rank_positions
    from trainers.world import current_world

    world = current_world(spec.workers.gpus)
    torch.set_num_threads(max(1, spec.workers.cpus - spec.loader.actors))
    attempt = world.from_main(claim_attempt(folder, driver, {"role": "workers", "pid": os.getpid()}) if world.is_main else 0)
    if world.is_main:
        start_training_log(folder)
    plan = blueprint(spec)
    newest = newest_everywhere(folder, world)
    reached = reached_by(newest, spec.schedule)
    positions = rank_positions(plan.global_batch, world.world_size, world.global_rank)
    with LoaderPool(spec, folder, positions, reached.epochs_done) as source:  # it starts up while the network is built
        learner = assemble(spec, plan, world, attempt)
        restore(folder, learner, newest)
        writer = state_writer(spec, folder, plan, attempt, newest) if world.is_main else None
        warm_up(learner, plan, world)
        return train(spec, folder, world, learner, source, writer, reached)


def start_training_log(folder: RunFolder) -> None:
    """Write what the trainers log to nnU-Net's place and name for it, a new file per start."""
    handler = logging.FileHandler(folder.root / time.strftime("training_log_%Y_%m_%d_%H_%M_%S.txt"))
    handler.setFormatter(logging.Formatter("%(asctime)s: %(message)s"))
    logger = logging.getLogger("trainers")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)


if __name__ == "__main__":
    sys.exit(main())
