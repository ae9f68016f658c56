"""The patients of a comparison: those that somebody names for it, else those that the runs' experiments named. Pure, but for a table."""

from collections.abc import Sequence

from orchestrator.compare.models import TrainedModel
from orchestrator.errors import ConfigError
from orchestrator.export.fold_facts import listed_cases
from orchestrator.run.patients import patients_of


def patient_of_each(models: Sequence[TrainedModel], patients: str | None) -> dict[str, str]:
    """Case -> patient. `patients`: a pattern or a table for all; else what the runs record; else each case is one.

    Raises ConfigError for a case without a patient, and for an unfit pattern or table.
    """
    cases = list(dict.fromkeys(result.case_id for model in models for result in model.results))
    if patients:
        return patients_of(patients, cases, "compare: --patients")
    recorded = _recorded(models)
    if not recorded:
        return {case: case for case in cases}
    if lacking := [case for case in cases if case not in recorded]:
        raise ConfigError(
            f"compare: the experiments of some of these runs name patients, and none of them that of {listed_cases(lacking)}. "
            "Name the patients of all: --patients."
        )
    return {case: recorded[case] for case in cases}


def _recorded(models: Sequence[TrainedModel]) -> dict[str, str]:
    """What the experiments named; where they contradict each other, the first counts (see `unlike_patients`)."""
    found: dict[str, str] = {}
    for model in models:
        for fold in model.folds:
            found = {**(fold.spec.patients or {}), **found}
    return found


def unlike_patients(models: Sequence[TrainedModel]) -> list[str]:
    """Models whose experiments name another patient for the same case, a sentence each. A run that names none says nothing."""
    first: dict[str, tuple[str, str]] = {}
    other: dict[tuple[str, str], list[str]] = {}
    for model in models:
        for case, patient in (pair for fold in model.folds for pair in (fold.spec.patients or {}).items()):
            named, by = first.setdefault(case, (patient, model.name))
            if named != patient:
                other.setdefault((by, model.name), []).append(case)
    return [f"the experiments of {a} and {b} name other patients for {listed_cases(sorted(cases))}" for (a, b), cases in other.items()]
