"""What a full validation has to do: which checkpoints, which cases, how large they are."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import ConfigError
from orchestrator.publishing.validation_report import picture_file
from orchestrator.run.progress import checkpoints_due, has_candidates, lack_of_best
from orchestrator.validation.case_queue import is_finished
from trainers.contract.cascade import PART_PREFIX, has_next_stages_due
from trainers.contract.commits import Committed, newest_committed
from trainers.contract.plans import load_plans
from trainers.contract.records import read_result
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointName, RunSpec, WeightsName, is_checkpoint
from trainers.errors import CheckpointError
from trainers.storage.faults import reading
from trainers.storage.files import link_atomic, sha256_of, write_atomic, write_json_atomic

log = logging.getLogger(__name__)


class Stopped(Exception):
    """Somebody asked this run to stop."""


def checkpoints_to_validate(folder: RunFolder, spec: RunSpec) -> list[CheckpointName]:
    """The checkpoints that the run has to have validated (see `checkpoints_due`); one that has no best one is warned of. Of a run that was
    stopped before its end the best one.

    Raises ConfigError when one is missing that should be there.
    """
    committed = newest_committed(folder)
    if spec.val_cases and committed is not None and is_unfinished(committed, spec):
        due: list[CheckpointName] = ["best"]
    else:
        due = list(checkpoints_due(spec, committed))
    if committed is not None and spec.val_cases and "best" in spec.validation.checkpoints and "best" not in due:
        log.warning("%s: only the others are validated", lack_of_best(committed))
    for name in due:
        if not folder.checkpoint(name).is_file():
            done = f"{committed.epochs_done} of {spec.schedule.epochs} epochs are done" if committed else "no epoch is done"
            raise ConfigError(f"checkpoint: {folder.checkpoint(name)} does not exist; {done}. Resume the training, then validate again.")
    return due


def candidates_to_validate(folder: RunFolder, spec: RunSpec) -> list[WeightsName]:
    """The candidates of a run that is trained to its end; one whose weights are damaged or lost is warned of and left out."""
    committed = newest_committed(folder)
    if committed is None or not has_candidates(spec, committed) or is_unfinished(committed, spec):
        return []
    found: list[WeightsName] = []
    for manifest in committed.candidates:
        file = folder.root / manifest.file
        if file.is_file() and sha256_of(file) == manifest.sha256:
            found.append(manifest.checkpoint)
        else:
            log.warning("the weights of %s in %s are damaged or missing: it is not validated", manifest.checkpoint, file)
    return found


def visits(names: Sequence[WeightsName], committed: Committed | None) -> list[list[WeightsName]]:
    """Which weights a case is predicted with in one visit of a worker: best and final together, unless both are of one epoch, for those are
    predicted once; each candidate alone, so that no worker holds the networks of all. Pure.
    """
    weights = committed.weights if committed else {}
    both: list[WeightsName] = [name for name in names if is_checkpoint(name)]
    origins = {weights[name].origin for name in both if name in weights}
    if len(origins) < len(both):
        return [[name] for name in names]
    alone = [[name] for name in names if not is_checkpoint(name)]
    return [both, *alone] if both else alone


def is_unfinished(committed: Committed, spec: RunSpec) -> bool:
    """True for a run that was stopped before its last epoch, and so has no final checkpoint."""
    return committed.epochs_done < spec.schedule.epochs and committed.final is None


def digest_of(folder: RunFolder, name: WeightsName) -> str:
    """SHA-256 of what is validated under this name: of a candidate, whose file `candidates_to_validate` has compared, as the newest commit
    names it. Raises as `digest_of_named`.
    """
    if is_checkpoint(name):
        return digest_of_named(folder, name)
    committed = newest_committed(folder)
    if committed is None or name not in committed.weights:
        raise CheckpointError(f"checkpoint: the newest state in {folder.state} names no {name}. Validate again.")
    return committed.weights[name].sha256


def digest_of_named(folder: RunFolder, name: CheckpointName) -> str:
    """SHA-256 of the checkpoint under nnU-Net's name, which is the one of the newest commit: another one is replaced by it.

    A writer that stalled between fence and link may have named an older best after the run's last commit; no later commit mends that.
    Raises CheckpointError when the one of the newest commit is lost.
    """
    digest, committed = sha256_of(folder.checkpoint(name)), newest_committed(folder)
    manifest = None if committed is None else committed.checkpoints.get(name)
    if manifest is None or manifest.sha256 == digest:
        return digest
    own, named = folder.root / manifest.file, folder.checkpoint(name)
    if not own.is_file() or sha256_of(own) != manifest.sha256:
        raise CheckpointError(
            f"checkpoint: {named} is not what the newest state names ({name} of epoch {manifest.epoch}), and that one is damaged or lost. "
            f"Put it in its place, from a backup or by `nnfleet export`: SHA-256 {manifest.sha256[:16]}..."
        )
    log.warning("%s was not of epoch %d, as the newest state records: it is now", named, manifest.epoch)
    link_atomic(own, named)
    return manifest.sha256


def is_done(folder: RunFolder, spec: RunSpec, name: WeightsName, case_id: str, digest: str) -> bool:
    """True when the run folder holds the result and the prediction of this case by exactly these weights, scored as it is now."""
    result = read_result(folder, name, case_id)
    kept = folder.has_probabilities_due(name, spec, case_id) and has_next_stages_due(spec, name, case_id, digest)
    has_prediction = result is not None and Path(result.prediction_file).is_file() and kept
    return is_finished(result, digest, spec.validation, has_prediction)


def share_results(folder: RunFolder, spec: RunSpec, name: WeightsName, digest: str) -> None:
    """Give a checkpoint the finished cases of others that hold the weights of the same epoch: they are predicted once."""
    committed = newest_committed(folder)
    weights = committed.weights if committed else {}
    if name not in weights:
        return
    for other in weights.values():
        is_same = other.checkpoint != name and other.origin == weights[name].origin
        if not is_same or not has_all_of(other.checkpoint, name, spec):
            continue
        for case in spec.val_cases:
            if not is_done(folder, spec, name, case, digest) and is_done(folder, spec, other.checkpoint, case, other.sha256):
                _share(folder, other.checkpoint, name, case, digest)


def has_all_of(source: WeightsName, name: WeightsName, spec: RunSpec) -> bool:
    """False where a candidate would give its results to a checkpoint that is to have pictures or probabilities: it has neither. Pure."""
    return is_checkpoint(source) or not is_checkpoint(name) or not (spec.images or spec.validation.npz)


def _share(folder: RunFolder, source: WeightsName, name: WeightsName, case_id: str, digest: str) -> None:
    """Copy a case's prediction, what a writer puts beside it, its picture and, last, its result, which vouches for the rest.

    A candidate has neither probabilities nor pictures.
    """
    result = read_result(folder, source, case_id)
    assert result is not None
    prediction = Path(result.prediction_file)
    folder.validation(name).mkdir(parents=True, exist_ok=True)
    probabilities = folder.probabilities(source, case_id) if is_checkpoint(name) else ()
    for file in (prediction, prediction.with_name(f"{case_id}.json"), *probabilities):  # TIFF: its spacing
        if file.is_file():
            link_atomic(file, folder.validation(name) / file.name)
    if is_checkpoint(name) and (picture := picture_file(folder, source, case_id)).is_file():
        write_atomic(picture_file(folder, name, case_id), picture.read_bytes())
    shared = result.model_copy(update={"checkpoint_sha256": digest, "prediction_file": str(folder.validation(name) / prediction.name)})
    write_json_atomic(folder.cases(name) / f"{case_id}.json", shared.model_dump())


def case_sizes(spec: RunSpec, cases: Sequence[str]) -> dict[str, int]:
    """Bytes of each preprocessed image, a measure of how long its prediction takes; 0 for a file that is missing. Raises StorageError."""
    plans = load_plans(spec.preprocessed_folder, spec.plans)
    folder = spec.preprocessed_folder / str(plans.configuration(spec.configuration)["data_identifier"])
    with reading(folder):
        files = {case: next((p for p in (folder / f"{case}.b2nd", folder / f"{case}.npz") if p.is_file()), None) for case in cases}
        return {case: file.stat().st_size if file else 0 for case, file in files.items()}


def remove_leftovers(predictions: Path, prefix: str = PART_PREFIX) -> None:
    """Delete what killed workers left half written in a folder of predictions."""
    for part in predictions.glob(f"{prefix}*"):
        shutil.rmtree(part, ignore_errors=True)
