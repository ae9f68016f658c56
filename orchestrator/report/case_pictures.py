"""Which cases the report shows, by which names, and whether it may: pictures are drawn of runs with `images: true`, or on request."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.compare.models import TrainedModel
from orchestrator.report.case_files import CaseReader, Unreadable, has_files
from orchestrator.report.error_maps import error_map
from orchestrator.report.slice_viewer import SliceViewer, slice_viewer
from trainers.contract.pseudonyms import pseudonym, pseudonym_salt

log = logging.getLogger(__name__)

VIEWED = 2
"""Of the worst cases so many can be scrolled through."""
WITHOUT_IMAGES = "Pictures of cases are left out: some of these runs have `images: false`. On request: nnfleet compare --images."


@dataclass(frozen=True)
class CasePictures:
    """Pictures of cases for the report."""

    maps: Mapping[str, bytes]
    """Title -> PNG."""
    viewers: tuple[SliceViewer, ...] = ()
    left_out: str = ""
    """Why there are none."""
    unreadable: tuple[str, ...] = ()
    """A sentence for each file that is there and could not be shown."""


NO_PICTURES = CasePictures({})


def case_pictures(models: Sequence[TrainedModel], raw: Path | None, *, on_request: bool = False) -> CasePictures:
    """The worst, a median and the best case of the leading model. Files that are gone leave their case out; those
    that cannot be read are named, and the rest is drawn. Raises DataError."""
    if not on_request and not all(fold.spec.images for model in models for fold in model.folds):
        return CasePictures({}, left_out=WITHOUT_IMAGES)
    names, shown, leader = shown_names(models), shown_cases(models[0], models[1:]), models[0].name
    viewed = {case: f"worst case {place}" for place, case in enumerate(_ranked(models[0], models[1:])[:VIEWED], start=1)}
    wanted = [case for case in {**shown, **viewed} if has_files(case, models)]
    maps, viewers, unreadable = {}, [], []
    reader = CaseReader(models[0], raw) if wanted else None
    for case_id in wanted:
        assert reader is not None
        case, faults = reader.read(case_id, models)
        unreadable += [fault_sentence(fault, names[case_id], is_named=names[case_id] == case_id) for fault in faults]
        if case is not None and case_id in shown:
            maps[f"{shown[case_id]} case of {leader}: {names[case_id]}"] = error_map(case)
        if case is not None and case_id in viewed:
            viewers.append(slice_viewer(case, f"{viewed[case_id]} of {leader}: {names[case_id]}"))
    return CasePictures(maps, tuple(viewers), unreadable=tuple(unreadable))


def fault_sentence(fault: Unreadable, shown_name: str, *, is_named: bool) -> str:
    """What the report says of a file that cannot be shown. Unless the case `is_named` there, no path nor what a reader says of one: they go
    to the log alone.
    """
    cures = {"raw image": "Copy it there from its source.", "label file": "Restore it from the raw dataset's labelsTr."}
    cure = cures.get(fault.what, "Delete it: `nnfleet validate` then predicts its case anew.")
    whole = f"{shown_name}: the {fault.what} {fault.path} cannot be read: {fault.reason}. {cure}"
    if is_named:
        return whole
    log.warning("%s", whole)
    return f"{shown_name}: the {fault.what} cannot be read; the log names it."


def shown_cases(model: TrainedModel, others: Sequence[TrainedModel]) -> dict[str, str]:
    """Worst, median and best case of `model` by mean Dice among those that all models have, with what they are; fewer if it has fewer."""
    ranked = _ranked(model, others)
    if not ranked:
        return {}
    chosen = {ranked[-1]: "best", ranked[(len(ranked) - 1) // 2]: "median", ranked[0]: "worst"}  # of few cases the worst is shown
    return {case: chosen[case] for case in dict.fromkeys(ranked) if case in chosen}


def _ranked(model: TrainedModel, others: Sequence[TrainedModel]) -> list[str]:
    """The cases that all models have, by mean Dice of `model`, worst first."""
    common = set.intersection(*({result.case_id for result in each.results} for each in (model, *others)))
    return [result.case_id for result in sorted(model.results, key=lambda r: (r.dice_mean, r.case_id)) if result.case_id in common]


def shown_names(models: Sequence[TrainedModel]) -> dict[str, str]:
    """Case -> how the report names it: by its pseudonym where one of the models asks for that. Raises DataError.

    Cases that a model was trained on count too: a sentence of what differs may name them.
    """
    folds = [fold for model in models for fold in model.folds]
    cases = dict.fromkeys(result.case_id for fold in folds for result in fold.results)
    cases |= dict.fromkeys(case for fold in folds for case in (*fold.spec.train_cases, *fold.spec.val_cases))
    asking = next((model for model in models if model.has_pseudonyms), None)
    if asking is None:
        return {case: case for case in cases}
    salt = pseudonym_salt(asking.folder.parent)
    return {case: pseudonym(case, salt) for case in cases}


def renamed(text: str, names: Mapping[str, str]) -> str:
    """A sentence with the cases in it under their shown names."""
    if all(case == name for case, name in names.items()):
        return text
    cases = "|".join(re.escape(case) for case in sorted(names, key=len, reverse=True))
    return re.sub(rf"(?<![\w-])(?:{cases})(?![\w-])", lambda found: names[found[0]], text)
