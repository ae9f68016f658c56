"""The table: orientation, pooling, what is undefined, missed or missing."""

import numpy as np
import pytest

from orchestrator.statistics.table import DICE, HD95, NSD, Score, patient_means, table_of
from tests.unit.orchestrator.statistics.score_tables import NAN, dice, records, table


def test_dice_is_in_points_and_a_distance_is_negated() -> None:
    both = table_of(records({"A": [0.5]}) + records({"A": [4.0]}, metric="hd95_mm"))
    assert both.case_scores(DICE).values.tolist() == [[50.0]]
    assert both.case_scores(HD95).values.tolist() == [[-4.0]]


def test_a_missing_record_is_not_an_undefined_one() -> None:
    short = table_of(records({"A": [0.5, NAN], "B": [0.5]}))
    assert short.case_scores(DICE).recorded.tolist() == [[True, True], [True, False]]


def test_pooled_is_the_mean_of_the_classes_with_a_score() -> None:
    liver, tumour = {"A": [0.8, 0.9, NAN, 0.7]}, {"A": [0.4, NAN, NAN]}
    pooled = table_of(records(liver) + records(tumour, class_name="tumour")).case_scores(DICE)
    np.testing.assert_allclose(pooled.values, [[60, 90, NAN, NAN]])
    assert pooled.recorded.tolist() == [[True, True, True, False]]  # of the last case the tumour is not recorded


def test_a_distance_without_number_is_missed_where_dice_has_a_score_and_absent_where_not() -> None:
    both = table_of(records({"A": [0.9, 0.0, NAN]}) + records({"A": [3.0, NAN, NAN]}, metric="hd95_mm"))
    scores = both.case_scores(HD95)
    np.testing.assert_array_equal(scores.values, [[-3, -np.inf, NAN]])
    np.testing.assert_array_equal(scores.worst_for_missed(), [[-3, -4, NAN]])


def test_pooled_a_case_with_a_missed_class_has_no_distance() -> None:
    rows = [("liver", "dice", 0.9), ("liver", "hd95_mm", 3.0), ("tumour", "dice", 0.0), ("tumour", "hd95_mm", NAN)]
    pooled = table_of(Score("A", "p", "c", *row) for row in rows).case_scores(HD95)
    assert pooled.values.tolist() == [[-np.inf]]


def test_several_missed_cases_weigh_more_than_any_measured_distance() -> None:
    rows = {"A": [0.0, 0.9, 0.9], "B": [0.9, 0.9, 0.9]}
    far = table_of(records(rows) + records({"A": [NAN, 1.0, 1.0], "B": [50.0, 90.0, 90.0]}, metric="hd95_mm")).case_scores(HD95)
    a, b = far.worst_for_missed().sum(axis=1)
    assert a < b


def test_contradicting_records_are_refused() -> None:
    with pytest.raises(ValueError, match="two records of dice for A, case c, class liver"):
        table_of([Score("A", "p", "c", "liver", "dice", 0.5)] * 2)
    with pytest.raises(ValueError, match="case c is of two patients, p and q"):
        table_of([Score("A", "p", "c", "liver", "dice", 0.5), Score("B", "q", "c", "liver", "dice", 0.5)])


def test_what_the_table_does_not_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="metric 'nsd' is not in the table: it has dice"):
        table({"A": [0.5]}).case_scores(NSD)
    with pytest.raises(ValueError, match="class 'spleen' is not in the table: it has liver"):
        table({"A": [0.5]}).case_scores(DICE, "spleen")
    with pytest.raises(ValueError, match="metric 'dice' is not in the table"):
        table({"A": [NAN]}, metric="hd95_mm").case_scores(HD95)
    with pytest.raises(ValueError, match="hd95_mm is NaN where dice has no record"):
        table_of([*records({"A": [0.5]}), *records({"A": [1.0, NAN]}, metric="hd95_mm")]).case_scores(HD95)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_an_infinite_dice_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="dice holds an infinite value"):
        table({"A": [value]}).case_scores(DICE)


def test_an_infinite_distance_is_one_that_is_missing() -> None:
    both = table_of(records({"A": [0.0]}) + records({"A": [np.inf]}, metric="hd95_mm"))
    assert both.case_scores(HD95).values.tolist() == [[-np.inf]]


def test_patient_means_leave_out_what_has_no_score() -> None:
    values = np.array([[1.0, 3.0, NAN, 5.0], [NAN, NAN, 2.0, 4.0]])
    np.testing.assert_array_equal(patient_means(values, ["p", "p", "q", "q"]), [[2, 5], [NAN, 3]])


def test_seeds_of_one_model_are_averaged_where_all_have_a_score() -> None:
    merged = dice({"A1": [0.5, NAN], "A2": [0.75, 0.5], "B": [0.25, 0.25]}).averaged(["A", "A", "B"])
    assert merged.models == ("A", "B")
    np.testing.assert_array_equal(merged.values, [[62.5, NAN], [25, 25]])
