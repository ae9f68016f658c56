"""Which runs are compared: those that were named, or all, as far as they have been validated; read from their folders below a results
folder, or from MLflow where the folders are not seen."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from orchestrator.compare.answer import Answer, answer
from orchestrator.compare.models import RUN_FOLDER, TrainedModel, Unfinished, ValidatedFold, models_of, read_fold
from orchestrator.compare.older import Coded, older_code
from orchestrator.compare.published_results import ResultServer, read_published
from orchestrator.compare.published_test_sets import published_scores
from orchestrator.compare.unlike import unlike_folds_of
from orchestrator.errors import ConfigError
from orchestrator.run.below import run_folders_below
from orchestrator.run.names import MAX_LISTED, Names, resolve_all
from orchestrator.run.progress import begun_or_taken_unix
from orchestrator.tracking.binding import noted_run_id, owners_last
from trainers.contract.commits import newest_committed
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointName, RunSpec
from trainers.errors import DataError, StorageError


@dataclass(frozen=True)
class Compared:
    """An answer, and what is not in it."""

    answer: Answer
    left: tuple[str, ...]
    """A sentence for each run that was left out, with the reason; one for all that are not validated yet."""


@dataclass(frozen=True)
class Candidate:
    """A run that may be compared."""

    names: Names
    read: Callable[[CheckpointName], ValidatedFold | str]
    """Its full validation with a checkpoint, or why there is none."""
    coded: Callable[[], Coded] = lambda: Coded("", 0.0)
    """By which code it is trained, also before it is validated, where its folder is seen."""


@dataclass(frozen=True)
class Places:
    """Where runs are looked for."""

    results: Path | None = None
    """A folder of results; its runs come before those of the same key in MLflow."""
    server: Callable[[], ResultServer] | None = None
    """A tracking server."""
    asks_server: bool = False
    """Ask it in any case; else only for what the results folder does not hold."""

    @property
    def text(self) -> str:
        """For errors."""
        if self.results is None:
            return "in MLflow alone (no folder of results is seen here: set nnUNet_results, or name --results)"
        return f"below {self.results}" + (" or in MLflow" if self.server else "")


def compared(
    places: Places | Path, names: Sequence[str], checkpoint: CheckpointName, patients: str | None = None, *, is_forced: bool = False
) -> Compared:
    """Compare the models of the runs in `places` (a folder of results stands for itself).

    A model whose folds are not alike, or without a case that the others have, is left out where it was not named by itself, and others are
    left. Raises ConfigError where a name means none, or nothing is left to compare; TrackingError.
    """
    places = Places(places) if isinstance(places, Path) else replace(places, server=places.server and cache(places.server))
    wanted, left = _wanted(places, names)
    folds: list[ValidatedFold] = []
    reasons: list[tuple[Names, str]] = []
    others: list[tuple[str, Coded]] = []
    for candidate in wanted:
        found = candidate.read(checkpoint)
        if isinstance(found, str):
            reasons.append((candidate.names, found))
            others.append((candidate.names.address.rpartition("/")[0], candidate.coded()))
        else:
            folds.append(found)
    left += left_out(reasons, checkpoint)
    if not is_forced:
        folds, older = _of_newest_code(folds, others)
        left += older
    if not folds:
        sentences = [f"compare: {places.text} no run has a full validation of its {checkpoint} checkpoint to compare.", *left[:3]]
        raise ConfigError(" ".join([*sentences, *_advice([reason for _, reason in reasons])]))
    models = [_with_test_sets(model, places) for model in models_of(joined(folds))]
    if len(models) > len(names) and not is_forced:  # else each of them was named
        models, unlike = _of_like_folds(models)
        models, apart = _of_common_cases(models)
        left += [*unlike, *apart]
    return Compared(answer(models, checkpoint, patients, is_forced=is_forced), tuple(left))


def _of_newest_code(folds: Sequence[ValidatedFold], others: Sequence[tuple[str, Coded]]) -> tuple[list[ValidatedFold], list[str]]:
    """The folds that were trained by the newest code of their model, and a sentence for each that was not. Pure.

    `others`: runs that are not validated yet, each by the address of its model.
    """
    why: dict[str, str] = {}
    for model in dict.fromkeys(fold.spec.model for fold in folds):
        own = [fold for fold in folds if fold.spec.model == model]
        beside = [coded for address, coded in others if address == model]
        texts = older_code([*(Coded(fold.spec.own.text, fold.begun_unix) for fold in own), *beside])
        why |= {fold.spec.run_key: text for fold, text in zip(own, texts, strict=False) if text}
    sentences = [
        f"{fold.spec.address} ({fold.spec.run_key}): trained by older code: {text}; named by its key alone it is compared."
        for fold in folds
        if (text := why.get(fold.spec.run_key))
    ]
    return [fold for fold in folds if fold.spec.run_key not in why], sentences


def _of_like_folds(models: Sequence[TrainedModel]) -> tuple[list[TrainedModel], list[str]]:
    """The models whose folds were trained in one way, and a sentence for each other one; all of them where there is no such model. Pure."""
    found = {id(model): list(unlike_folds_of(model)) for model in models}
    alike = [model for model in models if not found[id(model)]]
    if not alike:
        return list(models), []
    return alike, [f"{model.spec.model}: its folds are not alike: {'; '.join(found[id(model)])}." for model in models if found[id(model)]]


def _of_common_cases(models: Sequence[TrainedModel]) -> tuple[list[TrainedModel], list[str]]:
    """The models that share a case with one of them, which comes first, and a sentence for each other one. Pure.

    It is the one that most others share cases with. All of them where no two share one, or where they are of several datasets.
    """
    cases = [{result.case_id for result in model.results} for model in models]
    common = [[not own.isdisjoint(other) for other in cases] for own in cases]
    place = max(range(len(models)), key=lambda row: (sum(common[row]), len(cases[row])))
    if all(common[0]) or sum(common[place]) < 2 or len({model.spec.dataset for model in models}) > 1:
        return list(models), []
    first = models[place]
    others = [(model, is_common) for model, is_common in zip(models, common[place], strict=True) if model is not first]
    sentences = [
        f"{model.spec.model}: its validated folds ({', '.join(str(fold.spec.fold) for fold in model.folds)}) have no case in common with "
        f"{first.spec.model}; named with models that have its cases it is compared."
        for model, is_common in others
        if not is_common
    ]
    return [first, *(model for model, is_common in others if is_common)], sentences


def _advice(reasons: Sequence[str]) -> list[str]:
    """What to do where no run can be compared; the other reasons have their own advice. Pure."""
    if any(isinstance(reason, Unfinished) for reason in reasons):
        return ["They are compared once their full validation is done: `nnfleet status` shows how far they are."]
    return [] if reasons else ["Train first."]


def _with_test_sets(model: TrainedModel, places: Places) -> TrainedModel:
    """A model with what MLflow holds of its test sets, where its model folder may not be seen. Raises TrackingError."""
    if places.server is None or not model.is_from_mlflow:
        return model
    found, unread = published_scores(places.server(), model)
    return replace(model, published_test_sets=tuple(found), unread_test_sets=tuple(unread))


def left_out(reasons: Sequence[tuple[Names, str]], checkpoint: CheckpointName) -> list[str]:
    """A sentence for each run that is not compared, but one for all that are not validated yet. Pure."""
    unfinished = [names.address for names, reason in reasons if isinstance(reason, Unfinished)]
    if len(unfinished) < 2:
        return [f"{names.address} ({names.run_key}): {reason}." for names, reason in reasons]
    more = f" and {len(unfinished) - MAX_LISTED} more" if len(unfinished) > MAX_LISTED else ""
    text = f"{len(unfinished)} runs whose {checkpoint} checkpoint is not fully validated yet: {', '.join(unfinished[:MAX_LISTED])}{more}."
    others = [(names, reason) for names, reason in reasons if not isinstance(reason, Unfinished)]
    return [text, *left_out(others, checkpoint)]


def _wanted(places: Places, names: Sequence[str]) -> tuple[list[Candidate], list[str]]:
    """The runs that are meant, and a sentence for each folder whose run cannot be read."""
    known, damaged = ([], []) if places.results is None else _in_folders(places.results)
    if places.server is not None and (places.asks_server or not _holds(known, names)):
        known = [*_in_mlflow(places.server(), {candidate.names.run_key for candidate in known}), *known]
    if names:
        return [known[i] for i in resolve_all(names, [candidate.names for candidate in known], places.text, left=damaged)], damaged
    owners = {candidate.names.folder or candidate.names.mlflow_run_id: candidate for candidate in known}  # of one folder the last owns it
    return list(owners.values()), damaged


def _holds(known: Sequence[Candidate], names: Sequence[str]) -> bool:
    """True when every name means some of these, or there are any where none is named."""
    try:
        return bool(known) and bool(resolve_all(names, [candidate.names for candidate in known], "") or not names)
    except ConfigError:
        return False


def joined(folds: Sequence[ValidatedFold]) -> list[ValidatedFold]:
    """Folds from MLflow as folds of the model folder that others of theirs are seen in, wherever it lies now. Pure.

    Where it has been copied, so that there are two, they stay a model of their own.
    """
    seen = {fold.folder.model_folder: fold.spec.model_folder for fold in folds if fold.source == RUN_FOLDER}
    copies = Counter(seen.values())
    place = {trained: now for now, trained in seen.items() if copies[trained] == 1}
    return [
        fold
        if fold.source == RUN_FOLDER or fold.spec.model_folder not in place
        else replace(fold, folder=RunFolder(place[fold.spec.model_folder] / fold.folder.root.name))
        for fold in folds
    ]


def _in_folders(results: Path) -> tuple[list[Candidate], list[str]]:
    """All runs of ours, each with the id of its MLflow run, and a sentence for each folder whose run cannot be read."""
    runs, damaged = [], []
    for folder in run_folders_below(results):
        try:
            spec = folder.spec()
            names = Names(spec.run_key, spec.address, noted_run_id(folder), str(folder.root))
        except (DataError, StorageError) as err:
            damaged.append(str(err))
        else:
            runs.append(Candidate(names, partial(_fold, folder, spec), partial(_coded, folder, spec)))
    return runs, damaged


def _fold(folder: RunFolder, spec: RunSpec, checkpoint: CheckpointName) -> ValidatedFold | str:
    """As `read_fold`; a folder that is away or refused gives a reason too."""
    try:
        return read_fold(folder, spec, checkpoint)
    except (StorageError, OSError) as err:
        return str(err).removesuffix(".")


def _coded(folder: RunFolder, spec: RunSpec) -> Coded:
    """By which code a run is trained, and when it began or was taken up."""
    try:
        committed = newest_committed(folder) if spec.own.named else None
        return Coded(spec.own.text, begun_or_taken_unix(folder, committed))
    except (StorageError, OSError):
        return Coded("", 0.0)


def _in_mlflow(server: ResultServer, seen: set[str]) -> list[Candidate]:
    """The runs on a tracking server whose folders are not seen."""
    names = [name for name in owners_last(server.run_names()) if name.run_key not in seen]
    return [Candidate(name, partial(read_published, server, name.mlflow_run_id)) for name in names]
