"""Which of these models is better: everything that the table, the report and scripts show, computed once."""

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.compare.held_out_sets import HeldOutSet, held_out_sets, place_in
from orchestrator.compare.models import RUN_FOLDER, TrainedModel, short_names
from orchestrator.compare.paired_scores import class_pairs, metrics_of, pooled_pairs, score_table
from orchestrator.compare.patients import patient_of_each, unlike_patients
from orchestrator.compare.schedules import early_ends, not_exact, schedules_of_variants, unlike_settings
from orchestrator.compare.unlike import differences
from orchestrator.errors import ConfigError
from orchestrator.run.patients import digest_of
from orchestrator.statistics.pairs import Comparison
from orchestrator.statistics.ranks import GroupRanks, RankStability, Scheme, rank_stability, ranks_by_case_group, ranks_by_model_group
from orchestrator.statistics.seeds import Agreement, SeedSpread, agreement, seed_spread
from orchestrator.statistics.table import DICE, CaseScores, ScoreTable
from orchestrator.statistics.verdict import leaders, leaders_sentence, sentence
from trainers.contract.run_spec import CheckpointName
from trainers.contract.summary import CaseResult, have_lesions, nan_mean

OPTIMISTIC = (
    "These are the best checkpoints, each chosen on its own validation fold: their scores are optimistic. "
    "The final checkpoints are the fair comparison."
)


@dataclass(frozen=True)
class Answer:
    """The comparison of models on one checkpoint."""

    dataset: str
    checkpoint: CheckpointName
    models: tuple[TrainedModel, ...]
    """Best mean Dice first: on the test sets that all of them have, then in the cross-validation."""
    missing: Mapping[str, tuple[str, ...]]
    """Model -> folds that another one of these models has and it has not."""
    forced: tuple[str, ...]
    """Why the models should not be compared, though somebody asked for it."""
    table: ScoreTable
    pooled: Mapping[str, tuple[Comparison, ...]]
    """Metric -> every pair of models, pooled over classes. Seeds of one model count as one."""
    per_class: Mapping[str, tuple[Comparison, ...]]
    """Class -> every pair of models by Dice; adjusted over the pairs of all classes together."""
    stability: Mapping[Scheme, RankStability]
    """By Dice, pooled; empty for one model, or where no case has a score of every model."""
    by_fold: Mapping[str, GroupRanks]
    """Fold -> the ranking in its cases. By mean Dice, pooled, as that by seed."""
    by_seed: Mapping[str, GroupRanks]
    """Seed -> the ranking of the models that were trained with it."""
    spreads: Mapping[str, SeedSpread]
    """Model -> spread of its mean Dice over seeds, pooled, where it has several."""
    cheap: Agreement
    """Between EMA pseudo-Dice and full Dice, of models within one fold."""
    held_out: tuple[HeldOutSet, ...] = ()
    """The test sets on which any of the models was evaluated, those first that all have."""
    unread: tuple[str, ...] = ()
    """A sentence for each record of a test set that cannot be read."""
    patients: str = ""
    """Digest of the patients that were named for this comparison; empty where they are those of the experiments, or each case is one."""

    @property
    def verdict(self) -> str:
        """The answer in a sentence for each test set that all models have and one for the cross-validation, and what it must not be read
        without.
        """
        pairs = self.pooled[DICE.name]
        if not pairs:
            return f"{self.models[0].name} is the only model: there is nothing to compare it with."
        clause = sentence(pairs[0]) if len(pairs) == 1 else leaders_sentence(leaders(pairs))
        tests = [f"On the test set {each.label}, {each.verdict}." for each in self.held_out if each.verdict]
        found = " ".join([*tests, f"In cross-validation, {clause}."]) if self.held_out else whole(clause)
        if self.forced:
            return f"{found} These models are not comparable, and were compared on request."
        unlike = unlike_settings(self.models)
        return f"{found} The schedules of these variants differ in {', '.join(unlike)}." if unlike else found

    @property
    def of_the_leader(self) -> list[Comparison]:
        """The pairs of the leading model by Dice, pooled."""
        pairs = self.pooled[DICE.name]
        best = leaders(pairs).best if pairs else ""
        return [found for found in pairs if best in (found.a, found.b)]

    @property
    def marks(self) -> tuple[str, ...]:
        """What stands in every output of a comparison that should not have been made."""
        return tuple(f"NOT COMPARABLE, compared on request: {reason}." for reason in self.forced)

    @property
    def is_from_mlflow(self) -> bool:
        """True when the results of any fold were read from MLflow."""
        return any(model.is_from_mlflow for model in self.models)

    @property
    def notes(self) -> list[str]:
        """What has to be known beside the numbers."""
        notes = list(self.marks)
        notes += [f"{name} lacks {_folds(folds)}: those cases are left out of its pairs." for name, folds in self.missing.items() if folds]
        notes += [whole(sentence) for sentence in (*schedules_of_variants(self.models), *early_ends(self.models), *not_exact(self.models))]
        notes += _without_lesions(self.models)
        notes += [remark for each in self.held_out for remark in each.remarks] + list(self.unread)
        if self.is_from_mlflow:
            notes.append(f"{sources_text(self.models)} MLflow gives no {' and no '.join(not_in_mlflow(self.models))}.")
        return [*notes, OPTIMISTIC] if self.checkpoint == "best" else notes


