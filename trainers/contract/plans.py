"""nnU-Net's plans, dataset.json and splits read as plain JSON, without importing nnunetv2 or torch.

Sources for the formats: nnunetv2/utilities/plans_handling/plans_handler.py (inheritance of configurations),
nnunetv2/utilities/label_handling/label_handling.py (labels, regions, ignore label), nnU-Net's documentation of dataset_format.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

from trainers.contract.architecture import MAX_SIZE, MAX_STAGES, fault_of_architecture, is_size
from trainers.contract.names import LONGEST_CASE, Fold, fault_of_case, fault_of_name, nearest, shown
from trainers.contract.old_network import fault_of_old_network, is_of_old_plans, with_architecture
from trainers.contract.run_spec import RunSpec
from trainers.errors import ConfigError, DataError
from trainers.storage.files import read_json

PREPROCESS_COMMAND = "nnUNetv2_plan_and_preprocess"
_OF_LARGE_IMAGES = (
    " nnU-Net plans 3d_lowres and 3d_cascade_fullres only where the images are much larger than a patch; train 3d_fullres instead."
)


@dataclass(frozen=True)
class Plans:
    """One plans file. `content` is the JSON as it is; `configuration()` resolves inheritance."""

    name: str
    path: Path
    content: dict[str, Any]

    @property
    def configurations(self) -> list[str]:
        """Names of all configurations in the file."""
        return list(self.content["configurations"])

    def configuration(self, name: str) -> dict[str, Any]:
        """The settings of one configuration, `inherits_from` resolved (the child overrides the parent).

        Of plans from before nnU-Net 2.4 the network's `architecture` is rebuilt, as nnU-Net does it.
        Raises ConfigError for an unknown name, DataError for a parent that does not exist, a circle, or a setting that cannot be.
        """
        known = self.content["configurations"]
        if name not in known:
            advice = _OF_LARGE_IMAGES if name in ("3d_lowres", "3d_cascade_fullres") and "3d_fullres" in known else nearest(name, known)
            raise ConfigError(f"configurations: {name!r} is not in {self.path}.{advice} Known: {', '.join(known)}.")
        resolved, fault = _checked(self._resolved(name))
        if fault:
            raise DataError(f"plans: configuration {name!r} of {self.path}: {fault}. Repair it or run {PREPROCESS_COMMAND}.")
        return resolved

    def with_sizes(self, name: str, batch_size: int | None, patch_size: Sequence[int] | None) -> "Plans":
        """These plans with another batch size or patch size of a configuration; None: as planned.

        Raises ConfigError for a size that the configuration's network does not take, and as `configuration`.
        """
        own = {"batch_size": batch_size, "patch_size": None if patch_size is None else list(patch_size)}
        changed = {key: value for key, value in own.items() if value is not None}
        planned = self.configuration(name)
        if not changed:
            return self
        where = f"configuration {name!r} of {self.path}"
        if patch_size is not None and len(patch_size) != (axes := len(planned["patch_size"])):
            raise ConfigError(f"patch_size: {shown(list(patch_size))} has {len(patch_size)} numbers, and {where} has {axes} axes.")
        known = self.content["configurations"]
        content = {**self.content, "configurations": {**known, name: {**known[name], **changed}}}
        sized = Plans(self.name, self.path, content)
        if fault := _checked(sized._resolved(name))[1]:
            raise ConfigError(f"{next(iter(changed)) if len(changed) == 1 else 'patch_size'}: {where}: {fault}.")
        return sized

    def _resolved(self, name: str) -> dict[str, Any]:
        known = self.content["configurations"]
        seen: list[str] = []
        resolved: dict[str, Any] = {}
        parent: Any = name
        while parent is not None:
            if not isinstance(parent, str) or parent in seen or parent not in known:
                chain = " -> ".join([*seen, shown(parent).strip("'")])
                fault = "inherits from itself" if parent in seen else f"inherits from {shown(parent)}, which is not there"
                raise DataError(f"plans: in {self.path} a configuration {fault} ({chain[-500:]}). Repair `inherits_from`.")
            seen.append(parent)
            resolved = {**known[parent], **resolved}
            parent = known[parent].get("inherits_from")
        resolved.pop("inherits_from", None)
        return resolved


def _checked(settings: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """A resolved configuration in the form of today's plans, and what of it cannot be; '' when all can."""
    fault = fault_of_configuration(settings)
    if fault or not is_of_old_plans(settings):
        return settings, fault
    if fault := fault_of_old_network(settings, MAX_SIZE, MAX_STAGES):
        return settings, fault
    rebuilt = with_architecture(settings)
    return rebuilt, fault_of_configuration(rebuilt)


