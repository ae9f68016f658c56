"""The full-validation job: `python -m orchestrator.validation_job RUN_FOLDER`, one Ray job per run, after its training.

For each checkpoint a pool of Ray actors, each with the network loaded once and one case in flight; the largest case goes first. A
finished case is a file in the run folder, keyed by the checkpoint's SHA-256: a job that starts again does only what is missing. An actor
that dies is replaced and its case tried again; a case that fails too often fails alone, and at the end the job, naming it.
"""

import argparse
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError, RayTaskError

from orchestrator.case_queue import CaseQueue, failure_message, largest_first
from orchestrator.outcome import EVIDENCE_CHARACTERS, Outcome, write_outcome
from orchestrator.publisher import deliver as deliver_rest
from orchestrator.state_telling import tell_end
from orchestrator.validation_cases import case_sizes, checkpoints_to_validate, is_done, is_stop_asked, remove_leftovers
from orchestrator.validation_report import Report, deliver, picture_file, read_result, write_report
from trainers.spec.errors import CheckpointError, ClusterError, ConfigError, DataError, NnfleetError
from trainers.spec.files import sha256_of, write_atomic
from trainers.spec.folder import RunFolder
from trainers.spec.plans import labels_of, load_dataset_json
from trainers.spec.run_spec import CheckpointName, RunSpec
from trainers.spec.summary import CaseResult

if TYPE_CHECKING:
    from trainers.inference import CasePredictor

log = logging.getLogger(__name__)
POLL_S = 1.0
TERMINAL_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
WAIT_REPORT_S = 60.0
"""After this long without a free worker the log says what is waited for, and again after each such span."""
DELIVERY_WAITS_S: tuple[float, ...] = (1, 2, 4, 8, 15, 30, 60, 120)
"""Pauses between tries to reach the tracking server at the end; results are on disk before."""
REST_DELIVERY_S = 120.0
"""How long the end of a validation waits for what the training job had left, and for the run's model entry."""


class Stopped(Exception):
    """Somebody asked this run to stop now."""


def main(arguments: list[str] | None = None) -> int:
    """Validate the run of a run folder; the exit code is 0 unless it failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--attempt", type=int, default=1, help="number of this validation of the run, for its outcome")
    parser.add_argument("--address", default=None, help="Ray cluster; inside a Ray job its own")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stdout)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address=options.address, logging_level=logging.WARNING)
    outcome = run_validation(RunFolder(options.run_folder.absolute()), options.attempt)
    print(outcome.message)
    return 1 if outcome.is_failure else 0


def run_validation(folder: RunFolder, attempt: int = 1, delivery_waits_s: Sequence[float] = DELIVERY_WAITS_S) -> Outcome:
    """Validate every checkpoint that the run asks for on the connected cluster, report, and store and return how it ended."""
    try:
        outcome = validate_and_report(folder, attempt, delivery_waits_s)
    except (Stopped, KeyboardInterrupt):  # Ray ends a job that is stopped with SIGINT
        outcome = _outcome("STOPPED", attempt, "stopped as asked; finished cases are kept")
    except (ConfigError, DataError) as err:
        outcome = _outcome("FAILED_CONFIG", attempt, str(err))
    except ClusterError as err:
        outcome = _outcome("FAILED_CLUSTER", attempt, str(err))
    except NnfleetError as err:
        outcome = _outcome("FAILED_CODE", attempt, str(err), err)
    except Exception as err:
        outcome = _outcome("FAILED_CODE", attempt, f"{type(err).__name__}: {err}", err)
    if write_outcome(folder, outcome):
        tell_end(folder, outcome)
    return outcome


def _outcome(state: Any, attempt: int, message: str, error: BaseException | None = None, evidence: str = "") -> Outcome:
    if error is not None:
        evidence = "".join(traceback.format_exception(error))
    return Outcome(job="validation", state=state, attempt=attempt, message=message[:4000], evidence=evidence[-EVIDENCE_CHARACTERS:])


def validate_and_report(folder: RunFolder, attempt: int, delivery_waits_s: Sequence[float]) -> Outcome:
    """Validate, write the summaries, deliver them. Summaries of complete checkpoints are kept and delivered even if another one fails."""
    spec = folder.spec()
    if not spec.val_cases:
        return _outcome("SUCCEEDED", attempt, f"fold {spec.fold} lists no validation cases: there is nothing to validate")
    labels = labels_of(load_dataset_json(folder.model_folder), str(folder.model_folder / "dataset.json"))
    reports: list[Report] = []
    failures: list[GivenUp] = []
    for name in checkpoints_to_validate(folder, spec):
        given_up, results = validate_checkpoint(folder, spec, name)
        if given_up:
            failures.append(given_up)
        else:
            reports.append(write_report(folder, spec, labels, name, results))
    undelivered = deliver(folder, spec, reports, delivery_waits_s) if reports else None
    if reports and undelivered is None and not deliver_rest(folder, REST_DELIVERY_S):
        undelivered = "what the training job had left; the next job of this run sends it"
    scores = ", ".join(f"{report.name} {report.metrics.get('dice_mean', float('nan')):.4f}" for report in reports)
    evidence = f"not delivered to the tracking server: {undelivered}" if undelivered else ""
    if failures:
        state = "FAILED_CLUSTER" if all(f.only_lost_workers for f in failures) else "FAILED_CODE"
        return _outcome(
            state, attempt, " ".join(f.message for f in failures), evidence="\n".join([*(f.evidence for f in failures), evidence])
        )
    message = f"full validation of {len(spec.val_cases)} cases, mean Dice: {scores}"
    return _outcome("SUCCEEDED", attempt, message + (f" ({evidence})" if evidence else ""), evidence=evidence)


@dataclass(frozen=True)
class GivenUp:
    """Why a checkpoint's validation is not complete."""

    message: str
    evidence: str
    only_lost_workers: bool