def answer(models: Sequence[TrainedModel], checkpoint: CheckpointName, patients: str | None = None, *, is_forced: bool = False) -> Answer:
    """Compare models. `patients`: a regular expression over case ids, whose group (else whose match) is the patient, or the path of a CSV
    table; default: the patients that the runs' experiments named, else each case is one.

    Raises ConfigError for models that cannot be compared, with what differs, unless `is_forced`; for an unfit pattern or table.
    """
    if not models:
        raise ConfigError("compare: there is no model to compare.")
    forced = _unlike(models, patients)
    unforceable = len({model.spec.dataset for model in models}) > 1
    if forced and (unforceable or not is_forced):
        alike = _naming_alike(models, patients) if len(models) > 1 else "Name runs that are alike"
        way = "Name models of one dataset." if unforceable else f"{alike}, or compare them all the same: --force."
        raise ConfigError(f"compare: {'; '.join(forced)}. {way}")
    base_of = dict(zip((model.name for model in models), _bases(models), strict=True))
    sets, unread = held_out_sets(models, base_of, checkpoint, patients)
    ordered = sorted(models, key=lambda model: (*place_in(sets, model.name), -mean_dice(model)))
    worst_first = ordered[::-1]  # the better model of a pair comes second: most differences are positive
    table = score_table({model.name: model.results for model in worst_first}, patient_of_each(worst_first, patients))
    bases = [base_of[model.name] for model in worst_first]
    dice = table.case_scores(DICE)
    return Answer(
        dataset=ordered[0].spec.dataset,
        checkpoint=checkpoint,
        models=tuple(ordered),
        missing=_missing_folds(ordered),
        forced=tuple(forced),
        table=table,
        pooled=pooled_pairs(table, metrics_of(model.results for model in ordered), bases),
        per_class=class_pairs(table, bases),
        stability=_stability(dice.averaged(bases)),
        by_fold=ranks_by_case_group(dice.averaged(bases), _fold_of_each(table.cases, ordered)),
        by_seed=ranks_by_model_group(dice, bases, [str(model.spec.seed) for model in ordered[::-1]]),
        spreads=seed_spread(dice, bases),
        cheap=_cheap(ordered),
        held_out=tuple(sets),
        unread=tuple(unread),
        patients=digest_of(patients, "compare: --patients") if patients else "",
    )


def _naming_alike(models: Sequence[TrainedModel], patients: str | None) -> str:
    """What to name instead of these models: which of them may be compared, with the command for the largest group. Pure."""
    groups: list[list[TrainedModel]] = []
    for model in models:
        fitting = (group for group in groups if not _unlike([*group, model], patients))
        if (group := next(fitting, None)) is not None:
            group.append(model)
        else:
            groups.append([model])
    addresses = [list(dict.fromkeys(model.spec.model for model in group)) for group in sorted(groups, key=len, reverse=True)]
    text = f"Name models that are alike (here: {'; '.join(', '.join(group) for group in addresses)})"
    others = {name for group in addresses[1:] for name in group}
    if len(addresses[0]) < 2 or others.intersection(addresses[0]):
        return text
    return f"{text}: nnfleet compare {shlex.join(addresses[0])}"


def _unlike(models: Sequence[TrainedModel], patients: str | None) -> list[str]:
    """Why these models should not be compared, a sentence each."""
    return [*differences(models), *([] if patients else unlike_patients(models))]


