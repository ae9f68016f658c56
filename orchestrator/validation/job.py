"""The full-validation job: `python -m orchestrator.validation.job RUN_FOLDER`, one Ray job per run, after its training.

Best and final weights by the same Ray actors in one visit of a case, candidates one after the other; each actor has one case in flight, and
the largest case goes first. A finished case is a file in the run folder, keyed by the checkpoint's SHA-256 and the scoring rule: a job
that starts again does only what is missing, a case that an older rule scored is scored anew from its stored prediction, and a checkpoint
with the weights of another one takes that one's results. A case whose files are at fault, or that fails too often, fails alone, and at the
end the job, naming it (`worker_pool.py`, `case_queue.py`).
"""

import argparse
import contextlib
import importlib
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from orchestrator.compare.cross_validation import CHECKPOINT, publishable
from orchestrator.compare.crossval_folder import refresh_crossval
from orchestrator.publishing.publisher import deliver_run
from orchestrator.publishing.validation_report import ValidationReport, deliver_reports, write_report, write_summaries
from orchestrator.run.crossvals import drop_crossval
from orchestrator.run.interrupts import obey_interrupts
from orchestrator.run.outcome import EVIDENCE_CHARACTERS, EndState, Outcome, read_outcome, write_outcome
from orchestrator.run.progress import has_candidates
from orchestrator.tracking.end_state import publish_end
from orchestrator.validation.case_queue import CaseQueue, end_of, failure_message, largest_first
from orchestrator.validation.cases import (
    Stopped,
    candidates_to_validate,
    case_sizes,
    checkpoints_to_validate,
    digest_of,
    is_done,
    is_unfinished,
    remove_leftovers,
    share_results,
    visits,
)
from orchestrator.validation.memory import largest_case
from orchestrator.validation.worker_pool import Pool
from trainers.contract.cascade import part_prefix, predictions_of
from trainers.contract.commits import Committed, early_end_of, newest_committed
from trainers.contract.own_code import check_files
from trainers.contract.plans import Labels, labels_of, load_dataset_json
from trainers.contract.records import read_result
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec, WeightsName, is_checkpoint
from trainers.contract.storage_notice import StorageNotice
from trainers.contract.summary import CaseResult
from trainers.errors import ClusterError, ConfigError, DataError, NnfleetError, StorageError, TrackingError
from trainers.storage.faults import is_of_storage, retry_storage
from trainers.storage.files import check_takes, write_if_changed

log = logging.getLogger(__name__)
DELIVERY_WAITS_S: tuple[float, ...] = (1, 2, 4, 8, 15, 30, 60, 120)
"""Pauses between tries to reach the tracking server at the end; results are on disk before."""
REST_DELIVERY_S = 120.0
"""How long the end of a validation waits for what the training job had left, and for the run's model entry."""


def main(arguments: list[str] | None = None) -> int:
    """Validate the run of a run folder; the exit code is 0 unless it failed."""
    obey_interrupts()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--fencing-token", type=int, default=1, help="fencing token of the training that is validated")
    parser.add_argument("--address", default=None, help="Ray cluster; inside a Ray job its own")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stdout)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address=options.address, logging_level=logging.WARNING)
    outcome = run_validation(RunFolder(options.run_folder.absolute()), options.fencing_token)
    print(outcome.message)
    return outcome.exit_code


