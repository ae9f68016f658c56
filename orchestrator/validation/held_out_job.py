"""The job of a held-out test set: `python -m orchestrator.validation.held_out_job MODEL --images FOLDER ...`, as a Ray job.

The folds of a model predict as nnU-Net's ensemble; each case is one unit of work, as in the full validation (`worker_pool.py`), and a
finished one is a file in the output folder: a job that starts again does only what is missing. Everything is checked first.
"""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import ray

from orchestrator.cluster.nodes import ask_for_nodes, cluster_nodes
from orchestrator.compare.held_out_sets import doubt
from orchestrator.errors import ConfigError, DataError, NnfleetError
from orchestrator.queue.enlarging import Enlarging
from orchestrator.queue.registry import Registry
from orchestrator.run.below import results_folder
from orchestrator.run.clock import Clock
from orchestrator.run.events import emit
from orchestrator.run.interrupts import obey_interrupts
from orchestrator.validation.case_queue import CaseFailure, CaseQueue, end_of, failure_message, largest_first
from orchestrator.validation.cases import Stopped, digest_of_named, remove_leftovers
from orchestrator.validation.held_out_admission import AskedWorkers, QueuePlace, admitted, cpu_warning, fewer_cpus, workers_for
from orchestrator.validation.held_out_cases import check_labels, held_out_cases
from orchestrator.validation.held_out_events import HeldOutEvent, HeldOutWaits, HeldOutWarned
from orchestrator.validation.held_out_first_stage import first_stage_of
from orchestrator.validation.held_out_folds import folds_of
from orchestrator.validation.held_out_pool import HeldOutPool
from orchestrator.validation.held_out_scores import publish_scores, record_scores, scores_of, write_scores
from orchestrator.validation.job import spare_workers
from trainers.contract.held_out import HeldOut, held_out_file, is_scored, read_held_out
from trainers.contract.own_code import check_files
from trainers.contract.plans import labels_of, load_dataset_json, load_plans
from trainers.contract.records import read_result
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointName, WeightsName
from trainers.contract.summary import CaseResult
from trainers.errors import ClusterError
from trainers.storage.files import check_takes, write_atomic, write_json_atomic

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Predict a test set; the exit code is that of the error, 0 where there was none."""
    obey_interrupts()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--labels", type=Path, default=None)
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--checkpoint", choices=("best", "final"), default="final")
    parser.add_argument("--results", type=Path, default=None)
    parser.add_argument("--workers", type=AskedWorkers.model_validate_json, default=AskedWorkers(), help="what was asked for, as JSON")
    parser.add_argument("--user", default="", help="whose share of the cluster it takes")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stdout)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ended = _done(options)
    except NnfleetError as err:
        ended = HeldOutEvent(message=str(err), exit_code=err.exit_code)
    except (Stopped, KeyboardInterrupt):
        ended = HeldOutEvent(message="stopped as asked; finished cases are kept", exit_code=1)
    except Exception as err:
        traceback.print_exc(file=sys.stdout)
        ended = HeldOutEvent(message=f"{type(err).__name__}: {err}", exit_code=1)
    emit(ended)
    return ended.exit_code


def _done(options: argparse.Namespace) -> HeldOutEvent:
    """Refuse what cannot be done, wait for the workers, predict."""
    from orchestrator.cluster.jobs import Jobs

    results = results_folder(options.results, os.environ)
    folds, left = folds_of(options.model, results)
    ray.init(logging_level=logging.WARNING)
    nodes = cluster_nodes()
    trained = folds[0].spec().workers
    workers_for(options.workers, nodes, 1, trained.accelerator_type)  # before what may take minutes
    held, output = prepared(folds, options.images, options.labels, options.output, options.checkpoint)
    if options.labels is not None and (warning := doubt(held.name, held.cases, [fold.spec() for fold in folds])):
        emit(HeldOutWarned(message=warning))
    registry = Registry.of_cluster(os.environ.get("RAY_ADDRESS", ""))
    what = f"the test set {held.name} of {held.spec.model}"
    job, records, enlarging = os.environ.get("NNFLEET_SUBMISSION_ID", ""), Jobs.inside_job().records, Enlarging(ask_for_nodes, Clock())
    place = QueuePlace(job, what, registry, records, user=options.user, enlarging=enlarging)
    missing = len(missing_cases(held, output))
    workers = workers_for(options.workers, nodes, missing, trained.accelerator_type) if missing else None
    if workers is not None and (warning := cpu_warning(options.workers, workers, trained)):
        emit(HeldOutWarned(message=warning))
    hint = fewer_cpus(options.workers, workers) if workers is not None else ""
    with admitted(place, output.root, workers, lambda because: emit(HeldOutWaits(because=because + hint))) as granted:
        ended = run_held_out(held if granted is None else held.with_workers(granted), output, folds)
    return ended.model_copy(update={"left": tuple(left)})


def prepared(
    folds: Sequence[RunFolder], images: Path, labels: Path | None, output: Path | None, checkpoint: CheckpointName
) -> tuple[HeldOut, RunFolder]:
    """Check everything, and say where predictions go (default: beside the folds). Raises ConfigError, DataError, StorageError."""
    spec, model_folder = folds[0].spec(), folds[0].model_folder
    for fold in folds:
        if not fold.checkpoint(checkpoint).is_file():
            raise ConfigError(
                f"test set: {fold.checkpoint(checkpoint)} does not exist: this fold has not been trained to its end. "
                "Wait for it or resume it, name the folds that are, such as MODEL/0 or MODEL/[0-3], or take `--checkpoint best`."
            )
    check_files(spec.own, predicts=True)
    if (first := first_stage_of(folds)) is not None:
        check_files(first.spec.own, predicts=True)
    dataset_json = load_dataset_json(model_folder)
    cases = held_out_cases(images.absolute(), None if labels is None else labels.absolute(), dataset_json)
    if labels is not None:
        reader = str(load_plans(model_folder, "plans").content["image_reader_writer"])
        check_labels(labels.absolute(), cases, labels_of(dataset_json, str(model_folder / "dataset.json")), reader)
    numbers = "_".join(str(fold.spec().fold) for fold in folds)
    place = RunFolder((output or model_folder / f"test_{images.absolute().name}_{checkpoint}_{numbers}").absolute())
    is_private = any(fold.spec().pseudonyms for fold in folds)
    held = HeldOut(
        spec=spec.model_copy(update={"val_cases": tuple(cases), "pseudonyms": is_private}),
        checkpoint=checkpoint,
        checkpoint_files=tuple(fold.checkpoint(checkpoint) for fold in folds),
        weights_sha256=tuple(digest_of_named(fold, checkpoint) for fold in folds),
        cases=cases,
        first_stage=first,
    )
    refuse_other_predictions(place, held)
    return held, place


def refuse_other_predictions(output: RunFolder, held: HeldOut) -> None:
    """Raise ConfigError where the output folder holds predictions by other weights or of images in another folder, or scores by labels in
    another folder."""
    if held_out_file(output).exists():
        before = read_held_out(output)
        if unlike_before := _unlike_before(before, held, _labels_of_scores(output, before)):
            raise ConfigError(
                f"output: {output.root} holds {unlike_before}, and nothing is replaced. Name another folder: --output FOLDER."
            )
    elif output.root.exists() and any(output.root.iterdir()):
        raise ConfigError(f"output: {output.root} is not empty, and nothing in it is replaced. Name a new folder.")


def claim(output: RunFolder, held: HeldOut) -> None:
    """Make the output folder of this test set, without what a killed job left half written. Raises as `refuse_other_predictions`."""
    refuse_other_predictions(output, held)
    try:
        output.own.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ConfigError(f"output: {output.own} cannot be made: {err}. Name a folder that the cluster may write.") from err
    check_takes(output.own)
    output.stop_file.unlink(missing_ok=True)
    remove_leftovers(output.root)
    write_json_atomic(held_out_file(output), held.model_dump(mode="json"))
    for name in ("dataset.json", "plans.json"):  # which nnU-Net's post-processing looks for beside predictions
        if (source := held.spec.model_folder / name).is_file():
            write_atomic(output.root / name, source.read_bytes())


def _labels_of_scores(output: RunFolder, before: HeldOut) -> set[Path]:
    """The folders of the labels by which the finished cases were scored, also where the last command had no labels. Raises StorageError."""
    results = [read_result(output, before.checkpoint, case) for case in before.cases]
    return {Path(result.reference_file).parent for result in results if result is not None and result.reference_file}


def _unlike_before(before: HeldOut, held: HeldOut, scored_by: Collection[Path]) -> str:
    """What an output folder holds, where that is not what is asked for; empty where it is, also for predictions alone. Pure."""
    if before.all_weights_sha256 != held.all_weights_sha256:
        return "the predictions of other weights"
    folders = {image.parent for case in before.cases.values() for image in case.images}
    if others := folders - {image.parent for case in held.cases.values() for image in case.images}:
        return f"the predictions of the images in {min(others)}"
    labels = {case.labels.parent for case in held.cases.values() if case.labels is not None}
    other_labels = set(scored_by) - labels if labels else set()
    return f"scores by the labels in {min(other_labels)}" if other_labels else ""


def run_held_out(held: HeldOut, output: RunFolder, folds: Sequence[RunFolder]) -> HeldOutEvent:
    """Predict what is missing on the connected cluster, write and deliver the scores; nobody else may use the output folder meanwhile.

    Raises ConfigError, Stopped, ClusterError, CheckpointError.
    """
    claim(output, held)
    results = predicted(held, output)
    if isinstance(results, HeldOutEvent):
        return results
    if any(case.labels is None for case in held.cases.values()):
        return HeldOutEvent(message=f"{len(results)} cases are predicted", output=output.root, num_cases=len(results))
    scores = scores_of(held, output, [str(fold.spec().fold) for fold in folds], results)
    summary = write_scores(scores, folds[0].model_folder)
    return HeldOutEvent(
        message=f"{len(results)} cases of {scores.label}: mean Dice {summary['dice_mean']:.4f}",
        output=output.root,
        num_cases=len(results),
        scores={name: _number(summary[name]) for name in ("dice_mean", "hd95_mm_mean", "nsd_mean")},
        test_set=scores.label,
        unrecorded=record_scores(scores, folds[0].model_folder),
        undelivered=publish_scores(scores, folds, summary, is_private=held.spec.pseudonyms),
    )


def missing_cases(held: HeldOut, output: RunFolder) -> list[str]:
    """What is still to be predicted or scored. Raises StorageError."""
    return [case for case in held.cases if not is_scored(held, case, read_result(output, held.checkpoint, case))]


def predicted(held: HeldOut, output: RunFolder) -> list[CaseResult] | HeldOutEvent:
    """Every case's result; or how the job ends whose cases failed too often, alone."""
    missing = missing_cases(held, output)
    log.info("test set: %d of %d cases to do", len(missing), len(held.cases))
    sizes = {case: sum(image.stat().st_size for image in held.cases[case].images) for case in missing}
    queue = CaseQueue.of(largest_first(sizes), held.spec.validation.attempts_per_case)
    if missing:
        digests: dict[WeightsName, str] = {held.checkpoint: " ".join(held.all_weights_sha256)}
        with spare_workers() as spare:
            pool = HeldOutPool(output, held.spec, digests, queue, 1, spare, held=held)
            pool.run(min(held.spec.workers.least, len(missing)))
    if queue.exhausted:
        return _failed(held, {case: queue.failures[case] for case in queue.exhausted})
    found = {case: read_result(output, held.checkpoint, case) for case in held.cases}
    results = [result for case, result in found.items() if result is not None and is_scored(held, case, result)]
    if len(results) < len(held.cases):
        raise ClusterError(
            f"test set: {len(results)} of {len(held.cases)} results of these images and labels are in {output.root} as this node sees it. "
            "The output folder must be shared between all nodes, and belong to this command alone."
        )
    return results


def _failed(held: HeldOut, failures: Mapping[str, Sequence[CaseFailure]]) -> HeldOutEvent:
    text = failure_message(held.checkpoint, failures, len(held.cases), work="test set", again="run the same command")
    state = end_of(list(failures.values()))
    kinds = {"FAILED_CONFIG": DataError, "FAILED_CLUSTER": ClusterError}
    return HeldOutEvent(message=text, exit_code=kinds.get(state, NnfleetError).exit_code)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, float) and value == value else None  # NaN is no JSON


if __name__ == "__main__":
    sys.exit(main())
