"""Preflight: everything about a run's data that would fail later, found before a worker starts, and all of it at once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.dataset.case_readings import CaseReadings, contents_of_cases, damaged_cases, data_changes, labels_of_cases
from orchestrator.dataset.digest import data_digest
from orchestrator.dataset.folder import cases_in, file_names
from orchestrator.dataset.model_folder import model_folder_problems
from orchestrator.dataset.opened_cases import cases_that_do_not_open, labels_of_another_shape
from orchestrator.dataset.previous_stage import changed_sources
from orchestrator.dataset.problems import MAX_LISTED, Problems, listed
from orchestrator.dataset.remembered import Reading
from orchestrator.errors import ConfigError, DataError, NnfleetError
from trainers.contract.cascade import previous_stage
from trainers.contract.plans import (
    PREPROCESS_COMMAND,
    Labels,
    Plans,
    Split,
    labels_of,
    load_dataset_json,
    load_splits,
    num_input_channels,
    plans_of,
    split_for,
)
from trainers.contract.run_spec import RunSpec
from trainers.contract.split_batch import rank_sizes, split_dependence
from trainers.contract.trainer_table import canonical_trainer

_NEEDED = ("data_identifier", "batch_size", "patch_size", "spacing", "use_mask_for_norm", "batch_dice", "architecture")
"""What training and validation read of a configuration."""


@dataclass(frozen=True)
class _Data:
    """The files that say what the data of a run are."""

    plans: Plans
    configuration: dict[str, Any]
    dataset_json: dict[str, Any]
    labels: Labels
    folder: Path
    """Of the preprocessed cases."""


def check_run(spec: RunSpec) -> list[str]:
    """Problems that would stop `spec`, as texts; empty when it can start. For a process of the cluster: it also opens every case.

    Raises StorageError where a disk is away.
    """
    problems = Problems()
    problems.add(*(problems_of(spec) or changed_sources(spec, are_all_due=True) or _problems_of_opened_cases(spec)))
    return problems.texts


def problems_of(spec: RunSpec) -> list[NnfleetError]:
    """Like `check_run`, with the kind of each problem. It reads whatever the run key covers, unless that is remembered.

    Raises StorageError.
    """
    try:
        data = _data_of(spec)
    except (ConfigError, DataError) as err:
        return [err]
    readings = _readings(spec, data)
    found = [
        *_problems_of_data(spec, data, readings),
        *changed_sources(spec, are_all_due=False),
        *model_folder_problems(spec, data.plans),
    ]
    return found or _changed_data(spec, data, readings)


def data_problems(spec: RunSpec, readings: CaseReadings) -> list[NnfleetError]:
    """Those of a run that was planned by these `readings` of its cases, without its place among the results. Raises StorageError."""
    try:
        return _problems_of_data(spec, _data_of(spec), readings)
    except (ConfigError, DataError) as err:
        return [err]


def _data_of(spec: RunSpec) -> _Data:
    """Raises ConfigError or DataError."""
    folder = spec.preprocessed_folder
    if not folder.is_dir():
        raise DataError(f"dataset: the folder {folder} does not exist. Run {PREPROCESS_COMMAND} or mount it on this machine.")
    plans = plans_of(spec)
    configuration = usable_configuration(plans, spec.configuration)
    dataset_json = load_dataset_json(folder)
    labels = labels_of(dataset_json, str(folder / "dataset.json"))
    if spec.own.trainer is None:
        canonical_trainer(spec.trainer)
    elif stage := previous_stage(configuration):
        raise ConfigError(
            f"trainers: {spec.trainer}, which trains by its own loop, does not train {spec.configuration!r}, the second stage of a cascade "
            f"behind {stage!r}. Name other configurations, or a trainer of nnfleet for this one."
        )
    return _Data(plans, configuration, dataset_json, labels, folder / configuration["data_identifier"])


def _readings(spec: RunSpec, data: _Data) -> CaseReadings:
    """What the run key covers: of a run that was planned before it covered the preprocessed cases, the label files alone."""
    cases = sorted({*spec.train_cases, *spec.val_cases})
    results = spec.model_folder.parent
    reader = str(data.plans.content.get("image_reader_writer"))
    labels = labels_of_cases(spec.preprocessed_folder, cases, data.dataset_json["file_ending"], reader, results)
    if spec.case_digests is None:
        return CaseReadings(labels)
    return CaseReadings(labels, contents_of_cases(data.folder, cases, num_input_channels(data.dataset_json), results))


def _problems_of_data(spec: RunSpec, data: _Data, readings: CaseReadings) -> list[NnfleetError]:
    cases = sorted({*spec.train_cases, *spec.val_cases})
    labels = {case: readings.labels[case] for case in cases if case in readings.labels}
    faults = {case: fault for case in cases for reading in readings.contents.get(case, ()) if (fault := reading.fault)}
    return [
        *_split_problems(spec, data.folder),
        *_loss_problems(spec, data.labels),
        *_batch_problems(spec, data.configuration),
        *_channel_problems(spec, data.configuration, data.dataset_json),
        *_intensity_problems(spec, data.configuration, data.plans),
        *(_case_file_problems(spec, data.folder, cases) or damaged_cases(faults)),
        *label_problems(spec.preprocessed_folder, labels, data.labels),
    ]


def _changed_data(spec: RunSpec, data: _Data, readings: CaseReadings) -> list[NnfleetError]:
    """Data that are sound but not those that the run was planned with: its run key would name other data than it trains on."""
    split = Split(spec.train_cases, spec.val_cases)
    is_former = spec.case_digests is None
    contents = None if is_former else readings.content_sha256
    if data_digest(data.plans, spec.configuration, data.dataset_json, split, readings.label_sha256, contents) == spec.data_digest:
        return []
    changes = data_changes(spec, None if is_former else readings.digests(readings.labels))
    return [
        DataError(
            f"dataset: in {spec.preprocessed_folder} {changes} changed since {spec.address} was planned. "
            "Restore them to continue this run, or submit again: a new run (once an epoch was kept, in another nnUNet_results)."
        )
    ]


def usable_configuration(plans: Plans, name: str) -> dict[str, Any]:
    """A resolved configuration that nnfleet can train. Raises ConfigError for an unknown one, or one whose previous stage is not in the
    plans, DataError for a broken one."""
    configuration = plans.configuration(name)
    stage = previous_stage(configuration)
    if stage and stage not in plans.configurations:
        raise ConfigError(
            f"configurations: {name!r} of {plans.path} needs the segmentations of {stage!r}, which is not in these plans. "
            f"Known: {', '.join(plans.configurations)}. Make the plans anew with {PREPROCESS_COMMAND}."
        )
    missing = [key for key in _NEEDED if key not in configuration]
    if missing:
        raise DataError(
            f"plans: configuration {name!r} of {plans.path} lacks {', '.join(missing)}. Make the plans anew with {PREPROCESS_COMMAND}."
        )
    return configuration


def label_problems(folder: Path, labels: Mapping[str, Reading], known: Labels) -> list[NnfleetError]:
    """Label files that are missing or unreadable, and values that dataset.json does not name."""
    return problems_of_label_files(
        folder / "gt_segmentations",
        labels,
        known,
        restore=f"Restore it, or run {PREPROCESS_COMMAND} again.",
        correct=f"Correct the label file or dataset.json, then run {PREPROCESS_COMMAND}.",
    )


def problems_of_label_files(place: Path, labels: Mapping[str, Reading], known: Labels, *, restore: str, correct: str) -> list[NnfleetError]:
    """The same of label files in any folder, with what cures a missing or unreadable file, and one with a strange value."""
    found: list[NnfleetError] = []
    faults: dict[str, list[str]] = {}
    strange: dict[str, tuple[tuple[float, ...], list[str]]] = {}
    for case, label in labels.items():
        if label.fault:
            faults.setdefault(label.fault, []).append(case)
        elif unknown := tuple(v for v in label.values if v not in known.values):
            strange.setdefault(repr(unknown), (unknown, []))[1].append(case)  # by text, for no NaN equals another
    for fault, cases in faults.items():
        found.append(DataError(f"labels: in {place} the file of {listed(cases)} {fault}. {restore}"))
    names = ", ".join(str(v) for v in sorted(known.values))
    for values, cases in strange.values():
        shown = ", ".join(map(_value_text, values[:MAX_LISTED]))
        cure = " Labels must be whole numbers, stored without a scale." if any(not v.is_integer() for v in values) else ""
        found.append(
            DataError(
                f"labels: in {place} {listed(cases)} has the value {shown}, which dataset.json does not name (it names {names}).{cure} "
                f"{correct}"
            )
        )
    return found


def _value_text(value: float) -> str:
    """A voxel value with as many digits as tell it from any other."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def _split_problems(spec: RunSpec, data_folder: Path) -> list[NnfleetError]:
    found: list[NnfleetError] = []
    splits_file = spec.preprocessed_folder / "splits_final.json"
    try:
        if spec.fold == "all" or splits_file.exists():
            splits = [] if spec.fold == "all" else load_splits(spec.preprocessed_folder)
            split = split_for(splits, spec.fold, cases_in(data_folder), spec.dataset)
            if set(split.train) != set(spec.train_cases) or set(split.val) != set(spec.val_cases):
                found.append(
                    DataError(f"splits_final.json: fold {spec.fold} of {spec.dataset} has other cases than planned. Submit the run again.")
                )
    except (ConfigError, DataError) as err:
        found.append(err)
    return [*found, *few_cases(spec.dataset, spec.fold, Split(spec.train_cases, spec.val_cases))]


