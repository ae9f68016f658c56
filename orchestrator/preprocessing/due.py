"""What of a dataset an experiment asks for and nobody has preprocessed yet: seen by the names of files, without opening a case."""

from pathlib import Path

from orchestrator.dataset.folder import NUM_FOLDS, datasets_in, file_names, find_dataset, number_of, refuse_own_folder
from orchestrator.dataset.raw import find_raw_dataset, load_raw_dataset_json, raw_cases, refuse_lacking_labels, refuse_other_number
from orchestrator.errors import ConfigError, DataError
from orchestrator.experiment.model import Experiment
from orchestrator.experiment.preprocess import PLANNERS, Preprocess, planner_of
from orchestrator.experiment.stages import refuse_lacking_stages
from trainers.contract.cascade import previous_stage
from trainers.contract.names import nearest
from trainers.contract.plans import Plans, load_plans, load_splits
from trainers.contract.run_spec import Frozen

PLANNED = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
"""The configurations that nnU-Net's planners make, of small images not all of them."""
PLANNED_STAGES = {"3d_cascade_fullres": "3d_lowres"}
"""Those of them that need the segmentations of another."""
WHOLE = (".b2nd", "_seg.b2nd", ".pkl")
"""Endings of a preprocessed case's files, in the order in which nnU-Net writes them."""


class DuePlans(Frozen):
    """What is due of one plans file."""

    plans: str
    planner: str = ""
    """By which the file is to be made; empty: it is there."""
    gpu_memory_target: float | None = None
    """In GB, for the planner; None: its own."""
    configurations: tuple[str, ...]
    """Those whose cases are not all preprocessed, each folder of cases once."""

    def __str__(self) -> str:
        made = f"{self.plans} by {self.planner}: " if self.planner else f"{self.plans}: "
        return made + ", ".join(self.configurations)