def fault_of_configuration(settings: dict[str, Any]) -> str:
    """What of a resolved configuration cannot be, of the settings that it has; '' when all can. Pure."""
    identifier = settings.get("data_identifier", "")
    if "data_identifier" in settings and (not isinstance(identifier, str) or (fault := fault_of_name(identifier, LONGEST_CASE))):
        return f"data_identifier {shown(identifier)} {fault if isinstance(identifier, str) else 'is no text'}"
    if "batch_size" in settings and not is_size(settings["batch_size"]):
        return f"batch_size must be a whole number from 1 to {MAX_SIZE}, got {shown(settings['batch_size'])}"
    patch = settings.get("patch_size")
    if "patch_size" in settings and not (isinstance(patch, list) and len(patch) in (2, 3) and all(map(is_size, patch))):
        return f"patch_size must be two or three whole numbers from 1 to {MAX_SIZE}, got {shown(patch)}"
    if "spacing" in settings and not _is_spacing(settings["spacing"], 3 if patch is None else len(patch)):
        return f"spacing must be a positive number of mm for each axis of patch_size, got {shown(settings['spacing'])}"
    for key in ("use_mask_for_norm", "normalization_schemes"):
        if not isinstance(settings.get(key, []), list):
            return f"{key} must be a list with an entry per channel, got {shown(settings[key])}"
    if fault := _fault_of_stages(settings):
        return fault
    return fault_of_architecture(settings["architecture"], patch) if "architecture" in settings else ""


def _fault_of_stages(settings: dict[str, Any]) -> str:
    """What of the names of a cascade's other stages cannot be; '' when all can."""
    before, after = settings.get("previous_stage"), settings.get("next_stage")
    if before is not None and not isinstance(before, str):
        return f"previous_stage must be the name of a configuration, got {shown(before)}"
    names = after if isinstance(after, list) else [] if after is None else [after]
    if not all(isinstance(name, str) for name in names):
        return f"next_stage must be the name of a configuration, or a list of such, got {shown(after)}"
    return ""


def _is_spacing(value: Any, axes: int) -> bool:
    """One length per axis; for patches of slices nnU-Net also takes three (nnunetv2/preprocessing/preprocessors)."""
    lengths = value if isinstance(value, list) else []
    return len(lengths) in {axes, 3} and all(type(mm) in (int, float) and 0 < mm < math.inf for mm in lengths)


def load_plans(dataset_folder: Path, plans_name: str) -> Plans:
    """Read `<dataset_folder>/<plans_name>.json`. Raises ConfigError when it is missing, DataError when it is not a plans file."""
    if fault := fault_of_name(plans_name):
        raise ConfigError(f"plans: the name {shown(plans_name)} {fault}. Name a file of {dataset_folder} without .json.")
    path = dataset_folder / f"{plans_name}.json"
    if not path.is_file():
        present = sorted(p.stem for p in dataset_folder.glob("*Plans*.json"))
        raise ConfigError(
            f"plans: {path} does not exist.{nearest(plans_name, present)} "
            f"Found: {', '.join(present) or 'none'}. {PREPROCESS_COMMAND} makes plans."
        )
    content = read_json(path, "plans")
    if not isinstance(content, dict) or not isinstance(content.get("configurations"), dict):
        raise DataError(f"plans: {path} has no 'configurations' and is no nnU-Net v2 plans file. Run {PREPROCESS_COMMAND}.")
    malformed = [name for name, settings in content["configurations"].items() if not isinstance(settings, dict)]
    if malformed:
        raise DataError(f"plans: configuration {malformed[0]!r} of {path} is not a JSON object. Repair it or run {PREPROCESS_COMMAND}.")
    for name in content["configurations"]:
        if fault := fault_of_name(name):
            raise DataError(f"plans: the configuration {shown(name)} of {path} {fault}. Rename it.")
    reader = content.get("image_reader_writer", "SimpleITKIO")
    if not isinstance(reader, str) or not re.fullmatch(r"[A-Z]\w*", reader, re.ASCII):
        raise DataError(f"plans: image_reader_writer of {path} must be the name of a reader of nnU-Net's, got {shown(reader)}. Repair it.")
    for key in ("transpose_forward", "transpose_backward"):
        axes = content.get(key, [0, 1, 2])
        if not isinstance(axes, list) or tuple(axes) not in permutations(range(3)):
            raise DataError(f"plans: {key} of {path} must name each of the axes 0, 1, 2 once, got {shown(axes)}. Repair it.")
    return Plans(plans_name, path, content)


