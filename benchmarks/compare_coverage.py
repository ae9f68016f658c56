"""Do the statistics of `orchestrator/compare/` keep what they state: coverage, false winners, power, seconds and memory.

    python -m benchmarks.compare_coverage [--pairs 1000] [--seed 1]

Studies with a known truth are simulated: patients with one to three cases whose difficulty all models share, four classes that may be
absent, a tenth of equal scores, and total failures (Dice 0) at three rates. Printed are, for several numbers of patients: how often the
95 % interval of the mean difference covers the truth, beside scipy's BCa bootstrap on the same patients; how often
a winner among five equal models is named; the power at the stated detectable difference. First, one table of 20 models, 10 classes and
500 cases is compared and ranked, pooled and in every class.
"""

import argparse
import os
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from scipy import stats

from orchestrator.statistics.pairs import Comparison, compare_all, detectable_difference
from orchestrator.statistics.ranks import rank_stability
from orchestrator.statistics.table import DICE, CaseScores, Floats, ScoreTable
from orchestrator.statistics.verdict import better, leaders

FAILURES = {"no failures": (0.0, 0.0), "failures 0.5 % and 0.5 %": (0.005, 0.005), "failures 4 % and 2 %": (0.04, 0.02)}
"""Of the first and of every other model, per class."""
PATIENTS = (6, 10, 20, 50, 200)
CLASSES = 4
SHIFT = 0.15
"""By how much the second model is better, on the logit of Dice."""
TRUTH_PATIENTS = 400_000
COVERAGE_HEADER = f"{'patients':>10} {'t (used)':>9} {'BCa':>7} {'median':>8}"


def study(rng: np.random.Generator, patients: int, models: int, shift: float, failures: tuple[float, float]) -> CaseScores:
    """Pooled Dice of every case; model 1 is better by `shift`, all others are equal but for their failures."""
    patient = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    shared = 1.8 + (rng.normal(0, 0.6, patients)[patient] + rng.normal(0, 0.4, patient.size)) + rng.normal(0, 0.3, (CLASSES, patient.size))
    logits = shared + rng.normal(0, 0.3, (models, CLASSES, patient.size)) + shift * (np.arange(models) == 1)[:, None, None]
    dice = 1 / (1 + np.exp(-logits))
    rates = np.where(np.arange(models) == 0, *failures)
    dice[rng.random(dice.shape) < rates[:, None, None]] = 0
    equal = rng.random(patient.size) < 0.1
    dice[:, :, equal] = dice[:1, :, equal]  # a tenth of the cases: all models agree
    dice[:, rng.random((CLASSES, patient.size)) < 0.2] = np.nan
    return table_of_dice(dice, tuple(map(str, patient))).case_scores(DICE)


def table_of_dice(dice: Floats, patients: tuple[str, ...]) -> ScoreTable:
    """(models, classes, cases) as a table."""
    models, classes, cases = (tuple(map(str, range(size))) for size in dice.shape)
    return ScoreTable(models, classes, cases, patients, {"dice": dice}, {"dice": np.ones(dice.shape, dtype=bool)})


def patient_differences(scores: CaseScores) -> Floats:
    """Model 1 minus model 0, one difference per patient, by plain numpy."""
    difference, patients = scores.values[1] - scores.values[0], np.asarray(scores.patients).astype(int)
    kept = ~np.isnan(difference)
    counts = np.bincount(patients[kept])
    return np.bincount(patients[kept], difference[kept])[counts > 0] / counts[counts > 0]


def coverage(pairs: int, seed: int) -> None:
    """How often each interval of the mean difference covers the truth, and that of the median its own."""
    for name, failures in FAILURES.items():
        truth = patient_differences(study(np.random.default_rng(seed), TRUTH_PATIENTS, 2, SHIFT, failures))
        mean, median = truth.mean(), np.median(truth)
        print(f"\n{name}: true difference {mean:.2f} Dice points, SD over patients {truth.std():.1f}\n{COVERAGE_HEADER}")
        for patients in PATIENTS:
            rng, covered = np.random.default_rng(seed + patients), np.zeros(3)
            for _ in range(pairs):
                scores = study(rng, patients, 2, SHIFT, failures)
                [found] = compare_all(scores)
                intervals = [found.mean_interval, bca(patient_differences(scores), rng)]
                covered += [
                    *(low <= mean <= high for low, high in intervals),
                    found.median_interval[0] <= median <= found.median_interval[1],
                ]
            print(f"{patients:>10} " + " ".join(f"{100 * hits / pairs:>{w}.1f}" for hits, w in zip(covered, (9, 7, 8), strict=True)))


