"""A held-out test set that a model predicts: what is to be done, as its job records it in the output folder for the workers."""

import hashlib
import json
from pathlib import Path

from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointName, Frozen, RunSpec
from trainers.contract.summary import SCORING, CaseResult
from trainers.errors import DataError
from trainers.storage.files import read_json


class HeldOutCase(Frozen):
    """One case: a file per channel, and its labels if it has any."""

    images: tuple[Path, ...]
    labels: Path | None = None


class HeldOut(Frozen):
    """Cases, and the folds that predict them as an ensemble."""

    spec: RunSpec
    """Of the first fold: for what all folds share."""
    checkpoint: CheckpointName
    checkpoint_files: tuple[Path, ...]
    """Of each fold, in the order in which their logits are added."""
    weights_sha256: tuple[str, ...]
    cases: dict[str, HeldOutCase]

    def key_of(self, case_id: str) -> str:
        """Names a prediction: other weights, or other files of images, give another key. Raises OSError for a file that is away."""
        stats = [(str(image), image.stat()) for image in self.cases[case_id].images]
        content = [self.weights_sha256, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def labels_stat(self, case_id: str) -> tuple[int, int] | None:
        """Size and modification time (ns) of a case's labels, by which corrected ones show. Raises OSError for a file that is away."""
        labels = self.cases[case_id].labels
        return None if labels is None else (labels.stat().st_size, labels.stat().st_mtime_ns)


def held_out_file(output: RunFolder) -> Path:
    """Where an output folder names its test set."""
    return output.own / "held_out.json"


def read_held_out(output: RunFolder) -> HeldOut:
    """The test set of an output folder. Raises DataError, also where there is none; StorageError where its disk is away."""
    content = read_json(held_out_file(output), "test set")
    try:
        return HeldOut.model_validate(content)
    except ValueError as err:
        raise DataError(f"test set: {held_out_file(output)} is of another version: {err}. Name another output folder.") from err


def is_scored(held: HeldOut, case_id: str, result: CaseResult | None) -> bool:
    """True when a stored result is of these weights, images, labels, tolerance and scoring rule, and its prediction is there."""
    if result is None or not Path(result.prediction_file).is_file() or result.checkpoint_sha256 != held.key_of(case_id):
        return False
    labels = held.cases[case_id].labels
    if labels is None:
        return True
    is_by_this_rule = result.scoring == SCORING and result.surface_tolerance_mm == held.spec.validation.surface_tolerance_mm
    return is_by_this_rule and result.reference_file == str(labels) and result.reference_stat == held.labels_stat(case_id)
