"""The training job: `python -m orchestrator.training.driver RUN_FOLDER`, one Ray job per run.

Driver (head node): acquire a fencing token, check everything, start the publisher, let Ray Train run the workers, deliver what is left,
hand over to the full-validation job, write how it ended. Workers (anywhere): the loop of `trainers/training/loop.py`, nothing else.
Ray restarts the workers whenever one dies, as long as our budgets allow it (`failure_policy.py`); each start continues from the newest
state in the run folder, not from a checkpoint of Ray's.
"""

import argparse
import logging
import os
import socket
import sys
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from orchestrator.queue.space import resources_of
from orchestrator.run.file_names import names_problem
from orchestrator.run.interrupts import obey_interrupts
from orchestrator.run.outcome import EVIDENCE_CHARACTERS, Outcome, write_outcome
from orchestrator.training.failures import MESSAGE_CHARACTERS, read_failures
from orchestrator.training.worker import WorkerJob, this_node, train_worker
from trainers.contract.commits import Committed, newest_committed
from trainers.contract.fencing import acquire_token
from trainers.contract.requests import stop_request_seen
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import OwnParts, RunSpec
from trainers.contract.states import TrainingEnd
from trainers.errors import ClusterError, NnfleetError, StorageError
from trainers.storage.faults import retry_storage

if TYPE_CHECKING:
    from orchestrator.training.gang_trainer import GangTrainer


log = logging.getLogger(__name__)
COLLECTIVE_TIMEOUT_S = 600
RESIZE_LOOK_S = 60.0
"""How often an elastic run looks for capacity for more workers: each growth restarts all of them."""
FIRST_DELIVERY_S = 15.0
"""The publisher begins so long after the workers: its imports alone take 2 s of CPU, and before the first epoch there is little to send."""
DELIVERY_S = 60.0
"""How long an ended training waits for the tracking server to take what is left; the validation job sends the rest."""

OWN_CODE_CURE = (
    "Correct the code, then submit the experiment again: the code is part of the run; `nnfleet resume` keeps the code as it was."
)


def main(arguments: list[str] | None = None) -> int:
    """Train the run of a run folder; the exit code is 0 unless it failed."""
    obey_interrupts()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--job-number", type=int, default=1, help="the least fencing token that the driver acquires")
    options = parser.parse_args(arguments)
    folder = RunFolder(options.run_folder)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stdout)
    ray.init(logging_level=logging.WARNING)
    try:
        outcome = run_training(folder, options.job_number)
    except NnfleetError as err:  # nothing of this job could be stored: its exit code and log have to do
        print(err)
        return err.exit_code
    print(outcome.message)
    return outcome.exit_code


def run_training(folder: RunFolder, least_token: int = 1, *, hands_over: bool = True) -> Outcome:
    """Train, publish and, if `hands_over`, submit the validation job. Returns and stores the outcome of everything that happens once the
    token is acquired; before, raises DataError (its run.json is broken) or StorageError (run or dataset cannot be seen, or the disk does
    not take the token, for minutes)."""
    from orchestrator.publishing.publisher import Publisher
    from orchestrator.tracking.end_state import publish_end

    driver = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    spec = retry_storage(folder.living_spec, f"the start of {folder.root}")
    info = {
        "job": os.environ.get("NNFLEET_SUBMISSION_ID", ""),
        "cluster": os.environ.get("RAY_ADDRESS", ""),
        "role": "driver",
        "pid": os.getpid(),
        "node": this_node(),
    }
    fencing_token = retry_storage(lambda: acquire_token(folder, driver, info, least_token), f"acquiring {folder.root}")
    job = WorkerJob(str(folder.root), driver, fencing_token)
    outcome = preflight(spec, job.fencing_token)
    if outcome is not None:
        outcome = with_cure(outcome, spec.own)
        if write_outcome(folder, outcome):
            publish_end(folder, outcome)
        return outcome
    publisher = Publisher(folder, job.fencing_token, first_s=FIRST_DELIVERY_S)
    publisher.start()
    try:
        outcome = with_cure(run_workers(spec, folder, job), spec.own)
        if not write_outcome(folder, outcome):  # before anything that may take long, for whoever asks
            outcome = outcome.model_copy(update={"state": "SUPERSEDED"})
        if outcome.state == "TRAINED" and hands_over:
            hand_over(folder, spec, job.fencing_token)
        if outcome.state != "SUPERSEDED" and not publisher.flush(DELIVERY_S):
            log.warning("the tracking server did not take everything within %.0f s; the next job of this run delivers it", DELIVERY_S)
        publish_end(folder, outcome)
    finally:
        publisher.stop()
    return outcome