def plans_of(spec: RunSpec) -> Plans:
    """The plans that a run follows: those of its dataset, with its own batch size and patch size. Raises ConfigError or DataError."""
    return load_plans(spec.preprocessed_folder, spec.plans).with_sizes(spec.configuration, spec.batch_size, spec.patch_size)


@dataclass(frozen=True)
class Labels:
    """What dataset.json says of the labels.

    `foreground` maps each class that is scored to its label values, in the order of the network's scored outputs:
    for plain labels one value each without background, for regions the listed values, in `regions_class_order`'s order.
    """

    names: dict[str, int | tuple[int, ...]]
    foreground: dict[str, tuple[int, ...]]
    has_regions: bool
    ignore_label: int | None
    regions_class_order: tuple[int, ...] | None

    @property
    def num_heads(self) -> int:
        """Output channels of the network: all labels with background, or one per region."""
        return len(self.foreground) if self.has_regions else len(self.foreground) + 1

    @property
    def foreground_values(self) -> tuple[int, ...]:
        """Every label value but background and ignore label, ascending: nnU-Net's `foreground_labels`."""
        return tuple(sorted(self.values - {0, self.ignore_label}))

    @property
    def values(self) -> frozenset[int]:
        """Every value that a label file may hold, ignore label included."""
        plain = {v for values in self.names.values() for v in (values if isinstance(values, tuple) else (values,))}
        return frozenset(plain)


def load_dataset_json(dataset_folder: Path) -> dict[str, Any]:
    """Read dataset.json and check the keys that training needs. Raises DataError."""
    content = read_json(dataset_folder / "dataset.json", "dataset.json")
    if not isinstance(content, dict):
        raise DataError(f"dataset.json: {dataset_folder / 'dataset.json'} is not a JSON object.")
    missing = [key for key in ("labels", "file_ending") if key not in content]
    if not {"channel_names", "modality"} & set(content):
        missing.append("channel_names")
    if missing:
        raise DataError(f"dataset.json: {dataset_folder / 'dataset.json'} lacks {', '.join(missing)}. See nnU-Net's dataset format.")
    ending, channels = content["file_ending"], content.get("channel_names") or content.get("modality")
    if not isinstance(ending, str) or not re.fullmatch(r"(\.[A-Za-z0-9]{1,16}){1,3}", ending, re.ASCII):
        raise DataError(f"dataset.json: file_ending of {dataset_folder / 'dataset.json'} must be like .nii.gz, got {shown(ending)}.")
    if not isinstance(channels, dict | list) or not channels:
        raise DataError(
            f"dataset.json: channel_names of {dataset_folder / 'dataset.json'} must map channels to names, got {shown(channels)}."
        )
    return content


