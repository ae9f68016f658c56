"""Comparisons as sentences: which model is better, or why the data do not distinguish them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.statistics.pairs import ALPHA, Comparison


def better(found: Comparison) -> str | None:
    """The better model of a pair; None unless test and interval agree on it and the difference exceeds the spread over seeds."""
    if found.p_holm > ALPHA or not _interval_agrees(found) or (found.seed_sd is not None and abs(found.mean) <= found.seed_sd):
        return None
    return found.b if found.mean > 0 else found.a


def _interval_agrees(found: Comparison) -> bool:
    """Zero lies outside the interval of the mean, on the side that the test found."""
    return found.mean_interval[0] > 0 if found.test.rank_biserial > 0 else found.mean_interval[1] < 0


def patients_needed(comparisons: int) -> int:
    """The fewest patients with whom the signed-rank test can reach ALPHA after Holm's first step: its smallest p is 2^(1 - n)."""
    return 1 + math.ceil(math.log2(comparisons / ALPHA))


def sentence(found: Comparison) -> str:
    """The verdict on a pair, with every number that it rests on."""
    where = "" if found.class_name is None else f"{found.class_name}: "
    return where + _verdict(found) + _missed(found) + _falsely_predicted(found)


def _verdict(found: Comparison) -> str:
    counts, winner = found.counts, better(found)
    if counts.cases == 0:
        return f"{found.a} and {found.b} have no case in common in which both have a score"
    if found.test.method == "no difference":
        return f"{found.a} and {found.b} have the same score in all {_paired_cases(found)}"
    if winner is not None:
        loser = found.a if winner == found.b else found.b
        return f"{winner} is better than {loser} by {_amount(found, winner)}, {_evidence(found)}"
    pair, needed = f"{found.a} from {found.b}", patients_needed(found.comparisons)
    ahead = found.a if found.mean < 0 else found.b
    difference = f"the difference is {_amount(found, ahead)} in favour of {ahead}, {_evidence(found)}"
    if found.p_holm > ALPHA and counts.patients < needed:
        unit = "cases" if counts.cases == counts.patients else "patients"
        return f"so few {unit} cannot distinguish {pair}, the test needs {needed}: {difference}"
    if found.p_holm <= ALPHA and _interval_agrees(found):
        return f"the data do not distinguish {pair} beyond the spread over seeds (SD {_number(found, found.seed_sd)}): {difference}"
    if found.p_holm <= ALPHA:
        return f"the data do not distinguish {pair}, as the interval of the mean does not agree with the test: {difference}"
    return f"the data do not distinguish {pair}: {difference}; at this size {_number(found, found.detectable)} could have been detected"


def _amount(found: Comparison, winner: str) -> str:
    """`0.8 Dice points [0.3, 1.4]`, positive where `winner` is better."""
    sign = 1 if winner == found.b else -1
    low, high = sorted(sign * end for end in found.mean_interval)
    return f"{_number(found, sign * found.mean)} {found.metric.unit} [{_number(found, low)}, {_number(found, high)}]"


def _number(found: Comparison, value: float | None) -> str:
    """With two significant digits of half the interval's width, at least one decimal."""
    half = (found.mean_interval[1] - found.mean_interval[0]) / 2
    decimals = max(1, 1 - math.floor(math.log10(half))) if 0 < half < math.inf else 2
    return "unknown" if value is None or math.isnan(value) else f"{round(value, decimals) + 0.0:.{decimals}f}"


def _evidence(found: Comparison) -> str:
    p = "p < 0.001" if found.p_holm < 0.001 else f"p = {found.p_holm:.{3 if found.p_holm < 0.1 else 2}f}"
    family = "one comparison" if found.comparisons == 1 else f"Holm, {found.comparisons} comparisons"
    return f"{_paired_cases(found)}, {p} ({family})"


def _paired_cases(found: Comparison) -> str:
    cases, patients = found.counts.cases, found.counts.patients
    return f"{cases} paired cases" if cases == patients else f"{cases} paired cases of {patients} patients"


def _missed(found: Comparison) -> str:
    a, b = found.counts.missed_by_a, found.counts.missed_by_b
    if not a and not b:
        return ""
    return f"; not in the mean: cases without a distance, missed or falsely predicted, {a} of {found.a} and {b} of {found.b}"


def _falsely_predicted(found: Comparison) -> str:
    """No Dice compares a false prediction with a right one of nothing, so such cases stand beside the difference."""
    what, it = ("any class", "one") if found.class_name is None else ("the class", "it")
    counts = ((found.a, found.counts.false_of_a), (found.b, found.counts.false_of_b))
    texts = [f"{_cases(number)} without {what} in which only {name} predicts {it}" for name, number in counts if number]
    return f"; left out: {' and '.join(texts)}" if texts else ""


def _cases(number: int) -> str:
    return f"{number} {'case' if number == 1 else 'cases'}"


class Leaders(NamedTuple):
    """The best of several models, and those from which the data do not distinguish it."""

    best: str
    others: tuple[str, ...]
    """Empty: `best` is significantly better than every other model (Holm), the winner."""


def leaders(comparisons: Sequence[Comparison]) -> Leaders:
    """From all pairs of one metric and class. Best: most pairs won minus lost, then the largest mean difference from the others."""
    if not comparisons:
        raise ValueError("a best model needs two models to compare, and there is no pair")
    models = dict.fromkeys(model for found in comparisons for model in (found.a, found.b))
    best = max(models, key=lambda model: _merit(model, comparisons))
    won = {model for found in comparisons for model in (found.a, found.b) if better(found) == best}
    return Leaders(best, tuple(model for model in models if model not in won | {best}))


def _merit(model: str, comparisons: Sequence[Comparison]) -> tuple[int, float]:
    own = [found for found in comparisons if model in (found.a, found.b)]
    decided = [1 if better(found) == model else -1 for found in own if better(found) is not None]
    means = [found.mean if found.b == model else -found.mean for found in own if not math.isnan(found.mean)]
    return sum(decided), sum(means) / max(len(means), 1)


def leaders_sentence(found: Leaders) -> str:
    """The verdict on several models."""
    if not found.others:
        return f"{found.best} is better than every other model"
    return f"{found.best} leads, but the data do not distinguish it from {' and '.join(found.others)}"