def few_cases(dataset: str, fold: int | str, split: Split) -> list[NnfleetError]:
    """A fold needs at least one training and one validation case."""
    parts = {"training": split.train, "validation": split.val}
    return [
        DataError(f"folds: fold {fold} of {dataset} has no {name} case; at least one is needed. Correct splits_final.json.")
        for name, cases in parts.items()
        if not cases
    ]


def _loss_problems(spec: RunSpec, labels: Labels) -> list[NnfleetError]:
    """A trainer whose loss is not made for the dataset's kind of labels."""
    part = spec.settings.unfit(has_regions=labels.has_regions, has_ignore_label=labels.ignore_label is not None)
    if not part:
        return []
    return [
        ConfigError(
            f"trainers: the loss of {spec.trainer} cannot be used with {part}, which dataset.json of {spec.dataset} names. "
            "Name another trainer, such as nnUNetTrainer."
        )
    ]


def _batch_problems(spec: RunSpec, configuration: Mapping[str, Any]) -> list[NnfleetError]:
    """More workers than samples, or a number of workers that may change with a network of the plans whose results depend on it. A network
    of the user's is asked itself, in `trainers.network.own_trial`."""
    try:
        rank_sizes(int(configuration["batch_size"]), spec.workers.most)
    except ConfigError as err:
        return [ConfigError(f"{err} (configuration {spec.configuration!r} of {spec.plans})")]
    except ValueError as err:
        return [DataError(f"plans: configuration {spec.configuration!r} of {spec.plans}: {err}. Correct its batch_size.")]
    if spec.workers.is_elastic and spec.own.network is None and (part := split_dependence(configuration)):
        return [
            ConfigError(
                f"workers: the number of workers must be fixed for configuration {spec.configuration!r} of {spec.plans}: its network has "
                f"{part}, with which every change of the number of workers would change the training. "
                f"Set workers.count (such as {spec.workers.least}) instead of workers.min and workers.max."
            )
        ]
    return []


