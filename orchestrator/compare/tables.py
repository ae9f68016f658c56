"""The tables of a comparison, for the terminal and the report alike, and the JSON for scripts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.compare.answer import Answer
from orchestrator.compare.cheap import CheapAndFull
from orchestrator.compare.held_out_tables import dice_cells, dice_columns, held_out_json
from orchestrator.compare.models import TrainedModel, ValidatedFold
from orchestrator.compare.text_table import MEANS_HEAD, TextTable, means_cells, number, pair_json
from orchestrator.statistics.ranks import GroupRanks
from orchestrator.statistics.table import DICE, LESION_DICE, LESION_FALSE_POSITIVES, LESION_SENSITIVITY
from trainers.contract.lesions import LESION_SCORES

MOST_DIFFERENT = 8
"""Cases that are listed."""
_SUMMARY_KEYS = ("dice_mean", "hd95_mm_mean", "nsd_mean", *LESION_SCORES, "classes")
_LESION_HEADS = {
    LESION_SENSITIVITY.name: "lesion sensitivity",
    LESION_FALSE_POSITIVES.name: "false lesions per case",
    LESION_DICE.name: "lesion Dice",
}


def models_table(answer: Answer) -> TextTable:
    """A row per model: its folds; its Dice on each test set; then cases, Dice, HD95 and surface Dice of the cross-validation over the cases
    of all folds; missed: classes that it did not find.

    Where lesions were counted: sensitivity, false positives per case and lesion-wise Dice, per class and then over classes.
    """
    head = ("model", "folds", *dice_columns(answer.held_out), "cases", *MEANS_HEAD)
    lesions = {name: title for name, title in _LESION_HEADS.items() if name in answer.pooled}
    return TextTable((*head, *lesions.values()), tuple(_model_row(model, answer, list(lesions)) for model in answer.models))


def _model_row(model: TrainedModel, answer: Answer, lesions: Sequence[str]) -> tuple[str, ...]:
    summary = model.summary
    folds = ", ".join(str(fold.spec.fold) for fold in model.folds)
    lacking = answer.missing[model.name]
    return (
        model.name,
        folds + (f" (without {', '.join(lacking)})" if lacking else ""),
        *dice_cells(answer.held_out, model.name),
        str(len(model.results)),
        *means_cells(summary),
        *(number(summary[name], 4 if name != LESION_FALSE_POSITIVES.name else 2) for name in lesions),
    )


def classes_table(answer: Answer) -> TextTable:
    """A row per class: the mean Dice of each model, and in how many cases the class has one."""
    head = ("class", *(model.name for model in answer.models), "cases")
    rows = []
    for name in answer.table.classes:
        values = [_classes(model)[name] for model in answer.models]
        counts = sorted({int(value["n_dice"]) for value in values})
        rows.append((name, *(number(value["dice"], 4) for value in values), "-".join(map(str, {counts[0]: 0, counts[-1]: 0}))))
    return TextTable(head, tuple(rows))


def cases_table(answer: Answer, names: Mapping[str, str]) -> TextTable | None:
    """The cases in which the two leading models differ most, by Dice; None where there are no two. `names`: how to name each case."""
    if len(answer.models) < 2:
        return None
    first, second = answer.models[0].name, answer.models[1].name
    scores = answer.table.case_scores(DICE)
    a, b = (scores.values[scores.models.index(name)] for name in (first, second))
    both = [place for place in range(len(answer.table.cases)) if math.isfinite(a[place]) and math.isfinite(b[place])]
    both.sort(key=lambda place: -abs(a[place] - b[place]))
    rows = tuple(
        (names[answer.table.cases[i]], number(float(a[i]), 1), number(float(b[i]), 1), number(float(a[i] - b[i]), 1))
        for i in both[:MOST_DIFFERENT]
    )
    return TextTable(("case", first, second, "difference"), rows) if rows else None


def groups_table(answer: Answer) -> TextTable | None:
    """A row per fold and per seed: the rank of each model there, and how far the ranking agrees with that over all; None where there is one
    of each.
    """
    models = list(dict.fromkeys(name for found in answer.by_seed.values() for name in found.models[::-1]))
    groups = (("fold", answer.by_fold), ("seed", answer.by_seed))
    rows = [
        _group_row(f"{kind} {name}", found, models)
        for kind, by in groups
        if len(by) > 1
        for name, found in sorted(by.items(), key=_by_number)
    ]
    return TextTable(("rank", *models, "patients", "Kendall's tau"), tuple(rows)) if rows else None


def _by_number(group: tuple[str, GroupRanks]) -> tuple[int, str]:
    return len(group[0]), group[0]


def _group_row(name: str, found: GroupRanks, models: Sequence[str]) -> tuple[str, ...]:
    ranks = dict(zip(found.models, map(str, found.ranks), strict=True)) if found.patients else {}
    return (name, *(ranks.get(model, "-") for model in models), str(found.patients), number(found.tau, 2))


def checkpoints_table(answer: Answer) -> TextTable:
    """A row per fold of each model: EMA pseudo-Dice and full Dice of the final and of the best checkpoint, where they are known."""
    head = ("run", "final: EMA pseudo-Dice", "final: full Dice", "best: EMA pseudo-Dice", "best: full Dice (optimistic)")
    return TextTable(head, tuple(_checkpoints_row(model, fold) for model in answer.models for fold in model.folds))


def _checkpoints_row(model: TrainedModel, fold: ValidatedFold) -> tuple[str, ...]:
    unknown = CheapAndFull(math.nan, math.nan)
    values = (*fold.checkpoints.get("final", unknown), *fold.checkpoints.get("best", unknown))
    return (f"{model.name}, fold {fold.spec.fold}", *(number(value, 4) for value in values))


def candidates_table(answer: Answer) -> TextTable | None:
    """A row per candidate of each fold: EMA pseudo-Dice and full Dice; None where no run keeps candidates."""
    rows = [
        (
            f"{model.name}, fold {fold.spec.fold}",
            str(score.epoch),
            number(_float(score.ema_pseudo_dice), 4),
            number(_float(score.dice), 4),
            ", ".join([*score.also, *(["winner (optimistic)"] if score.epoch == fold.candidates.winner else [])]),
        )
        for model in answer.models
        for fold in model.folds
        if fold.candidates is not None
        for score in fold.candidates.scores
    ]
    return TextTable(("run", "epoch", "EMA pseudo-Dice", "full Dice (optimistic)", "checkpoint"), tuple(rows)) if rows else None


def _float(value: float | None) -> float:
    return math.nan if value is None else value


def as_json(answer: Answer) -> dict[str, Any]:
    """The answer for scripts: numbers as numbers, NaN where there is none."""
    return {
        "dataset": answer.dataset,
        "checkpoint": answer.checkpoint,
        "verdict": answer.verdict,
        "notes": answer.notes,
        "not_comparable": list(answer.forced),
        "test_sets": [held_out_json(each, [model.name for model in answer.models]) for each in answer.held_out],
        "models": [
            {
                "name": model.name,
                "folder": str(model.folder),
                "folds": [str(fold.spec.fold) for fold in model.folds],
                "sources": {str(fold.spec.fold): fold.source for fold in model.folds},
                "missing_folds": list(answer.missing[model.name]),
                "cases": len(model.results),
                **{key: model.summary[key] for key in _SUMMARY_KEYS if key in model.summary},
                "checkpoints": {
                    str(fold.spec.fold): {name: scores._asdict() for name, scores in fold.checkpoints.items()} for fold in model.folds
                },
                **_candidates_json(model),
            }
            for model in answer.models
        ],
        "pairs": {metric: [pair_json(found) for found in pairs] for metric, pairs in answer.pooled.items()},
        "pairs_per_class": {name: [pair_json(found) for found in pairs] for name, pairs in answer.per_class.items()},
        "rank_shares": {
            scheme: {model: [float(share) for share in shares] for model, shares in zip(found.models, found.shares, strict=True)}
            for scheme, found in answer.stability.items()
        },
        "ranks_by_fold": {fold: _group_json(found) for fold, found in answer.by_fold.items()},
        "ranks_by_seed": {seed: _group_json(found) for seed, found in answer.by_seed.items()},
        "seed_spread_dice_points": {name: spread.sd for name, spread in answer.spreads.items()},
        "ema_against_full_dice": answer.cheap._asdict(),
    }


def _candidates_json(model: TrainedModel) -> dict[str, Any]:
    """By fold, of the runs that keep candidates."""
    found = {str(fold.spec.fold): fold.candidates.model_dump() for fold in model.folds if fold.candidates is not None}
    return {"candidates_optimistic": found} if found else {}


def _group_json(found: GroupRanks) -> dict[str, Any]:
    ranks = dict(zip(found.models, map(int, found.ranks), strict=True)) if found.patients else {}
    return {"ranks": ranks, "patients": found.patients, "tau": found.tau}


def _classes(model: TrainedModel) -> Mapping[str, Mapping[str, float]]:
    classes = model.summary["classes"]
    assert isinstance(classes, dict)
    return classes