def bca(differences: Floats, rng: np.random.Generator) -> tuple[float, float]:
    """scipy's BCa bootstrap interval of the mean."""
    found = stats.bootstrap((differences,), np.mean, method="BCa", n_resamples=1000, rng=rng).confidence_interval
    return found.low, found.high


def false_winners(studies: int, seed: int) -> None:
    """Five equal models: how often one is named the winner, and how often any pair is decided."""
    print(f"\nfive equal models, {studies} studies each\n{'patients':>10} {'winner named':>13} {'any pair decided':>17}")
    for patients in PATIENTS:
        rng, named, decided = np.random.default_rng(seed), 0, 0
        for _ in range(studies):
            found = compare_all(study(rng, patients, 5, 0.0, (0.005, 0.005)))
            named += not leaders(found).others
            decided += any(better(pair) for pair in found)
        print(f"{patients:>10} {100 * named / studies:>11.1f} % {100 * decided / studies:>15.1f} %")


def power(pairs: int, seed: int) -> None:
    """How often a difference of the stated detectable size is found, for one and for six comparisons (Holm's first step)."""
    print(f"\npower at the detectable difference, {pairs} pairs each\n{'patients':>10} {'comparisons':>12} {'detectable':>11} {'power':>7}")
    for name in ("no failures", "failures 0.5 % and 0.5 %"):
        print(name)
        spread = patient_differences(study(np.random.default_rng(seed), TRUTH_PATIENTS, 2, 0.0, FAILURES[name])).std()
        for patients in PATIENTS[1:]:
            for comparisons in (1, 6):
                shift = detectable_difference(float(spread), patients, comparisons)
                rng = np.random.default_rng(seed)
                found = [shifted(study(rng, patients, 2, 0.0, FAILURES[name]), shift, comparisons) for _ in range(pairs)]
                share = np.mean([better(pair) == "1" for pair in found])
                print(f"{patients:>10} {comparisons:>12} {shift:>11.2f} {share:>7.3f}")


def shifted(scores: CaseScores, points: float, comparisons: int) -> Comparison:
    """The pair after model 1 has become better by so many points in every case; p as if it were the smallest of `comparisons`."""
    values = scores.values + points * np.array([[0], [1]])
    [found] = compare_all(replace(scores, values=values))
    return replace(found, p_holm=min(1.0, comparisons * found.p_holm), comparisons=comparisons)


def large_table(seed: int) -> None:
    """Seconds and memory of all comparisons and rankings of 20 models, 10 classes and 500 cases; the classes in two threads."""
    rng = np.random.default_rng(seed)
    skill = np.linspace(0, 0.1, 20)[:, None, None]
    dice = 1 / (1 + np.exp(-(2 + skill + rng.normal(0, 1, (1, 10, 500)) + rng.normal(0, 0.3, (20, 10, 500)))))
    dice[:, rng.random((10, 500)) < 0.05] = np.nan
    table = table_of_dice(dice, tuple(map(str, range(500))))
    started, started_cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda scores: (compare_all(scores), rank_stability(scores)), all_scores(table)))
    seconds, cpu = time.perf_counter() - started, time.process_time() - started_cpu
    peak_gib, load = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, os.getloadavg()[0]
    print(
        f"20 models x 10 classes x 500 cases, 10,000 resamples: {seconds:.1f} s ({cpu:.1f} s of CPU, load {load:.0f}), {peak_gib:.2f} GiB"
    )


def all_scores(table: ScoreTable) -> list[CaseScores]:
    """Pooled and of every class."""
    return [table.case_scores(DICE, class_name) for class_name in (None, *table.classes)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Coverage, false winners and power of the comparison")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    large_table(options.seed)
    coverage(options.pairs, options.seed)
    false_winners(options.pairs, options.seed)
    power(options.pairs, options.seed)


if __name__ == "__main__":
    main()
