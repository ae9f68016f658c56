"""Scores of cases and their summary, worked by hand; the case queue. nnU-Net's own summary stands beside in the integration ring."""

import json
import math
from typing import Any

import numpy as np
import pytest

from orchestrator.publishing.validation_report import minus_ema, without_case_ids
from orchestrator.tracking.scores import tracked_metrics
from orchestrator.validation.case_queue import is_finished, largest_first
from trainers.contract.lesions import LESION_SCORES, Lesions
from trainers.contract.plans import Labels, labels_of
from trainers.contract.pseudonyms import pseudonym
from trainers.contract.run_spec import ValidationSpec
from trainers.contract.summary import (
    SCORING,
    CaseResult,
    ClassMetrics,
    Row,
    class_keys,
    extended_summary,
    summarise,
    summary_bytes,
    table_rows,
    worst_first,
)
from trainers.errors import DataError
from trainers.validation.case_metrics import case_metrics
from trainers.validation.surfaces import surface_metrics

NAN = math.nan
LABELS = labels_of({"labels": {"background": 0, "organ": 1, "lesion": 2}})
IGNORE = labels_of({"labels": {"background": 0, "organ": 1, "lesion": 2, "ignore": 3}})
MM = {mm: ValidationSpec(surface_tolerance_mm=mm) for mm in (1, 2)}
REGIONS = labels_of({"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]})


def score(dice: float, hd95_mm: float = 1.0, nsd: float = 0.5, tp: int = 1, fp: int = 0, fn: int = 0) -> ClassMetrics:
    return ClassMetrics(tp=tp, fp=fp, fn=fn, tn=5, dice=dice, iou=dice / 2, hd95_mm=hd95_mm, nsd=nsd)


def result(case_id: str, **metrics: ClassMetrics) -> CaseResult:
    return CaseResult(
        case_id=case_id,
        checkpoint_sha256="ab",
        reference_file=f"/gt/{case_id}.nii.gz",
        prediction_file=f"/pred/{case_id}.nii.gz",
        surface_tolerance_mm=1.0,
        scoring=SCORING,
        metrics=metrics,
        seconds=2.0,
    )


def volumes(shape: tuple[int, ...] = (6, 8, 10)) -> tuple[Any, Any]:
    return np.zeros(shape, np.float32), np.zeros(shape, np.float32)


def test_counts_and_dice_of_a_shifted_box() -> None:
    reference, prediction = volumes()
    reference[1:3, 2:6, 2:6] = 1  # 2 x 4 x 4 = 32 voxels
    prediction[1:3, 3:7, 2:6] = 1  # 24 of them, and 8 others
    organ = case_metrics(reference, prediction, (1.0, 1.0, 1.0), LABELS, 1.0)["organ"]
    assert (organ.tp, organ.fp, organ.fn, organ.tn) == (24, 8, 8, 480 - 40)
    assert organ.dice == 48 / 64
    assert organ.iou == 24 / 40


def test_hausdorff_distance_is_in_millimetres_along_each_axis() -> None:
    for axis, expected in enumerate((6.0, 4.0, 2.0)):  # two voxels of 3, 2 and 1 mm
        reference, prediction = volumes((12, 12, 12))
        reference[3:7, 3:7, 3:7] = 1
        prediction[3:7, 3:7, 3:7] = 1
        grown = [slice(3, 7)] * 3
        grown[axis] = slice(3, 9)
        prediction[tuple(grown)] = 1
        organ = case_metrics(reference, prediction, (3.0, 2.0, 1.0), LABELS, 1.0)["organ"]
        assert organ.hd95_mm == pytest.approx(expected)


def test_surface_dice_counts_what_lies_within_the_tolerance() -> None:
    reference, prediction = volumes((12, 12, 12))
    reference[3:8, 3:8, 3:8] = 1
    prediction[3:8, 3:8, 3:9] = 1  # one face moved by one voxel of 2 mm
    spacing = (2.0, 2.0, 2.0)
    assert case_metrics(reference, prediction, spacing, LABELS, 2.0)["organ"].nsd == 1.0
    assert 0.5 < case_metrics(reference, prediction, spacing, LABELS, 1.0)["organ"].nsd < 1.0


def test_surface_metrics_do_not_depend_on_the_crop() -> None:
    rng = np.random.default_rng(0)
    whole = np.zeros((2, 30, 34, 38), bool)
    whole[:, 0:9, 20:34, 11:20] = rng.random((2, 9, 14, 9)) < 0.6  # touches two faces of the volume
    spacing = (2.5, 0.7, 1.0)
    labels = case_metrics(whole[0].astype(int), whole[1].astype(int), spacing, LABELS, 1.0)["organ"]
    assert (labels.hd95_mm, labels.nsd) == surface_metrics(whole[0], whole[1], spacing, 1.0)
    wider = np.pad(whole, ((0, 0), (7, 7), (7, 7), (7, 7)))
    assert (labels.hd95_mm, labels.nsd) == surface_metrics(wider[0], wider[1], spacing, 1.0)


def test_a_single_slice_is_scored_in_its_plane() -> None:
    reference, prediction = volumes((1, 16, 16))
    reference[0, 4:8, 4:8] = 1
    prediction[0, 4:8, 4:11] = 1
    organ = case_metrics(reference, prediction, (999.0, 1.0, 0.5), LABELS, 1.0)["organ"]
    assert organ.hd95_mm == pytest.approx(1.5)  # three voxels of 0.5 mm


def test_a_class_in_one_slice_of_many_is_scored_in_space() -> None:
    reference, prediction = volumes((9, 40, 40))
    reference[4, 5:35, 5:35] = 1
    prediction[4, 5:35, 5:25] = 1
    organ = case_metrics(reference, prediction, (5.0, 1.0, 1.0), LABELS, 1.0)["organ"]
    assert organ.hd95_mm == 9.0  # every voxel is a boundary voxel: 30 of 900 lie 10 mm from the prediction, 30 lie 9 mm
    whole = surface_metrics(reference == 1, prediction == 1, (5.0, 1.0, 1.0), 1.0)
    assert (organ.hd95_mm, organ.nsd) == whole
    assert organ.nsd == pytest.approx(0.820, abs=5e-4)  # both faces of the slice count; in its plane only the outline would: 0.663


def test_absent_classes_follow_the_nan_policy() -> None:
    reference, prediction = volumes()
    nowhere = case_metrics(reference, prediction, (1.0,) * 3, LABELS, 1.0)["organ"]
    assert all(map(math.isnan, (nowhere.dice, nowhere.iou, nowhere.hd95_mm, nowhere.nsd)))
    prediction[0, 0, 0] = 1
    invented = case_metrics(reference, prediction, (1.0,) * 3, LABELS, 1.0)["organ"]
    assert (invented.dice, invented.nsd, math.isnan(invented.hd95_mm)) == (0.0, 0.0, True)
    missed = case_metrics(prediction, reference, (1.0,) * 3, LABELS, 1.0)["organ"]
    assert (missed.dice, missed.nsd, missed.fn, math.isnan(missed.hd95_mm)) == (0.0, 0.0, 1, True)


def test_ignored_voxels_count_for_nothing() -> None:
    reference, prediction = volumes()
    reference[0:2] = 3
    reference[2, 0, 0:4] = 1
    prediction[0:2] = 1  # wrong, but nobody can tell
    prediction[2, 0, 0:2] = 1
    organ = case_metrics(reference, prediction, (1.0,) * 3, IGNORE, 1.0)["organ"]
    assert (organ.tp, organ.fp, organ.fn, organ.tn) == (2, 0, 2, 4 * 80 - 4)


def test_regions_are_unions_of_labels() -> None:
    reference, prediction = volumes()
    reference[0, 0, 0:4] = (1, 1, 2, 2)
    prediction[0, 0, 0:4] = (2, 2, 2, 0)
    metrics = case_metrics(reference, prediction, (1.0,) * 3, REGIONS, 1.0)
    assert (metrics["whole"].tp, metrics["whole"].fp, metrics["whole"].fn) == (3, 0, 1)
    assert (metrics["core"].tp, metrics["core"].fp, metrics["core"].fn) == (1, 2, 1)


def test_unlike_shapes_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(6, 8, 10\) and \(1, 8, 10\)"):
        case_metrics(volumes()[0], volumes((1, 8, 10))[0], (1.0,) * 3, LABELS, 1.0)


@pytest.mark.parametrize(("labels", "keys"), [(LABELS, ["1", "2"]), (REGIONS, ["(1, 2)", "2"])])
def test_summary_keys_are_nnunets(labels: Labels, keys: list[str]) -> None:
    assert list(class_keys(labels).values()) == keys


def test_foreground_mean_leaves_out_a_class_that_is_nowhere() -> None:
    results = [result("a", organ=score(0.5), lesion=score(NAN)), result("b", organ=score(1.0), lesion=score(NAN))]
    summary = summarise(results, LABELS)
    assert summary["mean"]["1"]["Dice"] == 0.75
    assert math.isnan(summary["mean"]["2"]["Dice"])
    assert summary["foreground_mean"]["Dice"] == 0.75
    assert [case["reference_file"] for case in summary["metric_per_case"]] == ["/gt/a.nii.gz", "/gt/b.nii.gz"]
    assert list(json.loads(summary_bytes(summary))) == ["foreground_mean", "mean", "metric_per_case"]


def test_extended_summary_counts_what_the_means_rest_on() -> None:
    missed, invented = score(0.0, NAN, 0.0, tp=0, fn=3), score(0.0, NAN, 0.0, tp=0, fp=3)
    results = [result("a", organ=score(0.5, 4.0), lesion=missed), result("b", organ=score(0.7, 2.0), lesion=invented)]
    summary = extended_summary(results, LABELS)
    assert summary["classes"]["organ"] == {
        "dice": pytest.approx(0.6), "hd95_mm": 3.0, "nsd": 0.5, "n_dice": 2, "n_hd95": 2, "n_missed": 0, "n_invented": 0,
    }  # fmt: skip
    assert summary["classes"]["lesion"] | {"hd95_mm": None} == {
        "dice": 0.0, "hd95_mm": None, "nsd": 0.0, "n_dice": 2, "n_hd95": 0, "n_missed": 1, "n_invented": 1,
    }  # fmt: skip
    assert summary["dice_mean"] == pytest.approx(0.3)
    assert summary["hd95_mm_mean"] == 3.0


def test_only_finite_values_are_tracked() -> None:
    extended = extended_summary([result("a", organ=score(0.5), lesion=score(NAN, NAN, NAN))], LABELS)
    metrics = tracked_metrics(extended | {"minus_ema_pseudo_dice": minus_ema(extended["dice_mean"], 0.6)})
    assert metrics == {
        "dice/organ": 0.5, "hd95_mm/organ": 1.0, "nsd/organ": 0.5,
        "dice_mean": 0.5, "hd95_mm_mean": 1.0, "nsd_mean": 0.5, "minus_ema_pseudo_dice": pytest.approx(-0.1),
    }  # fmt: skip
    assert minus_ema(0.5, None) is None


def test_pseudonyms_are_stable_and_hide_every_file_name() -> None:
    results = [result("patient_7", organ=score(0.5), lesion=score(0.5))]
    rows = table_rows(results, LABELS, "best", "digest")
    assert rows[0]["case"] == pseudonym("patient_7", "digest") == pseudonym("patient_7", "digest")
    assert pseudonym("patient_7", "digest") not in (pseudonym("patient_8", "digest"), pseudonym("patient_7", "other"))
    hidden = without_case_ids(summarise(results, LABELS), results, "digest")
    assert "patient_7" not in json.dumps(hidden)
    assert rows[0]["dice/organ"] == 0.5
    assert table_rows(results, LABELS, "best", None)[0]["case"] == "patient_7"


def test_a_result_survives_its_file() -> None:
    stored = result("a", organ=score(0.5, NAN))
    again = CaseResult.model_validate(json.loads(json.dumps(stored.model_dump())))
    assert again.metrics["organ"].dice == 0.5
    assert math.isnan(again.metrics["organ"].hd95_mm)


def test_the_largest_case_goes_first() -> None:
    assert largest_first({"a": 1, "b": 3, "c": 3, "d": 2}) == ["b", "c", "d", "a"]


def test_only_a_result_of_the_same_weights_tolerance_and_scoring_rule_is_finished() -> None:
    stored = result("a", organ=score(1.0))
    assert not is_finished(stored.model_copy(update={"scoring": 0}), "ab", MM[1], has_prediction=True)
    assert is_finished(stored, "ab", MM[1], has_prediction=True)
    assert not is_finished(stored, "cd", MM[1], has_prediction=True)
    assert not is_finished(stored, "ab", MM[2], has_prediction=True)
    assert not is_finished(stored, "ab", MM[1], has_prediction=False)
    assert not is_finished(None, "ab", MM[1], has_prediction=True)


def counted(num_true: int, num_detected: int, num_false: int, dice: float) -> ClassMetrics:
    found = Lesions(num_true=num_true, num_detected=num_detected, num_false=num_false, dice=dice)
    return score(0.5).model_copy(update={"lesions": found})


def test_a_result_without_lesions_is_not_finished_where_they_are_asked_for() -> None:
    asked = ValidationSpec(lesions=True)
    assert not is_finished(result("a", organ=score(1.0)), "ab", asked, has_prediction=True)
    assert is_finished(result("a", organ=counted(1, 1, 0, 1.0)), "ab", asked, has_prediction=True)
    assert is_finished(result("a", organ=counted(1, 1, 0, 1.0)), "ab", ValidationSpec(), has_prediction=True)


def test_lesions_are_summarised_over_cases_then_over_classes_and_go_to_the_table_and_to_mlflow() -> None:
    """Sensitivity of organ: (1/2 + 1) / 2, as the case without a true lesion has none; of lesion: 1/4."""
    organ = (counted(2, 1, 1, 0.25), counted(1, 1, 0, 0.75), counted(0, 0, 2, 0.0))
    results = [result(f"case_{i}", organ=own, lesion=counted(4, 1, 0, 0.5)) for i, own in enumerate(organ)]
    summary = extended_summary(results, LABELS)
    assert summary["classes"]["organ"]["lesion_sensitivity"] == 0.75
    assert summary["classes"]["organ"]["lesion_false_positives"] == 1.0
    assert summary["classes"]["organ"]["lesion_dice"] == pytest.approx(1 / 3)
    assert (summary["classes"]["organ"]["n_lesions"], summary["classes"]["organ"]["n_detected"]) == (3, 2)
    assert (summary["lesion_sensitivity"], summary["lesion_false_positives"]) == (0.5, 0.5)
    tracked = tracked_metrics(summary)
    assert (tracked["lesion_sensitivity"], tracked["lesion_sensitivity/organ"], tracked["lesion_dice/lesion"]) == (0.5, 0.75, 0.5)
    row = table_rows(results, LABELS, "final", None)[0]
    assert [row[f"{name}/organ"] for name in LESION_SCORES] == [0.5, 1.0, 0.25]
    assert CaseResult.model_validate_json(results[0].model_dump_json()) == results[0]


def test_without_lesions_results_and_summaries_hold_no_word_of_them() -> None:
    results = [result("a", organ=score(0.5), lesion=score(0.5))]
    texts = [results[0].model_dump_json(), json.dumps(extended_summary(results, LABELS)), ValidationSpec().model_dump_json()]
    assert not any("lesions" in text or "lesion_" in text for text in texts)
    mixed = [*results, result("b", organ=counted(1, 1, 0, 1.0), lesion=counted(1, 1, 0, 1.0))]
    assert "lesion_dice" not in extended_summary(mixed, LABELS), "means of some cases alone"


def test_a_table_of_cases_begins_with_the_worst_and_ends_with_those_that_have_no_dice() -> None:
    rows: list[Row] = [{"case": str(dice), "dice_mean": dice} for dice in (0.9, math.nan, 0.1, 0.5)]
    assert [row["case"] for row in worst_first(rows)] == ["0.1", "0.5", "0.9", "nan"]
