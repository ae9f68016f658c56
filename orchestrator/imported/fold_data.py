"""The data that a fold of nnU-Net's was trained on, as the dataset holds them now, and what names a run of it."""

from dataclasses import dataclass
from pathlib import Path

from orchestrator.dataset.case_readings import CaseReadings, contents_of_cases, labels_of_cases
from orchestrator.dataset.digest import data_digest, model_parts, run_key
from orchestrator.dataset.folder import cases_in, find_dataset
from orchestrator.dataset.model_folder import differing_parts
from orchestrator.dataset.preflight import usable_configuration
from orchestrator.dataset.previous_stage import stages_after
from orchestrator.errors import DataError
from orchestrator.imported.first_stage import LeftSegmentations, left_for
from orchestrator.imported.scores import ScoredData
from orchestrator.imported.trained_fold import FoldName
from trainers.contract.cascade import previous_stage
from trainers.contract.plans import Plans, Split, labels_of, load_dataset_json, load_plans, load_splits, num_input_channels, split_for
from trainers.contract.pseudonyms import SALT_FILE
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import Continued, Imported, RunSpec, Schedule, ValidationSpec

IMPORTED = "imported"
"""Variant of every run that nnU-Net itself trained, by which it and a run of ours with the same trainer are told apart."""
CONTINUED = "continued"
"""Variant of every run that nnU-Net itself began."""


@dataclass(frozen=True)
class FoldData:
    """Plans, split and cases of one fold, read and found to be those that nnU-Net trained on."""

    name: FoldName
    folder: Path
    """<nnUNet_preprocessed>/<dataset>."""
    plans: Plans
    dataset_json: dict[str, object]
    split: Split
    readings: CaseReadings
    first_stage: LeftSegmentations | None = None
    """Of a second stage of a cascade."""

    @property
    def scored(self) -> ScoredData:
        """What its cases are scored with."""
        return ScoredData(
            labels_of(self.dataset_json, str(self.folder / "dataset.json")),
            str(self.dataset_json["file_ending"]),
            str(self.plans.content.get("image_reader_writer")),
            self.folder / self.plans.configuration(self.name.configuration)["data_identifier"],
        )


def read_fold_data(name: FoldName, model_folder: Path, preprocessed: Path, caches: Path) -> FoldData:
    """Read the data of a fold in `model_folder`. `caches`: folder of results that remembers readings.

    Raises ConfigError or DataError where the dataset is now another one than nnU-Net trained on, or is damaged.
    """
    folder = preprocessed / find_dataset(preprocessed, name.dataset)
    plans, dataset_json = load_plans(folder, name.plans), load_dataset_json(folder)
    configuration = usable_configuration(plans, name.configuration)
    there = model_parts(load_plans(model_folder, "plans"), name.configuration, load_dataset_json(model_folder))
    if differ := differing_parts(there, model_parts(plans, name.configuration, dataset_json)):
        raise DataError(
            f"import: plans.json and dataset.json in {model_folder} differ from those in {folder} in {', '.join(differ)} of "
            f"{name.configuration!r}: it was trained on other data. Name the nnUNet_preprocessed that it was trained on."
        )
    labels_of(dataset_json, str(folder / "dataset.json"))
    data_folder = folder / configuration["data_identifier"]
    split = _split(folder, name, cases_in(data_folder))
    cases = sorted({*split.train, *split.val})
    reader = str(plans.content.get("image_reader_writer"))
    readings = CaseReadings(
        labels_of_cases(folder, cases, dataset_json["file_ending"], reader, caches),
        contents_of_cases(data_folder, cases, num_input_channels(dataset_json), caches),
    )
    _check_readings(readings)
    first_stage = left_for(name, model_folder, previous_stage(configuration), cases, caches)
    return FoldData(name, folder, plans, dataset_json, split, readings, first_stage)


def _split(folder: Path, name: FoldName, cases: tuple[str, ...]) -> Split:
    split = split_for([] if name.fold == "all" else load_splits(folder), name.fold, cases, name.dataset)
    return Split(tuple(sorted(split.train)), tuple(sorted(split.val)))


def _check_readings(readings: CaseReadings) -> None:
    every = [*readings.labels.items(), *((case, reading) for case, pair in readings.contents.items() for reading in pair)]
    if faults := [f"{case}: {reading.fault}" for case, reading in every if reading.fault]:
        raise DataError(f"import: {len(faults)} files of the dataset's cases are damaged or missing. The first: {faults[0]}")


def spec_of(
    data: FoldData,
    target: RunFolder,
    schedule: Schedule,
    tracking_uri: str,
    *,
    imported: Imported | None = None,
    final_sha256: str = "",
    continued: Continued | None = None,
) -> RunSpec:
    """The run in `target`: one that nnU-Net trained (`imported`, with the SHA-256 of its final checkpoint), or began (`continued`)."""
    name, split = data.name, data.split
    previous = data.first_stage.record if data.first_stage else None
    variant = CONTINUED if continued else IMPORTED
    digest = data_digest(data.plans, name.configuration, data.dataset_json, split, data.readings.label_sha256, data.readings.content_sha256)
    key = run_key(
        dataset=name.dataset,
        configuration=name.configuration,
        trainer=name.trainer,
        plans=name.plans,
        fold=name.fold,
        seed=0,
        schedule=schedule,
        data_digest=digest,
        variant=variant,
        weights_sha256=final_sha256,
        continued_sha256=continued.sha256 if continued else "",
        previous_stage=previous if continued else None,  # of one that has ended the weights say it all
    )
    return RunSpec(
        run_key=key,
        dataset=name.dataset,
        preprocessed_folder=data.folder,
        model_folder=target.model_folder,
        plans=name.plans,
        configuration=name.configuration,
        trainer=name.trainer,
        fold=name.fold,
        variant=variant,
        train_cases=split.train,
        val_cases=split.val,
        data_digest=digest,
        case_digests=data.readings.digests({*split.train, *split.val}),
        schedule=schedule,
        previous_stage=previous,
        next_stages=stages_after(data.plans, name.configuration, split.val, data.folder) if continued and name.fold != "all" else (),
        pseudonyms=(target.model_folder.parent / SALT_FILE).is_file(),  # as asked for in other runs of this dataset
        imported=imported,
        continued=continued,
        validation=ValidationSpec() if continued else ValidationSpec(checkpoints=("final",)),
        tracking_uri=tracking_uri,
        mlflow_experiment=name.dataset,
    )