def validate_checkpoint(folder: RunFolder, spec: RunSpec, name: CheckpointName) -> tuple[GivenUp | None, list[CaseResult]]:
    """Bring the results of one checkpoint up to date; returns them in the split's order unless cases were given up."""
    digest = sha256_of(folder.checkpoint(name))
    remove_leftovers(folder, name)
    missing = [case for case in spec.val_cases if not is_done(folder, spec, name, case, digest)]
    log.info("full validation of %s: %d of %d cases to do", name, len(missing), len(spec.val_cases))
    if missing:
        for summary in (folder.validation(name) / "summary.json", folder.own / f"validation_{name}.json"):
            summary.unlink(missing_ok=True)  # of other weights, or of cases that are not there any more
        queue = CaseQueue.of(largest_first(case_sizes(spec, missing)), spec.validation.attempts_per_case)
        pool = Pool(folder, spec, name, digest, queue)
        pool.run(min(spec.workers.least, len(missing)))
        if queue.given_up:
            message = failure_message(name, queue.given_up, queue.attempts, len(spec.val_cases))
            return GivenUp(message, "\n".join(pool.evidence), set(queue.given_up) <= pool.lost_only), []
    results = [result for case in spec.val_cases if (result := read_result(folder, name, case)) is not None]
    if len(results) < len(spec.val_cases):
        raise ClusterError(
            f"full validation ({name}): {len(results)} of {len(spec.val_cases)} results are in {folder.cases(name)} as this node sees it. "
            "The run folder must be shared between all nodes."
        )
    return None, results


class CaseWorker:
    """The actor: holds the network of one checkpoint and validates one case after the other."""

    def __init__(self, root: str, name: CheckpointName, digest: str) -> None:
        self._folder, self._name, self._digest = RunFolder(Path(root)), name, digest
        self._predictor: CasePredictor | None = None

    def load(self) -> None:
        """Load the network. Raises CheckpointError when the file is not the one that the job started with."""
        from trainers.inference import CasePredictor

        spec, checkpoint = self._folder.spec(), self._folder.checkpoint(self._name)
        self._predictor = CasePredictor(spec, checkpoint, "cuda" if spec.workers.gpus else "cpu", threads=spec.workers.cpus)
        if self._predictor.checkpoint_sha256 != self._digest:
            raise CheckpointError(f"checkpoint: {checkpoint} changed while it was being validated. Validate again.")

    def validate(self, case_id: str) -> float:
        """Validate one case; its files are the result. Returns the mean Dice, for the log."""
        from trainers.validation import validate_case

        assert self._predictor is not None
        result = validate_case(self._predictor, self._folder, self._name, case_id)
        if self._folder.spec().images:
            self._draw(result)
        return result.dice_mean

    def _draw(self, result: CaseResult) -> None:
        """Write the picture of a case; a fault in it is logged and costs the picture alone."""
        from trainers.validation import case_picture

        assert self._predictor is not None
        try:
            from orchestrator.pictures import overlay

            shown = case_picture(self._predictor, result.case_id, Path(result.prediction_file))
            title = f"{self._name}, mean Dice {result.dice_mean:.3f}"
            volumes = (shown.image_ZYX, shown.truth_ZYX, shown.prediction_ZYX)
            png = overlay(*volumes, shown.value_names, title, shown.spacing_ZYX)
            write_atomic(picture_file(self._folder, self._name, result.case_id), png)
        except Exception:
            log.warning("no picture of case %s", result.case_id, exc_info=True)


