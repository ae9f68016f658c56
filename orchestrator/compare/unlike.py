"""Whether models may be compared: the same dataset, classes, reference labels, splits, scoring and schedule; folds of one model trained
in one way. Pure."""

from collections import Counter
from collections.abc import Iterator, Sequence

from orchestrator.compare.models import TrainedModel
from orchestrator.compare.schedules import unlike_schedules
from orchestrator.export.fold_facts import facts_in, facts_of, listed_cases, unlike
from trainers.contract.run_folder import RunFolder
from trainers.contract.summary import SCORING, CaseResult, ClassMetrics


def differences(models: Sequence[TrainedModel]) -> list[str]:
    """Why these models cannot be compared, a sentence each; empty when they can."""
    found = [f"{model.name}: {text}" for model in models for text in (*unlike_folds_of(model), *_cases_twice(model))]
    found += [*_unlike_scoring(models), *unlike_schedules(models)]
    for other in models[1:]:
        found += _unlike_models(models[0], other)
    return found


def unlike_folds(folders: Sequence[RunFolder]) -> list[str]:
    """Why the runs in these folders are not folds of one model, a sentence each. Raises DataError, StorageError, OSError."""
    return unlike([facts_in(folder) for folder in folders])


def unlike_folds_of(model: TrainedModel) -> list[str]:
    """Why the folds of a model are not folds of one model, a clause each."""
    return unlike([facts_of(fold.spec, fold.early_end) for fold in model.folds])


def _cases_twice(model: TrainedModel) -> Iterator[str]:
    counts = Counter(result.case_id for result in model.results)
    if twice := sorted(case for case, count in counts.items() if count > 1):
        yield f"{listed_cases(twice)} validated in more than one fold"


def _unlike_scoring(models: Sequence[TrainedModel]) -> Iterator[str]:
    rules = {model.name: {result.scoring for result in model.results} for model in models}
    if len(set().union(*rules.values())) > 1:
        outdated = [name for name, used in rules.items() if used != {SCORING}]
        yield (
            f"HD95 and surface Dice of {', '.join(outdated)} are by the rules of another version: `nnfleet validate` scores the stored "
            "predictions anew"
        )


def _unlike_models(a: TrainedModel, b: TrainedModel) -> list[str]:
    pair = f"{a.name} and {b.name}"
    if a.spec.dataset != b.spec.dataset:
        return [f"{pair} are of different datasets: {a.spec.dataset} and {b.spec.dataset}"]
    classes = [list(model.results[0].metrics) for model in (a, b)]
    if classes[0] != classes[1]:
        return [f"{pair} have different classes: {', '.join(classes[0])} and {', '.join(classes[1])}"]
    by_case = {result.case_id: result for result in b.results}
    common = [(result, by_case[result.case_id]) for result in a.results if result.case_id in by_case]
    if not common:
        return [f"{pair} have no validated case in common"]
    found = []
    if other := sorted(mine.case_id for mine, theirs in common if not _same_reference(mine, theirs)):
        found.append(f"{pair} were validated against different reference labels: {listed_cases(other)}")
    tolerances = sorted({result.surface_tolerance_mm for model in (a, b) for result in model.results})
    if len(tolerances) > 1:
        found.append(f"{pair} have surface Dice at different tolerances: {' and '.join(f'{mm:g}' for mm in tolerances)} mm")
    return found + _unlike_splits(a, b)


def _same_reference(a: CaseResult, b: CaseResult) -> bool:
    """The same voxels of every class in the reference, and the same number of voxels in all."""
    return all(_reference(a.metrics[name]) == _reference(b.metrics[name]) for name in a.metrics)


def _reference(metrics: ClassMetrics) -> tuple[int, int]:
    return metrics.tp + metrics.fn, metrics.fp + metrics.tn


def _unlike_splits(a: TrainedModel, b: TrainedModel) -> list[str]:
    """A case that both validate must have been left out of the training of both together with the same other cases."""
    trained = [[(fold.spec.val_cases, frozenset(fold.spec.train_cases)) for fold in model.folds] for model in (a, b)]
    splits = [{case: others for cases, others in folds for case in cases} for folds in trained]
    if other := sorted(case for case in splits[0].keys() & splits[1].keys() if splits[0][case] != splits[1][case]):
        return [f"{a.name} and {b.name} were trained on different cases where they predict {listed_cases(other)}: the splits differ"]
    return []
