"""nnU-Net's plans, dataset.json and splits read as plain JSON, without importing nnunetv2 or torch.

Sources for the formats: nnunetv2/utilities/plans_handling/plans_handler.py (inheritance of configurations),
nnunetv2/utilities/label_handling/label_handling.py (labels, regions, ignore label), nnU-Net's documentation of dataset_format.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.spec.errors import ConfigError, DataError
from trainers.spec.files import read_json
from trainers.spec.names import Fold, nearest

PREPROCESS_COMMAND = "nnUNetv2_plan_and_preprocess"


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

        Raises ConfigError for an unknown name, DataError for a parent that does not exist or a circle.
        """
        known = self.content["configurations"]
        if name not in known:
            raise ConfigError(f"configurations: {name!r} is not in {self.path}.{nearest(name, known)} Known: {', '.join(known)}.")
        return self._resolved(name, ())

    def _resolved(self, name: str, seen: tuple[str, ...]) -> dict[str, Any]:
        known = self.content["configurations"]
        if name in seen or name not in known:
            chain = " -> ".join([*seen, name])
            fault = "inherits from itself" if name in seen else f"inherits from {name!r}, which is not there"
            raise DataError(f"plans: in {self.path} a configuration {fault} ({chain}). Repair `inherits_from`.")
        own = dict(known[name])
        parent = own.pop("inherits_from", None)
        return own if parent is None else {**self._resolved(parent, (*seen, name)), **own}


def load_plans(dataset_folder: Path, plans_name: str) -> Plans:
    """Read `<dataset_folder>/<plans_name>.json`. Raises ConfigError when it is missing, DataError when it is not a plans file."""
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
    return Plans(plans_name, path, content)


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
    return content


def labels_of(dataset_json: dict[str, Any], where: str = "dataset.json") -> Labels:
    """The labels of a dataset.json, checked as nnU-Net's LabelManager does. Raises DataError."""
    try:
        names = {str(k): _label_value(v) for k, v in dict(dataset_json["labels"]).items()}
    except (TypeError, ValueError) as err:
        raise DataError(f"{where}: 'labels' must map names to integers or lists of integers: {err}.") from err
    if "background" not in names or set(_values(names["background"])) != {0}:
        raise DataError(f"{where}: 'labels' needs \"background\": 0, got {names.get('background')!r}.")
    ignore = names.get("ignore")
    if isinstance(ignore, tuple):
        raise DataError(f"{where}: the ignore label must be one integer, got {list(ignore)}.")
    scored = {k: v for k, v in names.items() if k not in ("background", "ignore")}
    plain = sorted({v for values in scored.values() for v in (values if isinstance(values, tuple) else (values,))} | {0})
    if plain != list(range(len(plain))):
        raise DataError(f"{where}: label values must be consecutive from 0, got {plain}.")
    if ignore is not None and ignore != max(plain) + 1:
        raise DataError(f"{where}: the ignore label must be the highest value ({max(plain) + 1}), got {ignore}.")
    has_regions = any(isinstance(v, tuple) and len(v) > 1 for v in scored.values())
    if not has_regions and len(plain) != len(scored) + 1:
        raise DataError(f"{where}: two labels have the same value, got {scored}. Give each its own.")
    order = dataset_json.get("regions_class_order")
    if has_regions and (not isinstance(order, list) or len(order) != len(scored)):
        raise DataError(f"{where}: regions need 'regions_class_order' with one label value per region, got {order!r}.")
    ordered = scored if has_regions else dict(sorted(scored.items(), key=lambda item: _values(item[1])))
    return Labels(
        names=names,
        foreground={name: _values(value) for name, value in ordered.items()},
        has_regions=has_regions,
        ignore_label=ignore,
        regions_class_order=tuple(int(v) for v in order) if has_regions and isinstance(order, list) else None,
    )


def _label_value(value: Any) -> int | tuple[int, ...]:
    return tuple(int(v) for v in value) if isinstance(value, list | tuple) else int(value)


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
        return [Split(tuple(map(str, fold["train"])), tuple(map(str, fold["val"]))) for fold in content]
    except (TypeError, KeyError) as err:
        raise DataError(f"splits_final.json: {path} must be a list of objects with 'train' and 'val': {err!r}.") from err


def split_for(splits: list[Split], fold: Fold, all_cases: tuple[str, ...], dataset: str) -> Split:
    """The cases of `fold`; nnU-Net's fold `all` trains and validates on every case. Raises ConfigError for a fold that does not exist."""
    if fold == "all":
        return Split(all_cases, all_cases)
    if not 0 <= fold < len(splits):
        there = f"{len(splits)} folds (0-{len(splits) - 1})" if splits else "no folds"
        raise ConfigError(f"folds: fold {fold} does not exist: splits_final.json of {dataset} has {there}.")
    return splits[fold]
