"""Results of the full validation as plain values, and their summary in nnU-Net's form: pure functions without I/O.

NaN policy. A class that is neither in the reference nor predicted has no Dice, IoU, HD95 or NSD in that case (NaN). A class that is in
one of the two alone has Dice 0 and NSD 0, but no HD95, since no distance exists; `n_missed` and `n_invented` count such cases. A case whose
spacing in millimetres is not known has neither HD95 nor NSD, and `CaseResult.no_distances` says why. Every mean
leaves NaN out: over the cases of a class, then over the classes. nnU-Net's `foreground_mean` is NaN when one class is absent everywhere;
ours is the mean of the classes that have a value, and equals nnU-Net's wherever that one is a number.

Source of the form: nnunetv2/evaluation/evaluate_predictions.py (`compute_metrics`, `compute_metrics_on_folder`, `save_summary_json`).
"""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import Field

from trainers.contract.lesions import LESION_COUNTS, LESION_SCORES, Lesions
from trainers.contract.plans import Labels
from trainers.contract.pseudonyms import pseudonym
from trainers.contract.run_spec import Frozen, WeightsName

Row = dict[str, str | float | int]
SCORING = 1
"""The rule by which cases are scored: raised when a number in `ClassMetrics` gets another meaning. Results of two rules are never mixed.

1: HD95 and NSD in the millimetres that preprocessing noted of the image, none where nobody knows them; a class that lies in one slice of
many is scored in space. 0: before there were rules.
"""
NNUNET_METRICS = ("Dice", "IoU", "FP", "TP", "FN", "TN", "n_pred", "n_ref")


class ClassMetrics(Frozen):
    """One class (or region) in one case. Counts are voxels of the original grid outside the ignore label."""

    tp: int
    fp: int
    fn: int
    tn: int
    dice: float
    iou: float
    hd95_mm: float
    """95th percentile of the Hausdorff distance, the larger of both directions, in millimetres."""
    nsd: float
    """Normalised surface Dice at the validation's tolerance, 0 to 1."""
    lesions: Lesions | None = Field(None, exclude_if=lambda lesions: lesions is None)
    """None where nobody asked for them."""


class CaseResult(Frozen):
    """The full validation of one case with one checkpoint."""

    case_id: str
    checkpoint_sha256: str
    """SHA-256 of the checkpoint file that predicted: a result of other weights is never taken for this one's."""
    reference_file: str
    reference_stat: tuple[int, int] | None = Field(None, exclude_if=lambda stat: stat is None)
    """Size and modification time (ns) of the reference, of a case of a test set: its labels may be corrected at any time."""
    image_sha256: tuple[str, ...] = Field((), exclude_if=lambda digests: not digests)
    """Of each channel's image, of a labelled case of a test set: test sets are the same where images and labels are, wherever they lie."""
    reference_sha256: str = Field("", exclude_if=lambda digest: not digest)
    """Of the labels, likewise."""
    prediction_file: str
    surface_tolerance_mm: float
    scoring: int = 0
    """By which rule it was scored, see `SCORING`; files of the versions before do not name any."""
    no_distances: str = ""
    """Why no class has HD95 and NSD in this case; empty where they are measured."""
    metrics: dict[str, ClassMetrics]
    """By class name, in the order of `Labels.foreground`."""
    seconds: float
    """Wall-clock time for loading, predicting, writing and scoring; kept when the stored prediction is scored anew."""

    @property
    def dice_mean(self) -> float:
        """Mean Dice over the classes that have one."""
        return nan_mean(m.dice for m in self.metrics.values())

    @property
    def has_lesions(self) -> bool:
        """True when lesions were counted in every class."""
        return all(m.lesions is not None for m in self.metrics.values())


