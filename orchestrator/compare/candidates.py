"""Whether the best epoch by pseudo-Dice is the best by Dice: final, best and the winner among the candidates, paired by case. Pure."""

import math
from collections.abc import Mapping, Sequence

from orchestrator.compare.answer import fold_dice, whole
from orchestrator.compare.paired_scores import score_table
from orchestrator.run.candidates import Candidates, CandidateScore
from orchestrator.statistics.pairs import compare_all
from orchestrator.statistics.table import DICE
from orchestrator.statistics.verdict import sentence
from trainers.contract.candidates import candidate_epochs
from trainers.contract.commits import Committed, Manifest
from trainers.contract.plans import Labels
from trainers.contract.run_spec import WeightsName
from trainers.contract.summary import CaseResult, extended_summary

Results = Mapping[WeightsName, Sequence[CaseResult]]
OPTIMISTIC = "optimistic"


def judged(committed: Committed, results: Results, labels: Labels, patients: Mapping[str, str], count: int) -> Candidates:
    """What full validations say of the candidates of a commit, which should be `count`, as far as there were epochs.

    `results`: of every case, by what was validated. `patients`: case -> patient, where they are known; else each case is one. An epoch
    whose weights were lost, now or in an earlier start of the workers, has no result and is named.
    """
    there = [manifest for manifest in committed.candidates if results.get(manifest.checkpoint)]
    found = [_score(manifest, committed, results[manifest.checkpoint], labels) for manifest in there]
    known = [score for score in found if score.dice is not None]
    winner = max(known, key=lambda score: score.dice or 0.0, default=None)  # of equal ones the higher EMA, which comes first
    validated = {manifest.epoch for manifest in there}
    lost = [epoch for epoch in candidate_epochs(committed.history, count) if epoch not in validated]
    return Candidates(
        scores=tuple(found),
        winner=winner.epoch if winner else None,
        sentences=(*_choice(winner, len(found)), *_differences(committed, results, winner, patients), *map(_loss, lost)),
    )


def _score(manifest: Manifest, committed: Committed, results: Sequence[CaseResult], labels: Labels) -> CandidateScore:
    return CandidateScore(
        epoch=manifest.epoch,
        ema_pseudo_dice=manifest.ema_pseudo_dice,
        dice=_known(fold_dice(results)),
        dice_mean=_known(float(extended_summary(results, labels)["dice_mean"])),
        also=tuple(name for name, other in committed.checkpoints.items() if other.origin == manifest.origin),
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _choice(winner: CandidateScore | None, count: int) -> list[str]:
    if winner is None:
        return ["No candidate has a Dice, as no case of the fold has one." if count else "No candidate was validated."]
    same = f" Its weights are those of the {' and the '.join(winner.also)} checkpoint." if winner.also else ""
    return [
        f"Of {count} candidates, the epochs of the highest EMA pseudo-Dice, epoch {winner.epoch} has the highest full Dice, "
        f"{winner.dice:.4f} ({OPTIMISTIC}: it is chosen on its own validation fold).{same} The final checkpoint stays the fair one."
    ]


def _loss(epoch: int) -> str:
    return f"The weights of epoch {epoch} are damaged or missing: it was not validated."


def _differences(committed: Committed, results: Results, winner: CandidateScore | None, patients: Mapping[str, str]) -> list[str]:
    """A sentence for each pair of final, best and winner, as far as they are different weights."""
    compared = _compared(committed, results, winner)
    if len(compared) < 2:
        return []
    cases = {result.case_id for found in compared.values() for result in found}
    table = score_table(compared, {case: patients.get(case, case) for case in cases})
    return [whole(sentence(pair)) for pair in compare_all(table.case_scores(DICE))]


def _compared(committed: Committed, results: Results, winner: CandidateScore | None) -> dict[str, Sequence[CaseResult]]:
    """Name in sentences -> results; the same weights once, and those of the best also where only their candidate was validated."""
    of_weights = {manifest.origin: results[name] for name, manifest in committed.weights.items() if results.get(name)}
    wanted = {"final": committed.final, f"best ({OPTIMISTIC})": committed.best}
    won = [manifest for manifest in committed.candidates if winner and manifest.epoch == winner.epoch]
    wanted |= {f"epoch {manifest.epoch} ({OPTIMISTIC})": manifest for manifest in won}
    found: dict[str, Sequence[CaseResult]] = {}
    for name, manifest in wanted.items():
        own = of_weights.pop(manifest.origin, None) if manifest else None
        found |= {name: own} if own else {}
    return found