def _without_lesions(models: Sequence[TrainedModel]) -> list[str]:
    """A note where lesions were counted, but not in all cases of all models."""
    lacking = [model.name for model in models if not have_lesions(model.results)]
    if not lacking or not any(result.has_lesions for model in models for result in model.results):
        return []
    cure = "submit with `validation: {lesions: true}` and validate again, which predicts nothing anew"
    return [f"Lesions are not compared, as they were not counted in all cases of {', '.join(lacking)}: {cure}."]


def _bases(models: Sequence[TrainedModel]) -> list[str]:
    """What each model is one seed of; a copy has its seed too, and is a model of its own."""
    bases = short_names([model.folds[0] for model in models], with_seed=False)
    trainings = Counter(zip(bases, (model.spec.seed for model in models), strict=True))
    copied = {base for (base, _), count in trainings.items() if count > 1}
    bases = [model.name if base in copied else base for base, model in zip(bases, models, strict=True)]
    return [model.name for model in models] if len(set(bases)) == 1 else bases


def sources_text(models: Sequence[TrainedModel]) -> str:
    """Where the results of each fold were read: `Read from run folders: A fold 0; from MLflow at http://...: A folds 1, 2.`"""
    by_source: dict[str, dict[str, list[str]]] = {}
    for model in models:
        for fold in model.folds:
            by_source.setdefault(fold.source, {}).setdefault(model.name, []).append(str(fold.spec.fold))
    if len(by_source) == 1:
        return f"All results are read from {_source(next(iter(by_source)))}."
    parts = [
        f"from {_source(source)}: {', '.join(f'{name} {_folds(folds)}' for name, folds in found.items())}"
        for source, found in sorted(by_source.items(), key=lambda item: item[0] != RUN_FOLDER)
    ]
    return f"Results are read {'; '.join(parts)}."


def not_in_mlflow(models: Sequence[TrainedModel]) -> list[str]:
    """What a report lacks of the folds that were read from MLflow. Pure."""
    bare = sum(fold.source != RUN_FOLDER and not fold.history for model in models for fold in model.folds)
    return ["pictures of cases", *([f"curves of {bare} fold{'s' * (bare > 1)}"] if bare else [])]


def _source(source: str) -> str:
    return "run folders" if source == RUN_FOLDER else source


def whole(clause: str) -> str:
    """A clause as a sentence. A name at its beginning keeps its letters."""
    is_name = not clause.startswith(("the ", "so "))
    return f"{clause if is_name else clause[0].upper() + clause[1:]}."


def mean_dice(model: TrainedModel) -> float:
    """nnU-Net's number: over the cases of all folds per class, then over the classes; -1 where there is none, to sort by."""
    value = model.summary["dice_mean"]
    assert isinstance(value, float)
    return -1.0 if math.isnan(value) else value


def _stability(scores: CaseScores) -> dict[Scheme, RankStability]:
    try:
        return rank_stability(scores) if len(scores.models) > 1 else {}
    except ValueError:  # no case has a score of every model
        return {}


def _missing_folds(models: Sequence[TrainedModel]) -> dict[str, tuple[str, ...]]:
    every = sorted({str(fold.spec.fold) for model in models for fold in model.folds})
    return {model.name: tuple(sorted({*every} - {str(fold.spec.fold) for fold in model.folds})) for model in models}


def _fold_of_each(cases: Sequence[str], models: Sequence[TrainedModel]) -> list[str]:
    fold_of = {result.case_id: str(fold.spec.fold) for model in models for fold in model.folds for result in fold.results}
    return [fold_of[case] for case in cases]


def _folds(names: Sequence[str]) -> str:
    return f"fold {names[0]}" if len(names) == 1 else f"folds {', '.join(names)}"


def _cheap(models: Sequence[TrainedModel]) -> Agreement:
    """Models meet in a fold where they are validated with the same cases."""
    by_cases: dict[frozenset[str], list[tuple[float, float]]] = {}
    for fold in (fold for model in models for fold in model.folds):
        ema = math.nan if fold.ema_pseudo_dice is None else fold.ema_pseudo_dice
        by_cases.setdefault(frozenset(fold.spec.val_cases), []).append((ema, fold_dice(fold.results)))
    return agreement(list(by_cases.values()))


def fold_dice(results: Sequence[CaseResult]) -> float:
    """Mean over the cases of one fold of their mean Dice; NaN without any."""
    return nan_mean(result.dice_mean for result in results)
