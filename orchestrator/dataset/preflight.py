"""Preflight: everything about a run's data that would fail later, found before a worker starts, and all of it at once."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.dataset.digest import data_digest, model_parts
from orchestrator.dataset.folder import cases_in, file_names
from orchestrator.dataset.label_files import CACHE_NAME, LabelFile, read_label_files
from orchestrator.errors import ConfigError, DataError, NnfleetError
from trainers.contract.names import canonical_trainer
from trainers.contract.plans import (
    PREPROCESS_COMMAND,
    Labels,
    Plans,
    Split,
    labels_of,
    load_dataset_json,
    load_plans,
    load_splits,
    num_input_channels,
    split_for,
)
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.contract.split_batch import rank_sizes, split_dependence

MAX_LISTED = 5
"""Cases named in one problem; the rest is counted."""
MAX_PROBLEMS = 30


class Problems:
    """Problems in the order in which they were found, each once."""

    def __init__(self) -> None:
        self._found: dict[str, type[NnfleetError]] = {}

    def add(self, *problems: NnfleetError) -> None:
        """Keep problems; the type says whether the request (ConfigError) or the data (DataError) have to change."""
        for problem in problems:
            self._found.setdefault(str(problem), type(problem))

    @property
    def texts(self) -> list[str]:
        """One sentence or more per problem."""
        return list(self._found)

    def raise_if_any(self) -> None:
        """Raise one error that lists all problems: DataError if only data have to change, else ConfigError."""
        if not self._found:
            return
        kind = DataError if all(issubclass(t, DataError) for t in self._found.values()) else ConfigError
        if len(self._found) == 1:
            raise kind(self.texts[0])
        shown = [f"- {text}" for text in self.texts[:MAX_PROBLEMS]]
        rest = len(self._found) - MAX_PROBLEMS
        raise kind("\n".join([f"{len(self._found)} problems:", *shown, *([f"- and {rest} more"] if rest > 0 else [])]))


def check_run(spec: RunSpec, labels: Mapping[str, LabelFile] | None = None) -> list[str]:
    """Problems that would stop `spec`, as texts; empty when it can start. For a process of the cluster: it also opens every case.

    `labels` are the label files of its cases if they have been read before; else they are read here (see `labels_of_cases`).
    Raises StorageError where a disk is away.
    """
    problems = Problems()
    problems.add(*(problems_of(spec, labels) or _damaged_cases(spec)))
    return problems.texts


def problems_of(spec: RunSpec, labels: Mapping[str, LabelFile] | None = None) -> list[NnfleetError]:
    """Like `check_run`, with the kind of each problem and without a look into the case files. Raises StorageError."""
    folder = spec.preprocessed_folder
    if not folder.is_dir():
        return [DataError(f"dataset: the folder {folder} does not exist. Run {PREPROCESS_COMMAND} or mount it on this machine.")]
    try:
        plans = load_plans(folder, spec.plans)
        configuration = usable_configuration(plans, spec.configuration)
        dataset_json = load_dataset_json(folder)
        known_labels = labels_of(dataset_json, str(folder / "dataset.json"))
        canonical_trainer(spec.trainer)
    except (ConfigError, DataError) as err:
        return [err]
    cases = sorted({*spec.train_cases, *spec.val_cases})
    data_folder = folder / configuration["data_identifier"]
    if labels is None:
        labels = labels_of_cases(
            folder, cases, dataset_json["file_ending"], str(plans.content.get("image_reader_writer")), spec.model_folder.parent
        )
    found = [
        *_split_problems(spec, data_folder),
        *_batch_problems(spec, configuration),
        *_case_file_problems(spec, data_folder, cases),
        *label_problems(folder, {case: labels[case] for case in cases if case in labels}, known_labels),
        *model_folder_problems(spec, plans),
    ]
    return found or _changed_data(spec, plans, dataset_json, labels)


def _changed_data(spec: RunSpec, plans: Plans, dataset_json: dict[str, Any], labels: Mapping[str, LabelFile]) -> list[NnfleetError]:
    """Data that are sound but not those that the run was planned with: its run key would name other data than it trains on."""
    split = Split(spec.train_cases, spec.val_cases)
    digests = {case: label.sha256 for case, label in labels.items()}
    if data_digest(plans, spec.configuration, dataset_json, split, digests) == spec.data_digest:
        return []
    return [
        DataError(
            f"dataset: plans, dataset.json or label files of {spec.preprocessed_folder} changed since {spec.run_key} was planned. "
            "Restore them to continue this run, or submit again: that makes a new run (in another nnUNet_results)."
        )
    ]


def usable_configuration(plans: Plans, name: str) -> dict[str, Any]:
    """A resolved configuration that nnfleet can train. Raises ConfigError for an unknown one or a cascade, DataError for a broken one."""
    configuration = plans.configuration(name)
    if configuration.get("previous_stage"):
        alternatives = [c for c in plans.configurations if not plans.configuration(c).get("previous_stage")]
        raise ConfigError(
            f"configurations: {name!r} of {plans.path} is a cascade (it needs predictions of {configuration['previous_stage']!r}), "
            f"which nnfleet does not train yet. Choose one of {', '.join(alternatives)}."
        )
    missing = [key for key in ("data_identifier", "batch_size", "patch_size", "architecture") if key not in configuration]
    if missing:
        raise DataError(
            f"plans: configuration {name!r} of {plans.path} lacks {', '.join(missing)}. "
            f"Plans of older versions of nnU-Net are made anew by {PREPROCESS_COMMAND}."
        )
    return configuration


def labels_of_cases(folder: Path, cases: Iterable[str], ending: str, reader: str, results: Path) -> dict[str, LabelFile]:
    """Label files of cases below gt_segmentations, with the digests remembered beside the dataset's models."""
    files = {case: folder / "gt_segmentations" / f"{case}{ending}" for case in cases}
    return read_label_files(files, reader, results / CACHE_NAME)


