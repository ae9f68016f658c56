"""Sentences, and who is named."""

from dataclasses import replace

import numpy as np
import pytest

from orchestrator.statistics.pairs import compare_all, detectable_difference
from orchestrator.statistics.table import DICE, HD95, table_of
from orchestrator.statistics.verdict import better, leaders, leaders_sentence, patients_needed, sentence
from tests.unit.orchestrator.statistics.score_tables import NAN, dice, records

RNG = np.random.default_rng(0)
HARD = RNG.uniform(0.5, 0.9, 40)
NOISE = RNG.normal(0, 0.01, (6, 40))


def model(shift: float, noise: int) -> list[float]:
    return list(HARD + shift + NOISE[noise])


def test_a_better_model_is_named_with_all_numbers() -> None:
    [found] = compare_all(dice({"A": model(0, 0), "B": model(0.02, 1)}))
    assert better(found) == "B"
    low, high = found.mean_interval
    assert sentence(found) == (
        f"B is better than A by {found.mean:.2f} Dice points [{low:.2f}, {high:.2f}], 40 paired cases, p < 0.001 (one comparison)"
    )


def test_the_better_model_comes_first_in_the_sentence() -> None:
    [found] = compare_all(dice({"B": model(0.02, 1), "A": model(0, 0)}))
    [other_way] = compare_all(dice({"A": model(0, 0), "B": model(0.02, 1)}))
    assert sentence(found) == sentence(other_way)


def test_without_a_difference_the_sentence_states_what_could_have_been_detected() -> None:
    [found] = compare_all(dice({"A": model(0, 0), "B": model(0, 2)}))
    assert better(found) is None
    assert sentence(found).startswith("the data do not distinguish A from B: the difference is ")
    detectable = detectable_difference(float(np.std(100 * (NOISE[2] - NOISE[0]), ddof=1)), 40, 1)
    assert sentence(found).endswith(f"; at this size {detectable:.2f} could have been detected")


@pytest.mark.parametrize(("comparisons", "patients"), [(1, 6), (6, 8), (190, 13)])
def test_the_patients_that_the_test_needs(comparisons: int, patients: int) -> None:
    assert patients_needed(comparisons) == patients
    assert comparisons * 2.0 ** (1 - patients) <= 0.05 < comparisons * 2.0 ** (2 - patients)


def test_too_few_patients_cannot_distinguish_however_large_the_difference() -> None:
    [found] = compare_all(dice({"A": [0.1, 0.2, 0.3, 0.4, 0.5], "B": [0.8, 0.91, 0.92, 0.93, 0.94]}))
    assert better(found) is None
    assert sentence(found).startswith("so few cases cannot distinguish A from B, the test needs 6: the difference is ")
    [of_patients] = compare_all(dice({"A": [0.1, 0.2, 0.3, 0.4], "B": [0.8, 0.91, 0.92, 0.93]}, patients="ppqr"))
    assert sentence(of_patients).startswith("so few patients cannot distinguish A from B, the test needs 6: the difference is ")
    assert "4 paired cases of 3 patients" in sentence(of_patients)


def test_seven_patients_are_enough_for_one_pair_and_too_few_for_six() -> None:
    low, high = [i / 100 for i in range(7)], [0.5 + i / 50 for i in range(7)]
    [one] = compare_all(dice({"A": low, "B": high}))
    many = compare_all(dice({"A": low, "B": high, "C": low[::-1], "D": high[::-1]}))
    assert better(one) == "B"
    assert "the test needs 8" in sentence(many[0])


def test_no_winner_where_interval_and_test_disagree() -> None:
    differences = [0.01 + i / 10_000 for i in range(38)] + [-0.9, -0.8]  # 38 small wins, two disasters: the mean is against, the test for
    [found] = compare_all(dice({"A": [0.95] * 40, "B": [0.95 + d for d in differences]}))
    assert found.p_holm < 0.05
    assert found.mean < 0
    assert better(found) is None
    assert "as the interval of the mean does not agree with the test: the difference is " in sentence(found)
    assert "in favour of A" in sentence(found)


def test_no_winner_where_only_the_interval_excludes_zero() -> None:
    [found] = compare_all(dice({"A": model(0, 0), "B": model(0.02, 1)}))
    assert better(replace(found, p_holm=0.051)) is None