def run_validation(folder: RunFolder, fencing_token: int = 1, delivery_waits_s: Sequence[float] = DELIVERY_WAITS_S) -> Outcome:
    """Validate every checkpoint that the run asks for on the connected cluster, report, and store and return how it ended."""
    reports: list[ValidationReport] | None = None
    try:
        outcome, reports = validate(folder, fencing_token)
    except (Stopped, KeyboardInterrupt):  # Ray ends a job that is stopped with SIGINT
        outcome = _outcome("STOPPED", fencing_token, "stopped as asked; finished cases are kept")
    except (ConfigError, DataError) as err:
        outcome = _outcome("FAILED_CONFIG", fencing_token, str(err))
    except (ClusterError, StorageError) as err:
        outcome = _outcome("FAILED_CLUSTER", fencing_token, str(err))
    except NnfleetError as err:
        outcome = _outcome("FAILED_CODE", fencing_token, str(err), err)
    except Exception as err:
        state = "FAILED_CLUSTER" if is_of_storage(err) else "FAILED_CODE"
        outcome = _outcome(state, fencing_token, f"{type(err).__name__}: {err}", err)
    if reports is None:
        return stored(folder, outcome)
    refresh_cross_validation(folder)
    return delivered(folder, outcome, reports, delivery_waits_s)


def refresh_cross_validation(folder: RunFolder) -> None:
    """Bring nnU-Net's folder of the model's cross-validation up to date; what goes wrong there fails no validation."""
    try:
        refresh_crossval(folder.model_folder)
    except Exception as err:
        known = isinstance(err, NnfleetError | OSError)
        log.warning("the cross-validation of %s was not written: %s", folder.model_folder, err, exc_info=not known)


def delivered(folder: RunFolder, outcome: Outcome, reports: Sequence[ValidationReport], waits_s: Sequence[float]) -> Outcome:
    """Deliver what the validation found and store its outcome, in this order: whoever sees the end finds the scores in MLflow.

    While the server is away the outcome comes first: from then on the campaign counts the run as ended and its reservation as released, and
    all that this job still does is to deliver.
    """
    undelivered = deliver_all(folder, outcome.fencing_token, reports, ())
    if undelivered is None:
        return stored(folder, outcome)
    first = stored(folder, _lacking(outcome, undelivered))
    try:
        undelivered = deliver_all(folder, outcome.fencing_token, reports, waits_s)
    except KeyboardInterrupt:
        return first
    return stored(folder, _lacking(outcome, undelivered)) if read_outcome(folder) == first else first


def deliver_all(folder: RunFolder, fencing_token: int, reports: Sequence[ValidationReport], waits_s: Sequence[float]) -> str | None:
    """Send the reports, and with them what the training job had left, to MLflow. Returns None, or why not all was delivered.

    `fencing_token`: of the training that was validated. Once another driver owns the run, nothing more of this one is sent.
    """
    undelivered = deliver_reports(folder, folder.spec(), reports, fencing_token, waits_s)
    if undelivered is None and not deliver_run(folder, fencing_token, REST_DELIVERY_S):
        undelivered = "what the training job had left; the next job of this run or `nnfleet sync` sends it"
    return deliver_cross_validation(folder) if undelivered is None else undelivered


def deliver_cross_validation(folder: RunFolder) -> str | None:
    """Send the cross-validation of the model to MLflow if this was its last fold. Returns None, or why the server did not take it."""
    try:
        if publishable(folder.model_folder) is not None:
            from orchestrator.compare.model_run import publish_cross_validation  # 1 s of statistics, for the last fold alone

            publish_cross_validation(folder.model_folder)
    except TrackingError as err:
        return str(err)
    except Exception as err:  # results are safe on disk
        known = isinstance(err, NnfleetError | OSError)
        log.warning("the cross-validation of %s is not in MLflow: %s", folder.model_folder, err, exc_info=not known)
    return None


def stored(folder: RunFolder, outcome: Outcome) -> Outcome:
    """Store an outcome and publish it to MLflow, unless the run was reassigned to another driver; returns it."""
    if write_outcome(folder, outcome):
        publish_end(folder, outcome)
    return outcome


def _lacking(outcome: Outcome, undelivered: str | None) -> Outcome:
    """`outcome` with why MLflow lacks something of it."""
    if undelivered is None:
        return outcome
    text = f"not delivered to the tracking server: {undelivered}"
    message = f"{outcome.message} ({text})" if outcome.state == "SUCCEEDED" else outcome.message
    return outcome.model_copy(update={"message": message[:4000], "evidence": f"{outcome.evidence}\n{text}".strip()[-EVIDENCE_CHARACTERS:]})