def label_problems(folder: Path, labels: Mapping[str, LabelFile], known: Labels) -> list[NnfleetError]:
    """Label files that are missing or unreadable, and values that dataset.json does not name."""
    place = folder / "gt_segmentations"
    found: list[NnfleetError] = []
    faults: dict[str, list[str]] = {}
    strange: dict[tuple[float, ...], list[str]] = {}
    for case, label in labels.items():
        if label.fault:
            faults.setdefault(label.fault, []).append(case)
        elif unknown := tuple(v for v in label.values if v not in known.values):
            strange.setdefault(unknown, []).append(case)
    for fault, cases in faults.items():
        found.append(DataError(f"labels: in {place} the file of {_some(cases)} {fault}. Restore it, or run {PREPROCESS_COMMAND} again."))
    names = ", ".join(str(v) for v in sorted(known.values))
    for values, cases in strange.items():
        shown = ", ".join(f"{v:g}" for v in values[:MAX_LISTED])
        found.append(
            DataError(
                f"labels: in {place} {_some(cases)} has the value {shown}, which dataset.json does not name (it names {names}). "
                f"Correct the label file or dataset.json, then run {PREPROCESS_COMMAND}."
            )
        )
    return found


def differences(present: RunSpec, wanted: RunSpec) -> str:
    """What makes two runs of one folder different, in words: `epochs (1, now 2)`. Pure."""
    found = [
        f"{name} ({getattr(present.schedule, name)}, now {getattr(wanted.schedule, name)})"
        for name in type(wanted.schedule).model_fields
        if getattr(present.schedule, name) != getattr(wanted.schedule, name)
    ]
    if (present.train_cases, present.val_cases) != (wanted.train_cases, wanted.val_cases):
        found.append("the cases of the fold")
    elif present.data_digest != wanted.data_digest:
        found.append("labels, plans or dataset.json")
    return ", ".join(found) or "the recipe's version"


def model_folder_problems(spec: RunSpec, plans: Plans) -> list[NnfleetError]:
    """The folder of a run belongs to it alone: refuse what nnU-Net or another run wrote there, and a model folder of other plans.

    A fold that was claimed before is not compared with the model folder again: its run key says that it is the same run.
    """
    folder = RunFolder(spec.run_folder)
    escape = "Move the folder away or name another nnUNet_results."
    if folder.spec_file.exists():
        try:
            present = folder.spec()
        except DataError as err:
            return [DataError(f"{err} {escape}")]
        if present.run_key != spec.run_key:
            return [
                ConfigError(
                    f"results: {folder.root} belongs to the run {present.run_key}, which differs from {spec.run_key} "
                    f"in {differences(present, spec)}. {escape}"
                )
            ]
        strange = [] if any(folder.state.glob("e*_a*.json")) else sorted(path.name for path in folder.root.glob("checkpoint_*.pth"))
        return [_not_ours(folder, strange, escape)] if strange else []
    foreign = sorted(file_names(folder.root) - {folder.own.name})
    return [_not_ours(folder, foreign, escape)] if foreign else _other_plans(spec, plans, escape)