def with_cure(outcome: Outcome, own: OwnParts) -> Outcome:
    """The outcome of a run that failed by a function of the user's, with what to do: resumed, it fails by the same code again. Pure."""
    named = [text for code in own.named.values() for text in (code.name, f"{code.name.partition(':')[0]} has no ")]
    if outcome.state != "FAILED_CONFIG" or not any(text in outcome.message for text in named):
        return outcome
    return outcome.model_copy(update={"message": f"{outcome.message.rstrip()} {OWN_CODE_CURE}"})


def preflight(spec: RunSpec, fencing_token: int) -> Outcome | None:
    """Everything that can be checked without a worker; a problem here never takes a GPU and, unless a disk is away, is never retried."""
    try:
        problems = retry_storage(lambda: found_problems(spec), f"the check of {spec.preprocessed_folder}")
    except StorageError as err:
        return Outcome(job="training", state="FAILED_CLUSTER", fencing_token=fencing_token, message=str(err))
    except NnfleetError as err:
        problems = [str(err)]
    if not problems:
        return None
    return Outcome(job="training", state="FAILED_CONFIG", fencing_token=fencing_token, message="; ".join(problems))


def found_problems(spec: RunSpec) -> list[str]:
    """Problems of a run's data; without any, of the folder that takes its results, and of its network, unless it has trained before.

    Raises NnfleetError.
    """
    from orchestrator.dataset.network_check import network_problem
    from orchestrator.dataset.preflight import check_run
    from orchestrator.dataset.previous_stage import keep_or_compare

    folder = RunFolder(spec.run_folder)
    beside = ThreadPoolExecutor(1)
    on_network = beside.submit(lambda: "" if newest_committed(folder) else network_problem(spec))  # a process of some seconds, or kept
    try:
        if problems := check_run(spec):
            return problems
        if problem := keep_or_compare(spec, folder):
            return [problem]
        import orchestrator.training.gang_trainer  # noqa: F401 # Ray Train's seconds of imports pass while the network is tried

        problem = names_problem(folder.own, spec.val_cases) or on_network.result()
        return [problem] if problem else []
    finally:
        beside.shutdown(wait=False, cancel_futures=True)


def hand_over(folder: RunFolder, spec: RunSpec, fencing_token: int) -> None:
    """Submit the full validation as a job of its own. If that fails, the campaign does it: it sees a trained run without one."""
    from orchestrator.cluster.jobs import Jobs
    from orchestrator.run.job_record import validations

    try:
        jobs = Jobs.inside_job()
        elsewhere = [job for job in validations(jobs.records(), spec.run_key, fencing_token) if job.run_folder != str(folder.root)]
        jobs.submit_validation(folder, spec, fencing_token, len(elsewhere))  # the name that the campaign would give it
    except ClusterError as err:
        log.warning("the validation job was not submitted from here: %s", err)


def run_workers(spec: RunSpec, folder: RunFolder, job: WorkerJob) -> Outcome:
    """Let Ray Train run the workers and report how that ended."""
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError

    try:
        result = trainer(spec, folder, job).fit()
    except (TrainingFailedError, RayError) as err:
        return failed(folder, job, err)
    return ended(folder, job.fencing_token, result.return_value)  # type: ignore[attr-defined] # Train v2 has it, the annotation is of v1


