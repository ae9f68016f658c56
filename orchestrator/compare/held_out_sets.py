"""The held-out test sets that the compared models were evaluated on, and the models compared on the cases of those that all of them have.

Two models meet on a test set alone where images and labels are the same, by their digest, and where the very weights that are compared
predicted it: all folds of a model, as an ensemble.
"""

import math
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.compare.models import TrainedModel
from orchestrator.compare.paired_scores import METRICS, class_pairs, pooled_pairs, score_table
from orchestrator.errors import ConfigError, StorageError
from orchestrator.run.patients import patients_of
from orchestrator.statistics.pairs import Comparison
from orchestrator.statistics.table import DICE
from orchestrator.statistics.verdict import leaders, leaders_sentence, sentence
from trainers.contract.held_out import HeldOutScores, scores_below
from trainers.contract.run_spec import CheckpointName, RunSpec
from trainers.contract.summary import SCORING, extended_summary


@dataclass(frozen=True)
class HeldOutSet:
    """One test set. A test set has scores of one model at least."""

    scores: Mapping[str, HeldOutScores]
    """Model -> how it did, of those that were evaluated on it."""
    summaries: Mapping[str, Mapping[str, object]]
    """Model -> means over the cases, per class and then over classes."""
    remarks: tuple[str, ...] = ()
    """What has to be known: which models it lacks and how they come to it, why models are not compared on it, who counts as a patient."""
    num_patients: int = 0
    pooled: Mapping[str, tuple[Comparison, ...]] = field(default_factory=dict)
    """Metric -> every pair of models, pooled over classes; empty unless all were evaluated on it. Seeds of one model count as one."""
    per_class: Mapping[str, tuple[Comparison, ...]] = field(default_factory=dict)
    """Class -> every pair by Dice; adjusted over the pairs of all classes together."""

    @property
    def first(self) -> HeldOutScores:
        """Those of any model, for what all have in common."""
        return next(iter(self.scores.values()))

    @property
    def label(self) -> str:
        """Its name, with the beginning of its digest."""
        return self.first.label

    def dice(self, model: str) -> float:
        """Mean Dice of a model; NaN where it has none."""
        value = self.summaries[model]["dice_mean"] if model in self.summaries else math.nan
        assert isinstance(value, float)
        return value

    @property
    def verdict(self) -> str:
        """Which model is better on it, as a clause; empty where models are not compared on it."""
        pairs = self.pooled.get(DICE.name, ())
        return (sentence(pairs[0]) if len(pairs) == 1 else leaders_sentence(leaders(pairs))) if pairs else ""

    @property
    def of_the_leader(self) -> list[Comparison]:
        """The pairs of the model that leads on it by Dice, in every metric."""
        pairs = self.pooled.get(DICE.name, ())
        best = leaders(pairs).best if pairs else ""
        return [found for each in self.pooled.values() for found in each if best in (found.a, found.b)]


def held_out_sets(
    models: Sequence[TrainedModel], bases: Mapping[str, str], checkpoint: CheckpointName, patients: str | None
) -> tuple[list[HeldOutSet], list[str]]:
    """Every test set of these models, those first that all models have; and a sentence for each record that cannot be read.

    `bases`: what each model is one seed of. `patients`: see `answer`.
    """
    by_set: dict[str, dict[str, HeldOutScores]] = {}
    damaged: list[str] = []
    for model in models:
        found, unread = _scores_of(model, checkpoint)
        damaged += unread
        for scores in found:
            by_set.setdefault(scores.sha256, {})[model.name] = scores
    sets = [_compared(scores, models, bases, patients) for scores in by_set.values()]
    return sorted(sets, key=lambda each: (-len(each.scores), each.label)), damaged


def _scores_of(model: TrainedModel, checkpoint: CheckpointName) -> tuple[list[HeldOutScores], list[str]]:
    """Those of the very weights that are compared, by the rule of today."""
    try:
        found, damaged = scores_below(model.folder)
    except (StorageError, OSError) as err:
        return [], [f"The test sets of {model.name} cannot be read: {str(err).removesuffix('.')}."]
    weights = sorted(fold.results[0].checkpoint_sha256 for fold in model.folds)
    every = (*model.published_test_sets, *found)  # of the same test set the last counts: the model folder's
    unread = [*model.unread_test_sets, *damaged]
    return [scores for scores in every if scores.checkpoint == checkpoint and _is_of(scores, weights)], unread


def _is_of(scores: HeldOutScores, weights: list[str]) -> bool:
    return sorted(scores.weights_sha256) == weights and all(result.scoring == SCORING for result in scores.results)