class Due(Frozen):
    """What is due of a dataset."""

    dataset: str
    raw: Path
    """nnU-Net's folder of raw datasets."""
    preprocessed: Path
    """nnU-Net's folder of preprocessed datasets."""
    parts: tuple[DuePlans, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Each configuration, with its plans."""
        return tuple(f"{part.plans}: {configuration}" for part in self.parts for configuration in part.configurations)

    @property
    def text(self) -> str:
        """What is due, in words: `3d_fullres`, with the plans where several are meant."""
        if len(self.parts) == 1:
            return ", ".join(self.parts[0].configurations)
        return "; ".join(map(str, self.parts))


def due_of(experiment: Experiment) -> Due | None:
    """What has to be preprocessed before the runs of an experiment can be planned; None: nothing, or the experiment does not ask for it.

    Changes nothing. Raises ConfigError or DataError for what cannot be preprocessed: no raw dataset, a broken dataset.json, plans that
    nobody can make, a configuration that existing plans lack or nnU-Net's planners never make, training images without labels or of another
    number than numTraining, a fold that the split lacks, a cascade whose first stage is not made of all cases; StorageError.
    """
    if experiment.preprocess is None:
        return None
    experiment = experiment.with_folders_resolved()
    preprocessed = experiment.nnUNet_preprocessed
    assert preprocessed is not None
    there = _preprocessed_name(preprocessed, experiment.dataset)
    folder = preprocessed / (there or "")
    parts = tuple(part for name in experiment.plans if (part := _due_plans(experiment, folder if there else None, name)))
    if not parts:
        return None
    dataset = find_raw_dataset(experiment.nnUNet_raw, there or experiment.dataset)
    assert experiment.nnUNet_raw is not None
    raw = experiment.nnUNet_raw / dataset
    content = load_raw_dataset_json(raw)
    cases = raw_cases(raw, content)
    refuse_other_number(raw, content, cases)
    refuse_lacking_labels(raw, content, cases)
    _refuse_absent_folds(experiment, folder if there else None)
    has_splits = bool(there) and (folder / "splits_final.json").is_file()
    refuse_lacking_stages(experiment, dataset, _stages(experiment, folder if there else None), load_splits(folder) if has_splits else [])
    return Due(dataset=dataset, raw=experiment.nnUNet_raw, preprocessed=preprocessed, parts=parts)


def _preprocessed_name(preprocessed: Path, text: str) -> str:
    """Name of the dataset among the preprocessed ones; '' where it is not among them yet. Raises ConfigError for one that is not clear."""
    refuse_own_folder("nnUNet_preprocessed", preprocessed)
    names = [name for name in datasets_in(preprocessed) or [] if name == text or (text.isdecimal() and number_of(name) == int(text))]
    return find_dataset(preprocessed, text) if names else ""


def _due_plans(experiment: Experiment, folder: Path | None, name: str) -> DuePlans | None:
    asked = experiment.preprocess
    assert asked is not None
    if folder is None or not (folder / f"{name}.json").is_file():
        return _new_plans(asked, name, experiment.configurations)
    plans = load_plans(folder, name)
    by_folder: dict[str, str] = {}
    for configuration in experiment.configurations:
        identifier = plans.configuration(configuration).get("data_identifier")
        if not isinstance(identifier, str):
            raise DataError(f"plans: configuration {configuration!r} of {plans.path} lacks data_identifier. Make the plans anew.")
        by_folder.setdefault(identifier, configuration)
    due = tuple(each for identifier, each in by_folder.items() if lacking_cases(folder, identifier, _wanted(folder, experiment, plans)))
    return DuePlans(plans=name, configurations=due) if due else None


def _new_plans(asked: Preprocess, name: str, configurations: tuple[str, ...]) -> DuePlans:
    planner = planner_of(name, asked)
    if not planner:
        raise ConfigError(
            f"plans: {name!r} does not exist, and no planner of nnU-Net's makes plans of that name. Name the planner "
            f"(preprocess: {{planner: nnUNetPlannerResEncL}}; known: {', '.join(PLANNERS)}), or other plans."
        )
    for configuration in configurations:
        if configuration not in PLANNED:
            raise ConfigError(
                f"configurations: {configuration!r}: nnU-Net's planners make no such configuration.{nearest(configuration, PLANNED)} "
                f"Known: {', '.join(PLANNED)}."
            )
    return DuePlans(plans=name, planner=planner, gpu_memory_target=asked.gpu_memory_target, configurations=configurations)


def _refuse_absent_folds(experiment: Experiment, folder: Path | None) -> None:
    """Raise ConfigError for folds that the split file, or the one that nnU-Net makes, lacks; DataError for a file that is broken."""
    has_splits = folder is not None and (folder / "splits_final.json").is_file()
    count = len(load_splits(folder)) if folder is not None and has_splits else NUM_FOLDS
    whose = f"{folder}/splits_final.json has" if has_splits else "nnU-Net makes"
    if absent := [fold for fold in experiment.folds if fold != "all" and fold >= count]:
        raise ConfigError(f"folds: {', '.join(map(str, absent))}: {whose} {count} folds. Name folds of 0 to {count - 1}, or `all`.")


def _stages(experiment: Experiment, folder: Path | None) -> dict[tuple[str, str], str]:
    """The first stage of each (plans, configuration) that has one; of plans that are still to be made those of nnU-Net's planners."""
    found = {}
    for name in experiment.plans:
        plans = load_plans(folder, name) if folder is not None and (folder / f"{name}.json").is_file() else None
        for each in experiment.configurations:
            found[name, each] = previous_stage(plans.configuration(each)) if plans else PLANNED_STAGES.get(each, "")
    return {key: stage for key, stage in found.items() if stage}


def _wanted(folder: Path, experiment: Experiment, plans: Plans) -> tuple[str, ...]:
    """The cases that have to be there: those of the split; without a split file those of the raw dataset, as far as that is seen."""
    if (folder / "splits_final.json").is_file():
        return tuple(sorted({case for split in load_splits(folder) for case in (*split.train, *split.val)}))
    raw = experiment.nnUNet_raw / folder.name if experiment.nnUNet_raw else None
    if raw is None or not (raw / "dataset.json").is_file():
        return ()
    return raw_cases(raw, load_raw_dataset_json(raw))


def lacking_cases(folder: Path, identifier: str, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the wanted cases that a folder of preprocessed cases lacks files of; of an empty or missing folder all, or if none is wanted
    one without a name.

    A folder that an older nnU-Net has made is taken as it is: its files are of another format. Raises DataError, StorageError.
    """
    present = file_names(folder / identifier)
    if not present:
        return tuple(wanted) or ("",)
    if any(name.endswith((".npz", ".npy")) for name in present):
        return ()
    return tuple(case for case in wanted if any(f"{case}{ending}" not in present for ending in WHOLE))