def _outcome(state: Any, fencing_token: int, message: str, error: BaseException | None = None, evidence: str = "") -> Outcome:
    if error is not None:
        evidence = "".join(traceback.format_exception(error))
    return Outcome(
        job="validation", state=state, fencing_token=fencing_token, message=message[:4000], evidence=evidence[-EVIDENCE_CHARACTERS:]
    )


def validate(folder: RunFolder, fencing_token: int) -> tuple[Outcome, list[ValidationReport] | None]:
    """Validate and write the summaries. Those of complete checkpoints are kept, to be delivered, even if another one fails; None where
    there is nothing to validate."""
    spec = retry_storage(folder.living_spec, f"the validation of {folder.root}")
    notice = StorageNotice(folder, fencing_token)
    retry_storage(lambda: check_takes(folder.own), f"the validation of {folder.root}", tell=notice.tell)
    notice.reserve()
    folder.validating_file.unlink(missing_ok=True)  # of an earlier job
    if not spec.val_cases:
        return _outcome("SUCCEEDED", fencing_token, f"fold {spec.fold} lists no validation cases: there is nothing to validate"), None
    check_files(spec.own, predicts=True)
    labels = labels_of(load_dataset_json(folder.model_folder), str(folder.model_folder / "dataset.json"))
    reports: list[ValidationReport] = []
    failures: list[RetriesExhausted] = []
    found: dict[WeightsName, list[CaseResult]] = {}
    names = [*checkpoints_to_validate(folder, spec), *candidates_to_validate(folder, spec)]
    if spec.tracking_uri:  # 2 s of imports, while the workers load their networks
        threading.Thread(target=importlib.import_module, args=("orchestrator.tracking.client",), daemon=True).start()
    turns = visits(names, newest_committed(folder))
    with spare_workers() as spare:
        for turn in turns:
            ended = validate_checkpoints(folder, spec, turn, fencing_token, spare, is_last=turn is turns[-1])
            for name, results in ended.items():
                if isinstance(results, RetriesExhausted):
                    failures.append(results)
                    continue
                found[name] = results
                if is_checkpoint(name):
                    reports.append(write_report(folder, spec, labels, name, results))
                else:
                    write_summaries(folder, spec, labels, name, results)
    if failures:
        evidence = "\n".join(dict.fromkeys(failure.evidence for failure in failures))
        return _outcome(worst(failures), fencing_token, " ".join(failure.message for failure in failures), evidence=evidence), reports
    scores = ", ".join(f"{report.name} {report.metrics.get('dice_mean', float('nan')):.4f}" for report in reports)
    done = f"full validation of {len(spec.val_cases)} cases, mean Dice: {scores}"
    committed = newest_committed(folder)
    if committed is not None and is_unfinished(committed, spec):
        reached = f"stopped after {committed.epochs_done} of {spec.schedule.epochs} epochs"
        return _outcome("STOPPED", fencing_token, f"{reached}; {done}. Submitted again, it continues."), reports
    if committed is not None and has_candidates(spec, committed):
        done += f". {judge_candidates(folder, spec, committed, found, labels)}"
    if early := early_end_of(spec, committed):
        done = f"ended early, as asked, {early}; {done}"
    return _outcome("SUCCEEDED", fencing_token, done), reports


def judge_candidates(
    folder: RunFolder, spec: RunSpec, committed: Committed, results: Mapping[WeightsName, Sequence[CaseResult]], labels: Labels
) -> str:
    """Write down whether the best epoch by pseudo-Dice is the best by Dice; returns the first sentence of it."""
    from orchestrator.compare.candidates import judged  # statistics, for runs with candidates alone

    found = judged(committed, results, labels, spec.patients or {}, spec.validation.candidates)
    write_if_changed(folder.candidates_file, found.model_dump_json(indent=1).encode())
    for sentence in found.sentences:
        log.info("%s", sentence)
    return found.sentences[0]


