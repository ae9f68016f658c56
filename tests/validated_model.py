"""Folders of models whose folds were validated: what campaigns leave behind, without training."""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.fake_run import CLASSES, FakeRun
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointName
from trainers.contract.summary import SCORING, CaseResult, ClassMetrics
from trainers.storage.files import write_atomic

VOXELS = 1000
REFERENCE = 200
"""Voxels of each class in the reference of every case."""


def metrics_of(dice: float) -> ClassMetrics:
    """Of one class in one case with about this Dice, and distances that go with it. NaN: absent in reference and prediction."""
    if math.isnan(dice):
        return ClassMetrics(tp=0, fp=0, fn=0, tn=VOXELS, dice=dice, iou=dice, hd95_mm=dice, nsd=dice)
    tp = round(REFERENCE * dice)
    hd95_mm = 10 * (1 - dice) if dice else math.nan
    return ClassMetrics(tp=tp, fp=0, fn=REFERENCE - tp, tn=VOXELS - REFERENCE, dice=dice, iou=dice / (2 - dice), hd95_mm=hd95_mm, nsd=dice)


def validated_model(
    base: Path,
    dice: Callable[[str, str], float] | Mapping[str, float],
    folds: Sequence[Sequence[str]],
    checkpoint: CheckpointName = "final",
    trained: Sequence[int] | None = None,
    epochs: int = 1,
    is_ended_early: bool = False,
    **overrides: object,
) -> list[RunFolder]:
    """Write one run per fold (`folds`: the validation cases of each; `trained`: only these), every case of which scores
    `dice(case, class)`, or `dice[case]`."""
    cases = [case for fold in folds for case in fold]
    written = []
    for number, val_cases in enumerate(folds):
        if trained is not None and number not in trained:
            continue
        key = "-".join(map(str, [*overrides.values(), number]))
        others = tuple(case for case in cases if case not in val_cases)
        run = FakeRun(base, f"901-{key}", number, val_cases=tuple(val_cases), train_cases=others, **overrides)
        for _ in range(epochs):
            run.epoch()
        if is_ended_early:
            run.end_early()
        else:
            run.finish()
        digest = run.final if checkpoint == "final" else run.best
        assert digest is not None
        for name in ("dataset.json", "nnUNetPlans.json"):
            shutil.copy(run.spec.preprocessed_folder / name, run.folder.model_folder / name.replace("nnUNetPlans", "plans"))
        score_cases(run.folder, checkpoint, digest.sha256, dice)
        written.append(run.folder)
    return written


def score_cases(
    folder: RunFolder, checkpoint: CheckpointName, sha256: str, dice: Callable[[str, str], float] | Mapping[str, float]
) -> list[CaseResult]:
    """Write the result of every validation case of a run with one checkpoint."""
    spec = folder.spec()
    folder.cases(checkpoint).mkdir(parents=True)
    written = []
    for case in spec.val_cases:
        scores = {name: dice(case, name) if callable(dice) else dice[case] for name in CLASSES}
        result = CaseResult(
            case_id=case,
            checkpoint_sha256=sha256,
            reference_file=str(spec.preprocessed_folder / f"{case}.nii.gz"),
            prediction_file=str(folder.validation(checkpoint) / f"{case}.nii.gz"),
            surface_tolerance_mm=spec.validation.surface_tolerance_mm,
            scoring=SCORING,
            metrics={name: metrics_of(score) for name, score in scores.items()},
            seconds=1.0,
        )
        (folder.cases(checkpoint) / f"{case}.json").write_text(result.model_dump_json())
        written.append(result)
    return written


def model_with_predictions(base: Path, folds: Sequence[Sequence[str]]) -> list[RunFolder]:
    """As `validated_model`, every case of which scores 0.5, with a prediction file for each, which holds the case's name."""
    found = validated_model(base, lambda case, name: 0.5, folds)
    for folder, cases in zip(found, folds, strict=True):
        for case in cases:
            write_atomic(folder.validation("final") / f"{case}.nii.gz", case.encode())
    return found