def _channel_problems(spec: RunSpec, configuration: Mapping[str, Any], dataset_json: dict[str, Any]) -> list[NnfleetError]:
    """Settings that the plans hold for each channel, for another number of channels than dataset.json names."""
    channels = num_input_channels(dataset_json)
    return [
        DataError(
            f"plans: configuration {spec.configuration!r} of {spec.plans} has {len(configuration[key])} entries in {key}, and dataset.json "
            f"of {spec.dataset} names {channels} channels. Run {PREPROCESS_COMMAND} again."
        )
        for key in ("use_mask_for_norm", "normalization_schemes")
        if len(configuration.get(key, [0] * channels)) != channels
    ]


def _intensity_problems(spec: RunSpec, configuration: Mapping[str, Any], plans: Plans) -> list[NnfleetError]:
    """Channels that are normalised by intensities of the whole dataset which are no finite numbers: then no image of it is one either."""
    known = plans.content.get("foreground_intensity_properties_per_channel")
    schemes = configuration.get("normalization_schemes", [])
    channels = [
        channel
        for channel, scheme in enumerate(schemes)
        if scheme == "CTNormalization" and isinstance(known, dict) and _is_not_finite(known.get(str(channel)))
    ]
    return [
        DataError(
            f"plans: foreground_intensity_properties_per_channel of channel {channel} in {plans.path} holds values that are not finite "
            f"numbers, by which {spec.configuration!r} normalises every image: a raw image has such voxels within its foreground. "
            f"Correct that image, then run {PREPROCESS_COMMAND} again."
        )
        for channel in channels
    ]


def _is_not_finite(intensities: Any) -> bool:
    values = intensities.values() if isinstance(intensities, dict) else ()
    return any(isinstance(value, float) and not math.isfinite(value) for value in values)


def _case_file_problems(spec: RunSpec, data_folder: Path, cases: list[str]) -> list[NnfleetError]:
    number = spec.address.split("/", 1)[0]
    command = f"nnUNetv2_preprocess -d {number} -plans_name {spec.plans} -c {spec.configuration}"
    present = file_names(data_folder)
    if not present:
        return [DataError(f"configurations: {data_folder} (preprocessed cases of {spec.configuration!r}) does not exist. Run {command}.")]
    is_blosc2 = any(name.endswith(".b2nd") for name in present)  # a folder of nnU-Net before 2.6 holds npz files instead
    endings = (".b2nd", "_seg.b2nd", ".pkl") if is_blosc2 else (".npz", ".pkl")
    lacking = {case: lack for case in cases if (lack := _lacking(case, present, endings))}
    if not lacking:
        return []
    shown = listed([f"{case} ({', '.join(lack)})" for case, lack in lacking.items()])
    return [DataError(f"cases: {len(lacking)} of {len(cases)} cases lack files in {data_folder}: {shown}. Run {command}.")]


def _problems_of_opened_cases(spec: RunSpec) -> list[DataError]:
    data = _data_of(spec)
    cases = sorted({*spec.train_cases, *spec.val_cases})
    labels = {case: spec.preprocessed_folder / "gt_segmentations" / f"{case}{data.dataset_json['file_ending']}" for case in spec.val_cases}
    return cases_that_do_not_open(data.folder, cases, num_input_channels(data.dataset_json)) or labels_of_another_shape(data.folder, labels)


def _lacking(case: str, present: frozenset[str], endings: tuple[str, ...]) -> list[str]:
    """Endings of the files that a case lacks."""
    return [ending for ending in endings if f"{case}{ending}" not in present]
