"""The two stages of a cascade in one experiment: which runs leave segmentations for which, and where those come from that a run needs."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from orchestrator.dataset.folder import NUM_FOLDS, cases_in
from orchestrator.dataset.previous_stage import sources_of, stages_after
from orchestrator.dataset.problems import listed
from orchestrator.errors import ConfigError
from orchestrator.experiment.identity import Planned
from orchestrator.experiment.model import Experiment
from trainers.contract.cascade import model_folder_name, predictions_of, previous_stage
from trainers.contract.names import Fold
from trainers.contract.plans import Plans, Split, load_splits
from trainers.contract.run_spec import PreviousStage, RunSpec, ValidationSpec, made_by


def depth(plans: Plans, configuration: str) -> int:
    """How many stages come before a configuration: 0 for one that stands alone. Pure."""
    found, stage = 0, previous_stage(plans.configuration(configuration))
    while stage in plans.configurations and found < len(plans.configurations):
        found, stage = found + 1, previous_stage(plans.configuration(stage))
    return found


def stages_due(planned: Planned, validation: ValidationSpec, preprocessed: Path) -> tuple[str, ...]:
    """The next stages that a run's full validation leaves its segmentations for, of those that it can (`stages_after`).

    None where the final weights are not validated, and none of the fold `all`: it would replace the segmentations of cases that were not
    trained on by those of cases that were.
    """
    if planned.fold == "all" or "final" not in validation.checkpoints:
        return ()
    return stages_after(planned.plans, planned.configuration, planned.split.val, preprocessed)


def previous_of(planned: Planned, earlier: Iterable[RunSpec], results: Path) -> PreviousStage | None:
    """Which segmentations a run sees: those that `earlier` runs of the experiment leave, else those that are there.

    `results`: of the dataset. None for a run without a previous stage. Raises ConfigError where a case has none, StorageError.
    """
    stage = previous_stage(planned.plans.configuration(planned.configuration))
    if not stage:
        return None
    earlier = list(earlier)
    model_folder = results / model_folder_name(planned.trainer, planned.plans.name, stage, planned.variant, planned.seed)
    cases = sorted({*planned.split.train, *planned.split.val})
    sources = sources_of(predictions_of(model_folder, planned.configuration), cases, results)
    makers = [spec for spec in earlier if spec.model_folder == model_folder and planned.configuration in spec.next_stages]
    sources |= {case: made_by(spec.run_key) for spec in makers for case in spec.val_cases if case in set(cases)}
    if missing := [case for case in cases if case not in sources]:
        is_named = any(spec.model_folder == model_folder for spec in earlier)
        splits = _splits_in(planned.plans.path.parent)
        folds = _lacking_folds((planned.fold,), (), sources, splits) if is_named else []
        place = predictions_of(model_folder, planned.configuration)
        none = f"{len(missing)} of its {len(cases)} cases have none in {place}: {listed(missing)}"
        raise ConfigError(_nobody_makes(planned.configuration, stage, none, folds))
    return PreviousStage(configuration=stage, sources=dict(sorted(sources.items())))


def refuse_lacking_stages(experiment: Experiment, dataset: str, stages: Mapping[tuple[str, str], str], splits: Sequence[Split]) -> None:
    """Raise ConfigError, before anything is preprocessed, for a second stage whose first the experiment and what is there do not complete.

    `stages`: the first stage of each (plans, configuration) that has one. `splits`: those of the split file; empty: nnU-Net's, which are
    not made yet. What is there is seen by the names of files. The experiment's folders are known. Raises DataError, StorageError.
    """
    assert experiment.nnUNet_results is not None
    results = experiment.nnUNet_results / dataset
    variants = {trainer: experiment.variants(trainer) for trainer in experiment.trainer_names}
    for plans, configuration, trainer, seed, _ in experiment.axes():
        stage = stages.get((plans, configuration))
        for variant in variants[trainer] if stage else ():
            assert stage is not None
            is_named = stage in experiment.configurations
            made = set(experiment.folds) if is_named and "final" in experiment.validation.checkpoints else set()
            place = predictions_of(results / model_folder_name(trainer, plans, stage, variant.name, seed), configuration)
            if lacking := _lacking_folds(experiment.folds, made, cases_in(place), splits):
                none = f"those of fold{'s' if lacking[1:] else ''} {', '.join(map(str, lacking))} are made by nobody"
                raise ConfigError(_nobody_makes(configuration, stage, none, lacking if is_named else []))


def _lacking_folds(folds: Iterable[Fold], made: Collection[Fold], there: Collection[str], splits: Sequence[Split]) -> list[int]:
    """The folds of a first stage that the second needs and has not: by the cases, unless the split is still to be made. Pure."""
    if not splits:  # which cases a fold will have is not known yet, nor which of them those are that are there
        return [] if there else [fold for fold in range(NUM_FOLDS) if fold not in made]
    needed = range(len(splits)) if "all" in folds else [fold for fold in folds if fold != "all" and fold < len(splits)]
    cases = {case for fold in needed for case in (*splits[fold].train, *splits[fold].val)}
    for fold, split in enumerate(splits):
        cases -= set(split.val) if fold in made else set()
    return _folds_of(cases - set(there), splits)


def _folds_of(cases: Iterable[str], splits: Sequence[Split]) -> list[int]:
    """The folds that validate some of the cases. Pure."""
    meant = set(cases)
    return [fold for fold, split in enumerate(splits) if meant.intersection(split.val)]


def _splits_in(dataset_folder: Path) -> list[Split]:
    return load_splits(dataset_folder) if (dataset_folder / "splits_final.json").is_file() else []


def _nobody_makes(configuration: str, stage: str, none: str, folds: Sequence[int]) -> str:
    """`folds`: those that lack of a stage that is named already; empty: it is not, or they are not known."""
    final = "with `final` in validation.checkpoints, or train and validate"
    cure = f"Name {stage!r} in `configurations` too, with all folds and {final} it first."
    if folds:
        named = f"fold{'s' if folds[1:] else ''} {', '.join(map(str, folds))} of {stage!r}"
        cure = f"Missing: {named}. Name them in `folds`, {final} them first."
    return f"configurations: {configuration!r} sees the segmentations by {stage!r}, and {none}. {cure}"