def test_a_difference_within_the_spread_over_seeds_is_no_claim() -> None:
    scores = dice({"A": model(0, 0), "B": model(0.02, 1)})
    [found] = compare_all(scores, {"A": 0.4, "B": 2.5})
    assert found.seed_sd == 2.5
    assert better(found) is None
    assert "do not distinguish A from B beyond the spread over seeds (SD 2.50): the difference is " in sentence(found)
    [above] = compare_all(scores, {"A": 0.4})
    assert better(above) == "B"


def test_equal_scores_no_common_case_and_several_cases_per_patient() -> None:
    [equal] = compare_all(dice({"A": [0.5, 0.6, 0.7], "B": [0.5, 0.6, 0.7]}, patients="ppq"))
    assert sentence(equal) == "A and B have the same score in all 3 paired cases of 2 patients"
    [apart] = compare_all(dice({"A": [0.5, NAN], "B": [NAN, 0.5]}))
    assert sentence(apart).startswith("A and B have no case in common in which both have a score; left out: 1 case ")


def test_missed_classes_stand_beside_a_difference_of_distances() -> None:
    dices, distances = {"A": [0.9, 0.0], "B": [0.9, 0.9]}, {"A": [3.0, NAN], "B": [2.0, 9.0]}
    [found] = compare_all(table_of(records(dices) + records(distances, metric="hd95_mm")).case_scores(HD95, "liver"))
    assert sentence(found).startswith("liver: so few cases")
    assert sentence(found).endswith("; not in the mean: cases without a distance, missed or falsely predicted, 1 of A and 0 of B")


def test_cases_without_the_class_in_which_one_model_alone_predicts_it_stand_beside_the_difference() -> None:
    """One class, 40 cases with it: B is better there, and predicts it falsely in 20 others, A in one."""
    scores = table_of(records({"A": [*model(0, 0), *[NAN] * 20, 0.0], "B": [*model(0.02, 1), *[0.0] * 20, NAN]}))
    [pooled] = compare_all(scores.case_scores(DICE))
    assert sentence(pooled).startswith("B is better than A by ")
    left_out = "1 case without any class in which only A predicts one and 20 cases without any class in which only B predicts one"
    assert sentence(pooled).endswith(f"(one comparison); left out: {left_out}")
    [of_class] = compare_all(scores.case_scores(DICE, "liver"))
    assert sentence(of_class).endswith(" and 20 cases without the class in which only B predicts it")


def test_where_every_distance_is_missed_the_mean_is_unknown() -> None:
    dices, distances = {"A": [0.0] * 8, "B": [0.9] * 8}, {"A": [NAN] * 8, "B": [1.0, 2, 3, 4, 5, 6, 7, 8]}
    [found] = compare_all(table_of(records(dices) + records(distances, metric="hd95_mm")).case_scores(HD95))
    assert found.p_holm < 0.05
    assert better(found) is None
    assert "the difference is unknown mm" in sentence(found)


def test_the_winner_beats_every_other_model() -> None:
    found = leaders(compare_all(dice({"A": model(0, 0), "B": model(0, 1), "C": model(0.03, 2)})))
    assert (found.best, found.others) == ("C", ())
    assert leaders_sentence(found) == "C is better than every other model"


def test_otherwise_those_not_distinguished_from_the_best_stand_beside_it() -> None:
    found = leaders(compare_all(dice({"A": model(0, 0), "B": model(0.03, 1), "C": model(0.0305, 2), "D": model(-0.1, 3)})))
    assert {found.best, *found.others} == {"B", "C"}
    assert leaders_sentence(found) == f"{found.best} leads, but the data do not distinguish it from {found.others[0]}"


def test_a_model_with_too_few_cases_stays_among_the_leaders() -> None:
    found = leaders(compare_all(dice({"A": model(0, 0), "C": model(0.03, 2), "short": [0.1, 0.1]})))
    assert (found.best, found.others) == ("C", ("short",))


def test_one_model_has_no_leader() -> None:
    with pytest.raises(ValueError, match="needs two models"):
        leaders(compare_all(dice({"A": [0.5]})))


def test_five_equal_models_rarely_have_a_winner_or_any_difference() -> None:
    rng, named, claimed = np.random.default_rng(8), 0, 0
    for _ in range(40):
        patients = rng.normal(0.7, 0.1, 12)
        pairs = compare_all(dice({name: list(patients + rng.normal(0, 0.05, 12)) for name in "ABCDE"}))
        named += not leaders(pairs).others
        claimed += any(better(pair) for pair in pairs)
    assert named <= 2
    assert claimed <= 6  # Holm: at most 2 expected of 40