@dataclass
class Pool:
    """Actors of one checkpoint and the cases in flight on them. `run` returns when every case is done or given up."""

    folder: RunFolder
    spec: RunSpec
    name: CheckpointName
    digest: str
    queue: CaseQueue
    evidence: list[str] = field(default_factory=list)
    lost_only: set[str] = field(default_factory=set)
    """Cases that so far failed by nothing but the loss of their worker."""
    _flights: dict[Any, tuple[Any, str | None]] = field(default_factory=dict)
    """Pending call -> (actor, case, or None while it loads)."""
    _loading_losses: int = 0

    def run(self, count: int) -> None:
        """Validate all waiting cases on `count` actors. Raises Stopped, CheckpointError (the network does not load) or ClusterError."""
        last_sign = time.monotonic()
        try:
            for _ in range(count):
                self._start_worker()
            while self._flights:
                ready, _ = ray.wait(list(self._flights), num_returns=1, timeout=POLL_S)
                if is_stop_asked(self.folder):
                    raise Stopped
                for call in ready:
                    self._land(call)
                last_sign = time.monotonic() if ready else self._say_waiting(last_sign)
        finally:
            for actor, _ in self._flights.values():
                ray.kill(actor)

    def _start_worker(self) -> None:
        cpus, gpus = self.spec.workers.cpus, self.spec.workers.gpus
        threads = {"OMP_NUM_THREADS": str(cpus), "MKL_NUM_THREADS": str(cpus), "nnUNet_def_n_proc": str(cpus)}
        actor_class = ray.remote(CaseWorker).options(num_cpus=cpus, num_gpus=gpus, max_restarts=0, runtime_env={"env_vars": threads})
        actor: Any = actor_class.remote(str(self.folder.root), self.name, self.digest)
        self._flights[actor.load.remote()] = (actor, None)

    def _land(self, call: Any) -> None:
        """Take in one finished call and give its actor the next case, or replace the actor."""
        actor, case_id = self._flights.pop(call)
        try:
            value = ray.get(call)
        except RayTaskError as err:
            self._case_failed(actor, case_id, err)
        except RayError as err:  # RayActorError: it died or cannot be reached; else out of memory, a lost object: it is in doubt
            self._worker_lost(actor, case_id, err)
        else:
            if case_id is not None:
                log.info("%s of %s: mean Dice %.4f", case_id, self.name, value)
            self._give_next(actor)

    def _give_next(self, actor: Any) -> None:
        case_id = self.queue.next()
        if case_id is None:
            ray.kill(actor)  # its memory and GPU are free for others while the last cases run
            return
        self._flights[actor.validate.remote(case_id)] = (actor, case_id)

    def _case_failed(self, actor: Any, case_id: str | None, error: RayTaskError) -> None:
        cause = error.cause if isinstance(error.cause, BaseException) else error
        if case_id is None:
            ray.kill(actor)
            known = (
                cause if isinstance(cause, NnfleetError) else CheckpointError(f"checkpoint: {self.folder.checkpoint(self.name)}: {cause}")
            )
            raise known from error
        self.lost_only.discard(case_id)
        self._note(case_id, f"{type(cause).__name__}: {cause}", error)
        if isinstance(cause, DataError):
            self._give_next(actor)
        else:  # a CUDA error leaves the process useless
            ray.kill(actor)
            self._replace()

    def _worker_lost(self, actor: Any, case_id: str | None, error: RayError) -> None:
        ray.kill(actor)
        if case_id is None:
            self._loading_losses += 1
            if self._loading_losses > self.queue.attempts:
                raise ClusterError(
                    f"full validation ({self.name}): workers died {self._loading_losses} times while loading the network, at last: {error} "
                    f"Does a node have memory for {self.spec.workers.cpus} CPUs' worth of it?"
                ) from error
        elif getattr(error, "preempted", False):  # its node was taken away: not the case's fault
            log.warning("the node that worked on case %s of %s was taken away: the case is done elsewhere", case_id, self.name)
            self.queue.waiting.appendleft(case_id)
        else:
            if case_id not in self.queue.failures:
                self.lost_only.add(case_id)
            self._note(case_id, "its worker died, often for want of memory; see the Ray log of the node.", error)
        self._replace()

    def _note(self, case_id: str, reason: str, error: RayError) -> None:
        again = self.queue.failed(case_id, reason)
        log.warning("case %s of %s failed (%s): %s", case_id, self.name, "it is tried again" if again else "given up", reason)
        self.evidence.append(f"{case_id}: {TERMINAL_COLOURS.sub('', str(error))}"[-3000:])

    def _replace(self) -> None:
        if self.queue.waiting:
            self._start_worker()

    def _say_waiting(self, last_sign: float) -> float:
        if time.monotonic() - last_sign < WAIT_REPORT_S:
            return last_sign
        loading = sum(case is None for _, case in self._flights.values())
        running = [case for _, case in self._flights.values() if case is not None]
        workers = self.spec.workers
        log.info("%d workers wait for %d CPUs and %d GPUs each or load; cases in work: %s", loading, workers.cpus, workers.gpus, running)
        return time.monotonic()


if __name__ == "__main__":
    sys.exit(main())
