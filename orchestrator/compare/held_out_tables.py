"""What a comparison shows of held-out test sets: their columns in the table of models, a table of their own, and the JSON for scripts."""

from typing import Any

from orchestrator.compare.held_out_sets import HeldOutSet
from orchestrator.compare.text_table import MEANS_HEAD, TextTable, means_cells, number, pair_json


def dice_columns(sets: tuple[HeldOutSet, ...]) -> tuple[str, ...]:
    """The heads of the columns that stand before the cross-validation: mean Dice on each test set."""
    return tuple(f"Dice, {each.label}" for each in sets)


def dice_cells(sets: tuple[HeldOutSet, ...], model: str) -> tuple[str, ...]:
    """The cells of a model in these columns."""
    return tuple(number(each.dice(model), 4) for each in sets)


def held_out_table(found: HeldOutSet, models: list[str]) -> TextTable:
    """A row per model: folds, Dice, HD95 and surface Dice; missed: classes that it did not find. Models without scores have none."""
    return TextTable(("model", "folds", *MEANS_HEAD), tuple(_row(found, model) for model in models))


def _row(found: HeldOutSet, model: str) -> tuple[str, ...]:
    if model not in found.scores:
        return (model, "-", *("-" for _ in MEANS_HEAD))
    return (model, ", ".join(found.scores[model].folds), *means_cells(found.summaries[model]))


def held_out_json(found: HeldOutSet, models: list[str]) -> dict[str, Any]:
    """One test set for scripts. `missing`: the models that were not evaluated on it."""
    keys = ("dice_mean", "hd95_mm_mean", "nsd_mean", "classes")
    return {
        "name": found.label,
        "sha256": found.first.sha256,
        "cases": len(found.first.results),
        "patients": found.num_patients,
        "models": {
            model: {"folds": list(scores.folds), "images": str(scores.images), **{key: found.summaries[model][key] for key in keys}}
            for model, scores in found.scores.items()
        },
        "missing": [model for model in models if model not in found.scores],
        "pairs": {metric: [pair_json(each) for each in pairs] for metric, pairs in found.pooled.items()},
        "pairs_per_class": {name: [pair_json(each) for each in pairs] for name, pairs in found.per_class.items()},
    }