@dataclass(frozen=True)
class RetriesExhausted:
    """Why a checkpoint's validation is not complete."""

    message: str
    evidence: str
    state: EndState


def worst(failures: Sequence[RetriesExhausted]) -> EndState:
    """How a job ends whose checkpoints failed so: what the user can repair comes first."""
    states: tuple[EndState, ...] = ("FAILED_CONFIG", "FAILED_CODE", "FAILED_CLUSTER")
    return min((failure.state for failure in failures), key=states.index)


@contextlib.contextmanager
def spare_workers() -> Iterator[list[Any]]:
    """A list of actors that have nothing to do; whoever is left in it at the end is ended."""
    spare: list[Any] = []
    try:
        yield spare
    finally:
        for actor in spare:
            ray.kill(actor)


def validate_checkpoints(
    folder: RunFolder, spec: RunSpec, names: Sequence[WeightsName], fencing_token: int, spare: list[Any], *, is_last: bool
) -> dict[WeightsName, RetriesExhausted | list[CaseResult]]:
    """Bring the results of some checkpoints up to date; returns those of each in the split's order unless retries of a case were exhausted.

    `spare`: actors that other checkpoints have left; taken from it and, unless these are the last ones, left in it.
    """
    for stage in spec.next_stages:
        remove_leftovers(predictions_of(spec.model_folder, stage), part_prefix(spec))
    digests = {name: digest_of(folder, name) for name in names}
    missing = {name: missing_cases(folder, spec, name, digest) for name, digest in digests.items()}
    waiting = [case for case in spec.val_cases if any(case in cases for cases in missing.values())]
    queue = CaseQueue.of(largest_first(case_sizes(spec, waiting)) if waiting else [], spec.validation.attempts_per_case)
    due = {name: digests[name] for name in names if missing[name]}
    pool = Pool(folder, spec, due, queue, fencing_token, spare, is_last)
    if waiting:
        pool.largest = largest_case(folder, spec, waiting, due)
        pool.run(min(spec.workers.least, len(waiting)))
    return {name: _ended(folder, spec, name, digests[name], pool) for name in names}


def missing_cases(folder: RunFolder, spec: RunSpec, name: WeightsName, digest: str) -> list[str]:
    """The cases that a checkpoint is still to be validated on. What killed workers and other weights have left is removed."""
    remove_leftovers(folder.validation(name))
    share_results(folder, spec, name, digest)
    missing = [case for case in spec.val_cases if not is_done(folder, spec, name, case, digest)]
    log.info("full validation of %s: %d of %d cases to do", name, len(missing), len(spec.val_cases))
    if missing:
        for summary in (folder.summary(name), folder.extended_summary(name), folder.candidates_file):
            summary.unlink(missing_ok=True)  # of other weights, or of cases that are not there any more
        if name == CHECKPOINT:
            drop_crossval(folder.model_folder, spec.fold)
    return missing


def _ended(folder: RunFolder, spec: RunSpec, name: WeightsName, digest: str, pool: Pool) -> RetriesExhausted | list[CaseResult]:
    """The results of a checkpoint, or what it lacks. A case may have failed with the other one alone."""
    failures = {case: pool.queue.failures[case] for case in pool.queue.exhausted if not is_done(folder, spec, name, case, digest)}
    if failures:
        message = failure_message(name, failures, len(spec.val_cases))
        return RetriesExhausted(message, "\n".join(pool.evidence), end_of(list(failures.values())))
    results = [result for case in spec.val_cases if (result := read_result(folder, name, case)) is not None]
    if len(results) < len(spec.val_cases):
        raise ClusterError(
            f"full validation ({name}): {len(results)} of {len(spec.val_cases)} results are in {folder.cases(name)} as this node sees it. "
            "The run folder must be shared between all nodes."
        )
    return results


if __name__ == "__main__":
    sys.exit(main())