def _compared(
    scores: Mapping[str, HeldOutScores], models: Sequence[TrainedModel], bases: Mapping[str, str], patients: str | None
) -> HeldOutSet:
    """One test set, its models compared if it has all of them, and they are two at least."""
    named = {model.name: model for model in models}
    summaries = {name: extended_summary(each.results, named[name].labels) for name, each in scores.items()}
    doubts = tuple(_of_the_training(scores, models))
    if reasons := [*_lacking(scores, models), *_unlike(scores)]:
        return HeldOutSet(scores, summaries, (*doubts, *reasons))
    first = next(iter(scores.values()))
    cases = [result.case_id for result in first.results]
    try:
        patient_of = patients_of(patients, cases, "compare: --patients") if patients else {case: case for case in cases}
    except ConfigError:  # it names cases, which no report of runs with pseudonyms may
        why = f"Models are not compared on the test set {first.label}: --patients names no patient of some of its cases. Add them there."
        return HeldOutSet(scores, summaries, (*doubts, why))
    found = HeldOutSet(scores, summaries, (*doubts, *_remarks(scores, models, patients)), len(set(patient_of.values())))
    if len(models) == 1:
        return found
    worst_first = sorted(scores, key=lambda name: _to_sort_by(found.dice(name)))
    table = score_table({name: scores[name].results for name in worst_first}, patient_of)
    of_each = [bases[name] for name in worst_first]
    return replace(found, pooled=pooled_pairs(table, METRICS, of_each), per_class=class_pairs(table, of_each))


def place_in(sets: Sequence[HeldOutSet], model: str) -> tuple[float, ...]:
    """What models are sorted by before their cross-validation, the best first: Dice on each test set that all of them have. Pure."""
    return tuple(-_to_sort_by(each.dice(model)) for each in sets if each.pooled)


def _to_sort_by(dice: float) -> float:
    return -1.0 if math.isnan(dice) else dice


def _lacking(scores: Mapping[str, HeldOutScores], models: Sequence[TrainedModel]) -> Iterator[str]:
    """A sentence for each model that was not evaluated on a test set, with the command that does it."""
    first = next(iter(scores.values()))
    for model in models:
        if model.name in scores:
            continue
        if model.is_from_mlflow:
            yield (
                f"{model.name} has no scores of these weights on the test set {first.label} in MLflow, so that models are not compared on "
                "it: run its `nnfleet evaluate`, again if need be, where its run folders are seen."
            )
            continue
        meant = model.spec.model if len(model.folds) > 1 else model.spec.address
        best = " --checkpoint best" if first.checkpoint == "best" else ""
        folders = f"--images {shlex.quote(str(first.images))} --labels {shlex.quote(str(first.labels))}"
        yield (
            f"{model.name} has no scores of these weights on the test set {first.label}, so that models are not compared on it: "
            f"`nnfleet evaluate {meant} {folders}{best}`."
        )


def _unlike(scores: Mapping[str, HeldOutScores]) -> Iterator[str]:
    """Why scores on one test set cannot be compared, a sentence each."""
    label = next(iter(scores.values())).label
    if len({tuple(result.metrics) for each in scores.values() for result in each.results}) > 1:
        yield f"Models are not compared on the test set {label}: they have different classes."
    if len(tolerances := sorted({result.surface_tolerance_mm for each in scores.values() for result in each.results})) > 1:
        found = " and ".join(f"{mm:g}" for mm in tolerances)
        yield f"Models are not compared on the test set {label}: their surface Dice is at different tolerances, {found} mm."


def _of_the_training(scores: Mapping[str, HeldOutScores], models: Sequence[TrainedModel]) -> Iterator[str]:
    """A doubt whether a test set is one, which belongs to every score on it, compared or not."""
    first = next(iter(scores.values()))
    if text := doubt(first.label, [result.case_id for result in first.results], [fold.spec for model in models for fold in model.folds]):
        yield text


def doubt(label: str, cases: Collection[str], folds: Iterable[RunSpec]) -> str:
    """A sentence where cases of a test set are called as cases that these folds were trained or validated on; '' where none is. Pure."""
    seen = {*cases} & {case for spec in folds for case in (*spec.train_cases, *spec.val_cases)}
    return f"{len(seen)} of {len(cases)} cases of the test set {label} are called as cases of the training: is it held out?" if seen else ""


def _remarks(scores: Mapping[str, HeldOutScores], models: Sequence[TrainedModel], patients: str | None) -> Iterator[str]:
    """What a comparison on a test set must not be read without."""
    label = next(iter(scores.values())).label
    if len({len(each.folds) for each in scores.values()}) > 1:
        sizes = ", ".join(f"{name} {len(each.folds)}" for name, each in scores.items())
        yield f"On the test set {label} ensembles of different sizes are compared; folds: {sizes}."
    if not patients and any(fold.spec.patients for model in models for fold in model.folds):
        yield f"On the test set {label} each case counts as a patient: the experiments name none of its cases, --patients does."
