"""Whether models were trained by the same schedule: epochs, iterations, learning rate. Pure.

Seeds and trainers are compared at one schedule, early ends included, as a longer training may win for being longer. Variants are there to
differ in it: that is said, not refused.
"""

from collections.abc import Sequence

from orchestrator.compare.models import TrainedModel
from trainers.contract.run_spec import Schedule


def unlike_schedules(models: Sequence[TrainedModel]) -> list[str]:
    """Models of one variant, or of none, that were trained by different schedules, a sentence each."""
    found = []
    for first, *others in _by_variant(models).values():
        for other in others:
            if changes := _changes(first, other):
                found.append(f"{other.name} was trained by another schedule than {first.name}: {', '.join(changes.values())}")
    return found


def schedules_of_variants(models: Sequence[TrainedModel]) -> list[str]:
    """In what each variant differs from the models that are none, or from the first variant, a sentence each."""
    groups = _by_variant(models)
    usual = "" if "" in groups else next(iter(groups))
    other = f"the variant {usual}" if usual else "the models that are no variants"
    return [
        f"the variant {variant} has another schedule than {other}: {', '.join(changes.values())}"
        for variant, group in groups.items()
        if (changes := _changes(groups[usual][0], group[0]))
    ]


def unlike_settings(models: Sequence[TrainedModel]) -> list[str]:
    """The settings of the schedule in which any two models differ."""
    return list(dict.fromkeys(name for model in models for name in _changes(models[0], model)))


def _by_variant(models: Sequence[TrainedModel]) -> dict[str, list[TrainedModel]]:
    groups: dict[str, list[TrainedModel]] = {}
    for model in models:
        groups.setdefault(model.spec.variant, []).append(model)
    return groups


def early_ends(models: Sequence[TrainedModel]) -> list[str]:
    """Which models ended before their schedule, as somebody asked, a sentence each."""
    return [f"{model.name} ended early, as asked: {model.early_end}" for model in models if model.early_end]


def not_exact(models: Sequence[TrainedModel]) -> list[str]:
    """Which models a trainer of the user's has trained by its own loop, a sentence each."""
    return [f"{model.name}: {model.spec.inexactness.removesuffix('.')}" for model in models if model.spec.inexactness]


def _changes(usual: TrainedModel, other: TrainedModel) -> dict[str, str]:
    """Setting -> `epochs (100 instead of 1000)`; an early end is one too."""
    names, schedules = Schedule.model_fields, (usual.spec.schedule, other.spec.schedule)
    values = {name: (getattr(schedules[0], name), getattr(schedules[1], name)) for name in names}
    values["early end"] = usual.early_end or "none", other.early_end or "none"
    return {name: f"{name} ({b} instead of {a})" for name, (a, b) in values.items() if a != b}