def nan_mean(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN when there is none."""
    finite = [v for v in values if not math.isnan(v)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def class_keys(labels: Labels) -> dict[str, str]:
    """Class name -> its key in nnU-Net's summary.json: '2' for a label, '(1, 2)' for a region."""
    if not labels.has_regions:
        return {name: str(values[0]) for name, values in labels.foreground.items()}
    return {name: str(labels.names[name]) for name in labels.foreground}


def _nnunet_metrics(m: ClassMetrics) -> dict[str, float | int]:
    values = (m.dice, m.iou, m.fp, m.tp, m.fn, m.tn, m.fp + m.tp, m.fn + m.tp)
    return dict(zip(NNUNET_METRICS, values, strict=True))


def summarise(results: Sequence[CaseResult], labels: Labels) -> dict[str, Any]:
    """The content of nnU-Net's summary.json for these cases, in this order. Pure; `results` is what the split lists."""
    keys = class_keys(labels)
    scores = [{keys[name]: _nnunet_metrics(m) for name, m in r.metrics.items()} for r in results]
    mean = {key: {n: nan_mean(score[key][n] for score in scores) for n in NNUNET_METRICS} for key in keys.values()}
    return {
        "foreground_mean": {n: nan_mean(mean[key][n] for key in keys.values()) for n in NNUNET_METRICS},
        "mean": mean,
        "metric_per_case": [
            {"reference_file": r.reference_file, "prediction_file": r.prediction_file, "metrics": score}
            for r, score in zip(results, scores, strict=True)
        ],
    }


def summary_bytes(summary: dict[str, Any]) -> bytes:
    """summary.json as nnU-Net writes it: sorted keys, four spaces, bare NaN."""
    return json.dumps(summary, indent=4, sort_keys=True).encode()


def extended_summary(results: Sequence[CaseResult], labels: Labels) -> dict[str, Any]:
    """What summary.json has no place for: per class means of Dice, HD95 and NSD with the numbers of cases behind them. Pure."""
    classes = {name: _class_summary([r.metrics[name] for r in results]) for name in labels.foreground}
    return {
        "n_cases": len(results),
        "dice_mean": nan_mean(c["dice"] for c in classes.values()),
        "hd95_mm_mean": nan_mean(c["hd95_mm"] for c in classes.values()),
        "nsd_mean": nan_mean(c["nsd"] for c in classes.values()),
        "no_distances": _no_distances(results),
        "seconds": math.fsum(r.seconds for r in results),
        **({name: nan_mean(c[name] for c in classes.values()) for name in LESION_SCORES} if have_lesions(results) else {}),
        "classes": classes,
    }


def have_lesions(results: Sequence[CaseResult]) -> bool:
    """True when lesions were counted in all of these cases; of some alone there are no means."""
    return bool(results) and all(r.has_lesions for r in results)


def _no_distances(results: Sequence[CaseResult]) -> str:
    without = [r for r in results if r.no_distances]
    return f"{len(without)} of {len(results)} cases: {without[0].no_distances}" if without else ""


def _class_summary(metrics: Sequence[ClassMetrics]) -> dict[str, float]:
    return {
        "dice": nan_mean(m.dice for m in metrics),
        "hd95_mm": nan_mean(m.hd95_mm for m in metrics),
        "nsd": nan_mean(m.nsd for m in metrics),
        "n_dice": sum(not math.isnan(m.dice) for m in metrics),
        "n_hd95": sum(not math.isnan(m.hd95_mm) for m in metrics),
        "n_missed": sum(m.tp + m.fn > 0 and m.tp + m.fp == 0 for m in metrics),
        "n_invented": sum(m.tp + m.fn == 0 and m.tp + m.fp > 0 for m in metrics),
        **_lesion_summary([m.lesions for m in metrics if m.lesions is not None], len(metrics)),
    }


def _lesion_summary(lesions: Sequence[Lesions], num_cases: int) -> dict[str, float]:
    """Means over cases, as of all metrics, and the numbers of lesions; nothing where they were not counted in every case."""
    if not lesions or len(lesions) < num_cases:
        return {}
    means = {name: nan_mean(found.scores[name] for found in lesions) for name in LESION_SCORES}
    counts = (sum(found.num_true for found in lesions), sum(found.num_detected for found in lesions))
    return means | dict(zip(LESION_COUNTS, counts, strict=True))


def table_rows(results: Sequence[CaseResult], labels: Labels, checkpoint: WeightsName, salt: str | None) -> list[Row]:
    """One row per case for the tracking server; with `salt` case ids are replaced by pseudonyms."""
    return [_row(r, labels, checkpoint, r.case_id if salt is None else pseudonym(r.case_id, salt)) for r in results]


def worst_first(rows: Iterable[Row]) -> list[Row]:
    """Rows of cases by rising Dice; last those that have none. Pure."""
    return sorted(rows, key=lambda row: math.inf if math.isnan(dice := float(row["dice_mean"])) else dice)


def _row(result: CaseResult, labels: Labels, checkpoint: WeightsName, case: str) -> Row:
    row: Row = {"case": case, "dice_mean": result.dice_mean}  # MLflow compares runs by the second column
    for name in labels.foreground:
        m = result.metrics[name]
        row |= {f"dice/{name}": m.dice, f"hd95_mm/{name}": m.hd95_mm, f"nsd/{name}": m.nsd}
        row |= {f"{score}/{name}": value for score, value in (m.lesions.scores if m.lesions else {}).items()}
    return row | {"checkpoint": checkpoint, "seconds": round(result.seconds, 3), "scoring": result.scoring}