def _not_ours(folder: RunFolder, names: list[str], escape: str) -> ConfigError:
    return ConfigError(f"results: {folder.root} was not made by nnfleet (it holds {_some(names)}) and is never overwritten. {escape}")


def _other_plans(spec: RunSpec, plans: Plans, escape: str) -> list[NnfleetError]:
    """Differences between the model folder's plans.json and dataset.json and the ones of this run, in what a run key covers."""
    path = spec.model_folder / "plans.json"
    if not path.is_file():
        return []
    here = model_parts(plans, spec.configuration, load_dataset_json(spec.preprocessed_folder))
    try:
        there_json = spec.model_folder / "dataset.json"
        dataset_json = load_dataset_json(spec.model_folder if there_json.is_file() else spec.preprocessed_folder)
        there = model_parts(load_plans(spec.model_folder, "plans"), spec.configuration, dataset_json)
    except (ConfigError, DataError, KeyError, TypeError) as err:
        return [ConfigError(f"results: {path} is not a plans file with {spec.configuration!r} ({err}). {escape}")]
    settings = [{**parts.pop("configuration"), **parts.pop("plans"), **parts} for parts in (there, here)]
    differ = sorted(key for key in {*settings[0], *settings[1]} if _as_json(settings[0].get(key)) != _as_json(settings[1].get(key)))
    if not differ:
        return []
    return [
        ConfigError(
            f"results: {path} and dataset.json beside it differ from {plans.path} and its dataset.json in {', '.join(differ)} of "
            f"{spec.configuration!r}: folds of one model folder must share one plan. {escape}"
        )
    ]


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


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


def _batch_problems(spec: RunSpec, configuration: Mapping[str, Any]) -> list[NnfleetError]:
    """More workers than samples, or a number of workers that may change with a network whose results depend on it."""
    try:
        rank_sizes(int(configuration["batch_size"]), spec.workers.most)
    except ConfigError as err:
        return [ConfigError(f"{err} (configuration {spec.configuration!r} of {spec.plans})")]
    except ValueError as err:
        return [DataError(f"plans: configuration {spec.configuration!r} of {spec.plans}: {err}. Correct its batch_size.")]
    if spec.workers.is_elastic and (part := split_dependence(configuration)):
        return [
            ConfigError(
                f"workers: the number of workers must be fixed for configuration {spec.configuration!r} of {spec.plans}: its network has "
                f"{part}, with which every change of the number of workers would change the training. "
                f"Set workers.count (such as {spec.workers.least}) instead of workers.min and workers.max."
            )
        ]
    return []


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
    shown = _some([f"{case} ({', '.join(lack)})" for case, lack in lacking.items()])
    return [DataError(f"cases: {len(lacking)} of {len(cases)} cases lack files in {data_folder}: {shown}. Run {command}.")]


def _damaged_cases(spec: RunSpec) -> list[NnfleetError]:
    """Cases whose files do not open as an image and its labels, which a worker would find with its accelerator in hand; 1.5 ms each."""
    from trainers.data.case_files import check_case  # blosc2 is not on every laptop

    configuration = load_plans(spec.preprocessed_folder, spec.plans).configuration(spec.configuration)
    folder = spec.preprocessed_folder / configuration["data_identifier"]
    channels = num_input_channels(load_dataset_json(spec.preprocessed_folder))
    faults: dict[str, DataError] = {}
    for case in sorted({*spec.train_cases, *spec.val_cases}):
        try:
            check_case(folder, case, channels)
        except DataError as err:
            faults[case] = err
    if len(faults) < 2:
        return list(faults.values())
    first = next(iter(faults.values()))
    return [DataError(f"cases: {len(faults)} of the run's cases are damaged: {_some(list(faults))}. The first: {first}")]


def _lacking(case: str, present: frozenset[str], endings: tuple[str, ...]) -> list[str]:
    """Endings of the files that a case lacks."""
    return [ending for ending in endings if f"{case}{ending}" not in present]


def _some(names: list[str]) -> str:
    rest = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")