def failed(folder: RunFolder, job: WorkerJob, error: Exception) -> Outcome:
    """The outcome of a training that ended by a failure: the one that our policy has called final, else the loss of Ray's controller."""
    from ray.train.v2.api.exceptions import TrainingFailedError

    from orchestrator.training.failure_policy import blame_of

    final = [failure for failure in read_failures(folder, job.driver) if failure.is_final]
    if final:
        return final[-1].outcome(job.fencing_token)
    if isinstance(error, TrainingFailedError):  # the disk did not take the record
        found = blame_of(error)
        return Outcome(job="training", fencing_token=job.fencing_token, state=found.state, message=found.message, evidence=found.evidence)
    message = f"training ended with {type(error).__name__}: {error}"[:MESSAGE_CHARACTERS]
    evidence = "".join(traceback.format_exception(error))[-EVIDENCE_CHARACTERS:]
    return Outcome(job="training", state="FAILED_CLUSTER", fencing_token=job.fencing_token, message=message, evidence=evidence)


def ended(folder: RunFolder, fencing_token: int, state: TrainingEnd) -> Outcome:
    """The outcome of workers that all returned. Raises StorageError where nothing of what they committed is to be seen for minutes."""

    def newest() -> Committed | None:
        found = newest_committed(folder)
        if found is None and state == "TRAINED":
            raise StorageError(
                f"storage: {folder.state} shows no state of a training that has ended. Mount the shared folder on this node."
            )
        return found

    reached = retry_storage(newest, f"the end of {folder.root}")
    epochs = reached.epochs_done if reached else 0
    early = ", ended early as asked" if state == "TRAINED" and reached and reached.early_end else ""
    asked = stop_request_seen(folder) if state == "STOPPED" else None
    because = f": {asked.why}" if asked is not None and asked.why else ""
    message = f"{state.lower()} after {epochs} epochs{early}{because}"
    return Outcome(job="training", state=state, fencing_token=fencing_token, message=message)


def trainer(spec: RunSpec, folder: RunFolder, job: WorkerJob) -> "GangTrainer":
    """The gang of DDP workers: placed all at once or not at all, restarted together; an elastic one also when their number changes."""
    from ray.train import LoggingConfig, RunConfig, ScalingConfig

    from orchestrator.training.failure_policy import BudgetPolicy
    from orchestrator.training.gang_backend import GangConfig
    from orchestrator.training.gang_trainer import GangTrainer
    from orchestrator.training.save_before_resize import SaveBeforeResize
    from orchestrator.training.scaling_policy import Allowance, FreeCapacity

    environment = {"env_vars": {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}} if spec.deterministic else None
    scaling = ScalingConfig(  # type: ignore[call-arg] # Train v2's, the annotation is of v1
        num_workers=(spec.workers.least, spec.workers.most) if spec.workers.is_elastic else spec.workers.count,  # type: ignore[arg-type]
        use_gpu=spec.workers.gpus > 0,
        resources_per_worker=resources_of(spec.workers),
        placement_strategy="PACK",
        elastic_resize_monitor_interval_s=RESIZE_LOOK_S,
    )
    policies: dict[str, Any] = {"failure_policy": BudgetPolicy(folder, job.driver, job.fencing_token)}
    if spec.workers.is_elastic:
        policies["scaling_policy"] = FreeCapacity(scaling, Allowance.on_this_cluster(spec.run_key))
    return GangTrainer(
        train_worker,
        train_loop_config=asdict(job),
        policies=policies,
        scaling_config=scaling,
        backend_config=GangConfig(str(folder.root), "cpu:gloo,cuda:nccl" if spec.workers.gpus else "gloo", COLLECTIVE_TIMEOUT_S),
        run_config=RunConfig(  # type: ignore[call-arg] # as above
            name=f"a{job.fencing_token:04d}",  # of its own per start of the job: Ray's stored state is never what we resume from
            storage_path=str(folder.own / "ray_train"),
            callbacks=[SaveBeforeResize(folder)],  # type: ignore[list-item] # as above
            worker_runtime_env=environment,
            logging_config=LoggingConfig(log_level="ERROR"),  # what else Ray Train says is in its own files below its session
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
