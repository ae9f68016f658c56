"""The first stage of a cascade whose second stage predicts a held-out test set: which folds, by the runs' record, and their weights."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath

from orchestrator.dataset.previous_stage import DIGITS, contents_of_previous
from orchestrator.dataset.problems import listed
from orchestrator.errors import ConfigError, DataError
from orchestrator.validation.cases import digest_of_named
from trainers.contract.cascade import NextStageRecord, first_stage_folder, predictions_of, read_record
from trainers.contract.held_out import FirstStage
from trainers.contract.plans import load_dataset_json, load_plans
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import NOTHING_OWN, RunSpec, made_by
from trainers.storage.faults import reading
from trainers.storage.files import read_json

_A_RUN = made_by("")


def first_stage_of(folds: Sequence[RunFolder]) -> FirstStage | None:
    """What the first stage of these folds of a model predicts with; None for a model that stands alone.

    Raises as `first_stage_folds`, ConfigError where the segmentations beside it show that its weights are others now, CheckpointError, and
    DataError where the plans of its model folder are missing or broken.
    """
    found = first_stage_folds(folds)
    if not found:
        return None
    spec, place = _spec_of(found[0], folds[0].spec()), found[0].model_folder
    load_dataset_json(place)
    load_plans(place, "plans").configuration(spec.configuration)
    weights = tuple(digest_of_named(fold, "final") for fold in found)
    _refuse_changed(folds, found, weights)
    return FirstStage(spec=spec, checkpoint_files=tuple(fold.checkpoint("final") for fold in found), weights_sha256=weights)


def first_stage_folds(folds: Sequence[RunFolder]) -> list[RunFolder]:
    """The folds of the first stage that made the segmentations which these folds of a model were trained on; none where it stands alone.

    Raises ConfigError where one of them is away or was replaced or has no final weights; DataError, StorageError.
    """
    specs = [fold.spec() for fold in folds]
    stage = specs[0].previous_stage
    if stage is None:
        return []
    sources, place = _sources(specs), first_stage_folder(specs[0], stage.configuration, folds[0].model_folder)
    there = _folds_in(place)
    found = {*_runs(specs[0], place, there, sources.values()), *_of_nnunet(specs[0], place, there, sources)}
    used = [fold for fold in there if fold in found]
    if lacking := [str(fold.checkpoint("final")) for fold in used if not fold.checkpoint("final").is_file()]:
        raise ConfigError(
            f"{_absence(specs[0])} {', '.join(lacking)} {'do' if len(lacking) > 1 else 'does'} not exist. Put it back from a backup or by "
            "`nnfleet export`."
        )
    return used


def _refuse_changed(folds: Sequence[RunFolder], found: Sequence[RunFolder], weights: Sequence[str]) -> None:
    """Raise ConfigError where segmentations beside the first stage are others than those that the folds were trained on, or were made by
    other final weights than those of its `found` folds, which have the same run keys. Of a case without one nothing is known."""
    spec = folds[0].spec()
    place = predictions_of(found[0].model_folder, spec.configuration)
    noted = [_noted(fold) for fold in folds]
    present = contents_of_previous(place, sorted({case for cases in noted for case in cases}), folds[0].model_folder.parent)
    now = {case: reading.sha256[:DIGITS] for case, reading in present.items() if not reading.fault}
    anew = f"or train {spec.configuration!r} anew: submit with another `replicate` and --replace."
    if changed := sorted({case for cases in noted for case, digest in cases.items() if now.get(case, digest) != digest}):
        raise ConfigError(
            f"{_change(spec)} in {place} the segmentation of {listed(changed)} is not the one that it was trained on. Put folds and "
            f"segmentations of the first stage back from a backup, {anew}"
        )
    of_run = {fold.spec().run_key: digest for fold, digest in zip(found, weights, strict=True) if fold.spec_file.is_file()}
    if by_others := sorted(case for case in _sources([spec]) if not _is_by(read_record(place, case), of_run)):
        raise ConfigError(
            f"{_change(spec)} the final weights in {found[0].model_folder} did not make the segmentation of {listed(by_others)} in "
            f"{place}. Put checkpoint_final.pth of the folds that were validated on them back, from a backup or by `nnfleet export`, or "
            f"validate the first stage again, {anew}"
        )


def _is_by(record: NextStageRecord | None, of_run: Mapping[str, str]) -> bool:
    """Whether weights as they are now, by run key, made a segmentation, as far as its record names them. Pure."""
    return record is None or of_run.get(record.run_key, record.checkpoint_sha256) == record.checkpoint_sha256


def _noted(fold: RunFolder) -> dict[str, str]:
    """Case -> first digits of the SHA-256 of the segmentation that a fold was trained on, as far as they are known. Raises DataError."""
    stage = fold.spec().previous_stage
    sources = {case: source for case, source in stage.sources.items() if not source.startswith(_A_RUN)} if stage else {}
    begun_with: dict[str, str] = read_json(fold.previous_stage_file, "run folder") if fold.previous_stage_file.is_file() else {}
    return {case: digest for case, digest in {**sources, **begun_with}.items() if digest}


def _change(spec: RunSpec) -> str:
    stage = spec.previous_stage.configuration if spec.previous_stage else ""
    return f"test set: {spec.model} is the second stage of a cascade, and its first stage {stage!r} is not the one that it was trained on:"


def _absence(spec: RunSpec) -> str:
    stage = spec.previous_stage.configuration if spec.previous_stage else ""
    return f"test set: {spec.model} is the second stage of a cascade, and what its first stage {stage!r} predicts with is not all there:"


def _sources(specs: Sequence[RunSpec]) -> dict[str, str]:
    """Which segmentation of each case the folds saw, as `PreviousStage.sources`; '' where no record names it. Of all folds the same."""
    noted = {case: source for spec in specs if spec.previous_stage for case, source in spec.previous_stage.sources.items()}
    return {case: noted.get(case, "") for spec in specs for case in (*spec.train_cases, *spec.val_cases)}


def _folds_in(place: Path) -> list[RunFolder]:
    """By number, `all` last. Raises StorageError."""
    with reading(place):
        folders = [path for path in place.glob("fold_*") if path.is_dir()]
    return [RunFolder(path) for path in sorted(folders, key=lambda path: path.name.removeprefix("fold_").zfill(4))]


def _runs(spec: RunSpec, place: Path, there: Sequence[RunFolder], sources: Iterable[str]) -> Iterator[RunFolder]:
    """The folders of the runs that made segmentations."""
    by_key = {fold.spec().run_key: fold for fold in there if fold.spec_file.is_file()}
    made = {source.removeprefix(_A_RUN) for source in sources if source.startswith(_A_RUN)}
    if missing := sorted(made - by_key.keys()):
        raise ConfigError(
            f"{_absence(spec)} {place} does not hold {listed(missing)}. Bring the folder of that run back. Where another run has taken its "
            f"place, whose segmentations differ, train {spec.configuration!r} anew on those."
        )
    yield from (by_key[key] for key in made)


def _of_nnunet(spec: RunSpec, place: Path, there: Sequence[RunFolder], sources: Mapping[str, str]) -> Iterator[RunFolder]:
    """The folders of the folds that were validated on the cases whose segmentations nnU-Net made."""
    cases = [case for case, source in sources.items() if not source.startswith(_A_RUN)]
    if not cases:
        return
    ending = str(load_dataset_json(place)["file_ending"]) if there else ""
    by_file = {file: fold for fold in reversed(there) for file in _validated(fold, ending)}
    if missing := [case for case in cases if f"{case}{ending}" not in by_file]:
        raise ConfigError(
            f"{_absence(spec)} no fold in {place} was validated on {listed(missing)}. Bring all folds back, each with checkpoint_final.pth "
            "and validation/summary.json."
        )
    yield from (by_file[f"{case}{ending}"] for case in cases)


def _validated(fold: RunFolder, ending: str) -> list[str]:
    """Names of the label files that a fold was validated on; none where nothing records them. Raises DataError."""
    if fold.spec_file.is_file():
        return [f"{case}{ending}" for case in fold.spec().val_cases]
    summary = fold.summary("final")
    if not summary.is_file():
        return []
    try:  # of Windows too: its separator is one more
        return [PureWindowsPath(case["prediction_file"]).name for case in read_json(summary, "nnU-Net's summary.json")["metric_per_case"]]
    except (KeyError, TypeError) as err:
        raise DataError(f"test set: {summary} is no summary.json of nnU-Net's: {err!r}. Restore the file.") from err


def _spec_of(fold: RunFolder, second: RunSpec) -> RunSpec:
    """The run of the first stage or, of a fold of nnU-Net's, what is known of it by the run of the second."""
    if fold.spec_file.is_file():
        return fold.spec()
    assert second.previous_stage is not None
    changes = {"configuration": second.previous_stage.configuration, "model_folder": fold.model_folder, "previous_stage": None}
    return second.model_copy(update={**changes, "own": NOTHING_OWN})
