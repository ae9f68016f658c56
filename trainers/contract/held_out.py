"""A held-out test set that a model predicts: what is to be done, as its job records it in the output folder for the workers, and what came
of it, as it lies in the model folder for comparisons."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import ConfigDict

from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointName, Frozen, RunSpec, WorkerSpec
from trainers.contract.summary import SCORING, CaseResult
from trainers.errors import DataError
from trainers.storage.files import read_json

SCORES_FOLDER = "test_sets"
"""In a model folder: a file for each test set that it was scored on, checkpoint and choice of folds."""
DIGITS = 6
"""Of the digest of a test set, in its name."""


class HeldOutCase(Frozen):
    """One case: a file per channel, and its labels if it has any."""

    images: tuple[Path, ...]
    labels: Path | None = None


class FirstStage(Frozen):
    """The folds of a cascade's first stage, as an ensemble: what they predict is what the second stage sees."""

    spec: RunSpec
    """Of the first fold: for what all folds share."""
    checkpoint_files: tuple[Path, ...]
    """The final weights of each fold, in the order in which their logits are added."""
    weights_sha256: tuple[str, ...]


class HeldOut(Frozen):
    """Cases, and the folds that predict them as an ensemble."""

    spec: RunSpec
    """Of the first fold: for what all folds share."""
    checkpoint: CheckpointName
    checkpoint_files: tuple[Path, ...]
    """Of each fold, in the order in which their logits are added."""
    weights_sha256: tuple[str, ...]
    cases: dict[str, HeldOutCase]
    first_stage: FirstStage | None = None
    """Of a second stage of a cascade; null: the model stands alone."""

    @property
    def all_weights_sha256(self) -> tuple[str, ...]:
        """Of every checkpoint that takes part: those of a first stage, then the folds' own."""
        return (*(self.first_stage.weights_sha256 if self.first_stage else ()), *self.weights_sha256)

    def key_of(self, case_id: str) -> str:
        """Names a prediction: other weights, or other files of images, give another key. Raises OSError for a file that is away."""
        stats = [(str(image), image.stat()) for image in self.cases[case_id].images]
        content = [self.all_weights_sha256, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def name(self) -> str:
        """That of the folder of the images, with what a file's name or a metric's may hold."""
        return re.sub(r"[^\w.-]", "-", next(iter(self.cases.values())).images[0].parent.name)

    def with_workers(self, workers: WorkerSpec) -> "HeldOut":
        """The same, done by these workers."""
        return self.model_copy(update={"spec": self.spec.model_copy(update={"workers": workers})})

    def labels_stat(self, case_id: str) -> tuple[int, int] | None:
        """Size and modification time (ns) of a case's labels, by which corrected ones show. Raises OSError for a file that is away."""
        labels = self.cases[case_id].labels
        return None if labels is None else (labels.stat().st_size, labels.stat().st_mtime_ns)


class HeldOutScores(Frozen):
    """The scores of some folds of a model, as an ensemble, on one test set."""

    model_config = ConfigDict(extra="ignore")

    name: str
    """Of the folder of the images; two test sets may share it."""
    sha256: str
    """Of all images and labels by case: the same test set wherever it lies."""
    checkpoint: CheckpointName
    folds: tuple[str, ...]
    weights_sha256: tuple[str, ...]
    """Of each fold."""
    images: Path
    labels: Path
    output: Path
    results: tuple[CaseResult, ...]

    @property
    def label(self) -> str:
        """How people call the test set: never the name of another one."""
        return f"{self.name}-{self.sha256[:DIGITS]}"


def digest_of_cases(results: Sequence[CaseResult]) -> str:
    """Of the images and labels of all cases. Pure."""
    content = sorted((result.case_id, result.image_sha256, result.reference_sha256) for result in results)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def scores_file(model_folder: Path, scores: HeldOutScores) -> Path:
    """Where a model folder keeps these scores; the same folds and checkpoint on the same test set replace them."""
    return model_folder / SCORES_FOLDER / f"{scores.label}_{scores.checkpoint}_{'_'.join(scores.folds)}.json"


def scores_below(model_folder: Path) -> tuple[list[HeldOutScores], list[str]]:
    """All scores of test sets in a model folder, and a sentence for each file of them that cannot be read. Raises StorageError."""
    found, damaged = [], []
    for path in sorted((model_folder / SCORES_FOLDER).glob("*.json")):
        try:
            found.append(HeldOutScores.model_validate(read_json(path, "scores of a test set")))
        except (DataError, ValueError):
            damaged.append(f"{path} is no record of a test set's scores that can be read: run its `nnfleet evaluate` again.")
    return found, damaged


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
    is_by_this_rule = (
        result.scoring == SCORING and bool(result.image_sha256) and result.surface_tolerance_mm == held.spec.validation.surface_tolerance_mm
    )
    return is_by_this_rule and result.reference_file == str(labels) and result.reference_stat == held.labels_stat(case_id)
