"""The job of a held-out test set: `python -m orchestrator.validation.held_out_job MODEL --images FOLDER ...`, as a Ray job.

The folds of a model predict as nnU-Net's ensemble; each case is one unit of work, as in the full validation (`worker_pool.py`), and a
finished one is a file in the output folder: a job that starts again does only what is missing. Everything is checked first.
"""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import ray
from pydantic import Field, TypeAdapter

from orchestrator.errors import ConfigError, DataError, NnfleetError
from orchestrator.run.below import results_folder
from orchestrator.run.events import Event, emit
from orchestrator.run.interrupts import obey_interrupts
from orchestrator.validation.case_queue import CaseFailure, CaseQueue, end_of, failure_message, largest_first
from orchestrator.validation.cases import Stopped, digest_of_named
from orchestrator.validation.held_out_cases import check_labels, held_out_cases
from orchestrator.validation.held_out_folds import folds_of
from orchestrator.validation.held_out_pool import HeldOutPool
from orchestrator.validation.held_out_scores import publish_scores, write_scores
from orchestrator.validation.job import spare_workers
from trainers.contract.held_out import HeldOut, held_out_file, is_scored, read_held_out
from trainers.contract.plans import labels_of, load_dataset_json, load_plans
from trainers.contract.records import read_result
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointName
from trainers.contract.summary import CaseResult
from trainers.errors import ClusterError
from trainers.storage.files import check_takes, write_json_atomic

log = logging.getLogger(__name__)


class HeldOutEvent(Event):
    """How the job of a test set ended: `exit_code` is that of the error, 0 where there was none."""

    event: Literal["held_out"] = "held_out"
    message: str
    exit_code: int = 0
    output: Path | None = None
    num_cases: int = 0
    scores: dict[str, float | None] = Field(default_factory=dict)
    """`dice_mean`, `hd95_mm_mean`, `nsd_mean`, with labels alone."""
    left: tuple[str, ...] = ()
    """A sentence for each fold that was meant and has no checkpoint yet."""
    undelivered: str = ""
    """Why MLflow does not have the scores; empty where it has, and without labels."""


HELD_OUT_EVENTS: TypeAdapter[HeldOutEvent] = TypeAdapter(HeldOutEvent)


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
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stdout)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        results = results_folder(options.results, os.environ)
        folds, left = folds_of(options.model, results)
        held, output = prepared(folds, options.images, options.labels, options.output, options.checkpoint)
        ray.init(logging_level=logging.WARNING)
        ended = run_held_out(held, output, folds).model_copy(update={"left": tuple(left)})
    except NnfleetError as err:
        ended = HeldOutEvent(message=str(err), exit_code=err.exit_code)
    except (Stopped, KeyboardInterrupt):
        ended = HeldOutEvent(message="stopped as asked; finished cases are kept", exit_code=1)
    except Exception as err:
        traceback.print_exc(file=sys.stdout)
        ended = HeldOutEvent(message=f"{type(err).__name__}: {err}", exit_code=1)
    emit(ended)
    return ended.exit_code


def prepared(
    folds: Sequence[RunFolder], images: Path, labels: Path | None, output: Path | None, checkpoint: CheckpointName
) -> tuple[HeldOut, RunFolder]:
    """Check everything and record it in the output folder (default: beside the folds). Raises ConfigError, DataError, StorageError."""
    spec, model_folder = folds[0].spec(), folds[0].model_folder
    for fold in folds:
        if not fold.checkpoint(checkpoint).is_file():
            raise ConfigError(
                f"test set: {fold.checkpoint(checkpoint)} does not exist: this fold has not been trained to its end. "
                "Wait for it or resume it, name the folds that are, such as MODEL/0 or MODEL/[0-3], or take `--checkpoint best`."
            )
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
    )
    claim(place, held)
    return held, place


def claim(output: RunFolder, held: HeldOut) -> None:
    """Make the output folder of this test set.

    Raises ConfigError where it holds something else, predictions by other weights or of images in another folder.
    """
    if held_out_file(output).exists():
        if unlike_before := _unlike_before(read_held_out(output), held):
            raise ConfigError(f"output: {output.root} holds the predictions {unlike_before}, and nothing is replaced. Name another folder.")
    elif output.root.exists() and any(output.root.iterdir()):
        raise ConfigError(f"output: {output.root} is not empty, and nothing in it is replaced. Name a new folder.")
    try:
        output.own.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ConfigError(f"output: {output.own} cannot be made: {err}. Name a folder that the cluster may write.") from err
    check_takes(output.own)
    output.stop_file.unlink(missing_ok=True)
    write_json_atomic(held_out_file(output), held.model_dump(mode="json"))


def _unlike_before(before: HeldOut, held: HeldOut) -> str:
    """What the predictions of an output folder are of, where that is not what is asked for; empty where it is. Pure."""
    if before.weights_sha256 != held.weights_sha256:
        return "of other weights"
    folders = {image.parent for case in before.cases.values() for image in case.images}
    others = folders - {image.parent for case in held.cases.values() for image in case.images}
    return f"of the images in {min(others)}" if others else ""


def run_held_out(held: HeldOut, output: RunFolder, folds: Sequence[RunFolder]) -> HeldOutEvent:
    """Predict what is missing on the connected cluster, write and deliver the scores. Raises Stopped, ClusterError, CheckpointError."""
    results = predicted(held, output)
    if isinstance(results, HeldOutEvent):
        return results
    if any(case.labels is None for case in held.cases.values()):
        return HeldOutEvent(message=f"{len(results)} cases are predicted", output=output.root, num_cases=len(results))
    summary = write_scores(held, output, results)
    return HeldOutEvent(
        message=f"{len(results)} cases: mean Dice {summary['dice_mean']:.4f}",
        output=output.root,
        num_cases=len(results),
        scores={name: _number(summary[name]) for name in ("dice_mean", "hd95_mm_mean", "nsd_mean")},
        undelivered=publish_scores(held, output, folds, summary),
    )


def predicted(held: HeldOut, output: RunFolder) -> list[CaseResult] | HeldOutEvent:
    """Every case's result; or how the job ends whose cases failed too often, alone."""
    missing = [case for case in held.cases if not is_scored(held, case, read_result(output, held.checkpoint, case))]
    log.info("test set: %d of %d cases to do", len(missing), len(held.cases))
    sizes = {case: sum(image.stat().st_size for image in held.cases[case].images) for case in missing}
    queue = CaseQueue.of(largest_first(sizes), held.spec.validation.attempts_per_case)
    if missing:
        with spare_workers() as spare:
            pool = HeldOutPool(output, held.spec, held.checkpoint, " ".join(held.weights_sha256), queue, 1, spare, held=held)
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