def labels_of(dataset_json: dict[str, Any], where: str = "dataset.json") -> Labels:
    """The labels of a dataset.json, checked as nnU-Net's LabelManager does. Raises DataError."""
    try:
        names = {str(k): _label_value(v) for k, v in dict(dataset_json["labels"]).items()}
        order = _label_value(dataset_json["regions_class_order"]) if dataset_json.get("regions_class_order") is not None else None
    except (KeyError, TypeError, ValueError) as err:
        raise DataError(f"{where}: 'labels' must map names to integers or lists of integers: {err}.") from err
    if strange := [name for name in names if not name.isprintable() or not 0 < len(name) <= 200]:
        raise DataError(f"{where}: the label name {shown(strange[0])} must be printable text of at most 200 characters. Rename it.")
    if "background" not in names or set(_values(names["background"])) != {0}:
        raise DataError(f"{where}: 'labels' needs \"background\": 0, got {names.get('background')!r}.")
    ignore = names.get("ignore")
    if isinstance(ignore, tuple):
        raise DataError(f"{where}: the ignore label must be one integer, got {list(ignore)}.")
    scored = {k: v for k, v in names.items() if k not in ("background", "ignore")}
    plain = sorted({v for values in scored.values() for v in _values(values)} | {0})
    if len(scored) == 0:
        raise DataError(f"{where}: 'labels' names nothing but background. Name at least one class.")
    if plain != list(range(len(plain))):
        raise DataError(f"{where}: label values must be consecutive from 0, got {shown(plain)}.")
    if ignore is not None and ignore != max(plain) + 1:
        raise DataError(f"{where}: the ignore label must be the highest value ({max(plain) + 1}), got {ignore}.")
    has_regions = any(isinstance(v, tuple) and len(v) > 1 for v in scored.values())
    if not has_regions and len(plain) != len(scored) + 1:
        raise DataError(f"{where}: two labels have the same value, got {scored}. Give each its own.")
    if has_regions and (not isinstance(order, tuple) or len(order) != len(scored)):
        raise DataError(f"{where}: regions need 'regions_class_order' with one label value per region, got {order!r}.")
    ordered = scored if has_regions else dict(sorted(scored.items(), key=lambda item: _values(item[1])))
    return Labels(
        names=names,
        foreground={name: _values(value) for name, value in ordered.items()},
        has_regions=has_regions,
        ignore_label=ignore,
        regions_class_order=order if has_regions and isinstance(order, tuple) else None,
    )


def _label_value(value: Any) -> int | tuple[int, ...]:
    return tuple(map(_whole, value)) if isinstance(value, list | tuple) else _whole(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str) or not re.fullmatch(r"-?\d{1,9}", str(value), re.ASCII):
        raise ValueError(f"got {shown(value)}")
    return int(value)


def _values(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


_KEYS_WITHOUT_CASES = frozenset(
    ("name", "channel_names", "modality", "labels", "regions_class_order", "file_ending", "numTraining", "overwrite_image_reader_writer")
)


def without_cases(dataset_json: dict[str, Any]) -> dict[str, Any]:
    """The keys of a dataset.json that nnU-Net needs for a prediction; other keys may list cases, which pseudonyms shall hide."""
    return {key: value for key, value in dataset_json.items() if key in _KEYS_WITHOUT_CASES}


def num_input_channels(dataset_json: dict[str, Any]) -> int:
    """Image channels per case (without a cascade's extra ones)."""
    return len(dataset_json.get("channel_names") or dataset_json["modality"])


@dataclass(frozen=True)
class Split:
    """The cases of one fold, each list in the file's order."""

    train: tuple[str, ...]
    val: tuple[str, ...]


def load_splits(dataset_folder: Path) -> list[Split]:
    """Read splits_final.json. Raises DataError when it is missing or malformed."""
    path = dataset_folder / "splits_final.json"
    content = read_json(path, "splits_final.json")
    try:
        if not all(isinstance(fold[part], list) for fold in content for part in ("train", "val")):
            raise TypeError("'train' and 'val' must be lists")
        splits = [Split(tuple(map(str, fold["train"])), tuple(map(str, fold["val"]))) for fold in content]
    except (TypeError, KeyError) as err:
        raise DataError(f"splits_final.json: {path} must be a list of objects with 'train' and 'val': {err!r}.") from err
    check_case_ids((case for split in splits for part in (split.train, split.val) for case in part), str(path))
    return splits


def check_case_ids(case_ids: Iterable[str], where: str) -> None:
    """Raise DataError for the first id that could leave the folders of a dataset or run, or that no file can be named by."""
    for case_id in case_ids:
        if fault := fault_of_case(case_id):
            raise DataError(f"cases: the id {shown(case_id)} in {where} {fault}. Rename the case's files and its entries in the split.")


def split_for(splits: list[Split], fold: Fold, all_cases: tuple[str, ...], dataset: str) -> Split:
    """The cases of `fold`; nnU-Net's fold `all` trains and validates on every case. Raises ConfigError for a fold that does not exist."""
    if fold == "all":
        check_case_ids(all_cases, f"the preprocessed folder of {dataset}")
        return Split(all_cases, all_cases)
    if not 0 <= fold < len(splits):
        there = f"{len(splits)} folds (0-{len(splits) - 1})" if splits else "no folds"
        raise ConfigError(f"folds: fold {fold} does not exist: splits_final.json of {dataset} has {there}.")
    return splits[fold]
