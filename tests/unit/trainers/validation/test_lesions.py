"""Lesions of one case: counted and matched by hand, and components as another library finds them."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from trainers.contract.lesions import LESION_SCORES, Lesions
from trainers.contract.plans import Labels, labels_of
from trainers.validation.case_metrics import case_metrics
from trainers.validation.lesions import lesions_of

LABELS = labels_of({"labels": {"background": 0, "lesion": 1, "other": 2}})
IGNORE = labels_of({"labels": {"background": 0, "lesion": 1, "ignore": 2}})
REGIONS = labels_of({"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]})


def row(text: str) -> Any:
    """A volume of one line of voxels: a digit each."""
    return np.array([[[int(digit) for digit in text]]])


def lesions(reference: str, prediction: str, labels: Labels = LABELS, class_name: str = "lesion") -> Lesions:
    found = case_metrics(row(reference), row(prediction), (1.0,) * 3, labels, 1.0, count_lesions=True)[class_name].lesions
    assert found is not None
    return found


def test_detected_missed_and_false_lesions_are_counted_and_the_dice_is_over_all_of_them() -> None:
    """Two true lesions of 4 and 2 voxels; predicted: 2 of the first and 1 beside it, none of the second, one false lesion.

    Dice of the first: 2 * 2 / (4 + 3) = 4/7; with the missed and the false one (4/7 + 0 + 0) / 3.
    """
    found = lesions("01111000110000", "11100000000010")
    assert (found.num_true, found.num_detected, found.num_false) == (2, 1, 1)
    assert found.dice == pytest.approx(4 / 7 / 3)
    assert found.sensitivity == 0.5


def test_one_voxel_of_overlap_detects_a_lesion() -> None:
    found = lesions("0111110", "0000011")
    assert (found.num_true, found.num_detected, found.num_false) == (1, 1, 0)
    assert found.dice == pytest.approx(2 * 1 / (5 + 2))


def test_the_dice_of_a_lesion_is_against_all_predicted_components_that_touch_it() -> None:
    found = lesions("0111110", "1101110")  # components of 2 and 3 voxels, of which 1 and 3 lie in the lesion
    assert (found.num_true, found.num_detected, found.num_false) == (1, 1, 0)
    assert found.dice == pytest.approx(2 * 4 / (5 + 5))


def test_a_predicted_component_that_bridges_two_lesions_detects_both_and_counts_whole_for_each() -> None:
    found = lesions("0110110", "0111110")
    assert (found.num_true, found.num_detected, found.num_false) == (2, 2, 0)
    assert found.dice == pytest.approx(2 * 2 / (2 + 5))


def test_lesions_that_touch_by_a_corner_alone_are_one() -> None:
    mask = np.zeros((3, 3, 3), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    assert lesions_of(mask, mask).num_true == 1
    mask[1, 1, 1], mask[2, 2, 2] = False, True
    assert lesions_of(mask, mask).num_true == 2


def test_without_a_true_lesion_there_is_no_sensitivity_and_without_any_lesion_no_dice() -> None:
    nothing = lesions("000", "000")
    assert (nothing.num_false, math.isnan(nothing.sensitivity), math.isnan(nothing.dice)) == (0, True, True)
    false_only = lesions("00000", "10100")
    assert (false_only.num_false, math.isnan(false_only.sensitivity), false_only.dice) == (2, True, 0.0)
    missed = lesions("01010", "00000")
    assert (missed.sensitivity, missed.num_false, missed.dice) == (0.0, 0, 0.0)
    assert list(missed.scores) == list(LESION_SCORES)


def test_what_lies_under_the_ignore_label_is_neither_detected_nor_false() -> None:
    found = lesions("0110022200", "0110012110", IGNORE)  # of the second predicted lesion one voxel is left
    assert (found.num_true, found.num_detected, found.num_false, found.dice) == (1, 1, 1, 0.5)


def test_lesions_are_those_of_each_class_and_of_each_region() -> None:
    reference, prediction = "0121020", "0121010"
    assert lesions(reference, prediction).num_true == 2  # the label 1 alone, on both sides of the label 2
    whole, core = (lesions(reference, prediction, REGIONS, name) for name in ("whole", "core"))
    assert (whole.num_true, whole.num_detected, whole.dice) == (2, 2, 1.0)
    assert (core.num_true, core.num_detected, core.dice) == (2, 1, 0.5)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 3), (1, 1, 5), (1, 3, 1), (5, 1, 1)])
def test_every_other_voxel_of_a_single_line_is_a_lesion(shape: tuple[int, ...]) -> None:
    mask = np.zeros(shape, bool)
    mask.ravel()[::2] = True
    assert lesions_of(mask, mask).num_true == (mask.size + 1) // 2


@pytest.mark.parametrize("seed", range(20))
def test_counts_and_dice_agree_with_scipys_components_matched_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = [(1, 24, 24), (12, 14, 16)][seed % 2]
    reference, prediction = (ndimage.binary_opening(rng.random(shape) < 0.1 + 0.02 * seed) | (rng.random(shape) < 0.03) for _ in range(2))
    found = lesions_of(reference, prediction)
    everywhere = np.ones((3, 3, 3))
    (true, num_true), (predicted, num_predicted) = (ndimage.label(mask, everywhere) for mask in (reference, prediction))
    dices, met = [], set()
    for lesion in range(1, num_true + 1):
        own = true == lesion
        touching = set(np.unique(predicted[own])) - {0}
        union = np.isin(predicted, list(touching))
        dices.append(2 * (own & union).sum() / (own.sum() + union.sum()))
        met |= touching
    num_false = num_predicted - len(met)
    assert (found.num_true, found.num_detected, found.num_false) == (num_true, sum(dice > 0 for dice in dices), num_false)
    assert found.dice == pytest.approx(sum(dices) / (num_true + num_false))


def test_other_metrics_are_the_same_with_and_without_lesions() -> None:
    volumes = row("0121020"), row("0121010")
    without = case_metrics(*volumes, (1.0,) * 3, LABELS, 1.0)
    with_lesions = case_metrics(*volumes, (1.0,) * 3, LABELS, 1.0, count_lesions=True)
    assert all(metrics.lesions is None for metrics in without.values())
    assert "lesions" not in without["lesion"].model_dump()
    assert {name: metrics.model_copy(update={"lesions": None}) for name, metrics in with_lesions.items()} == without
