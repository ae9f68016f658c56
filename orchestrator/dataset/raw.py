"""A raw nnU-Net dataset, as nnU-Net lists it: for what is to be preprocessed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.dataset.folder import datasets_in, file_names, number_of, refuse_own_folder
from orchestrator.dataset.problems import listed
from orchestrator.errors import ConfigError, DataError
from trainers.contract.names import shown
from trainers.contract.plans import check_case_ids, labels_of, load_dataset_json
from trainers.storage.faults import reading


def find_raw_dataset(raw: Path | None, text: str) -> str:
    """Folder name of the dataset that `text` means (`17`, `017`, `Dataset017_X`) below nnUNet_raw. Raises ConfigError."""
    if raw is None:
        raise ConfigError(
            "nnUNet_raw: neither in the experiment file nor in the environment, and `preprocess` needs it. "
            "Set it as for nnU-Net (export nnUNet_raw=/path) or name it in the file (nnUNet_raw: /path)."
        )
    names = datasets_in(raw)
    if names is None:
        raise ConfigError(f"nnUNet_raw: {raw} is not a folder. Name an existing one, as seen by the cluster's nodes.")
    refuse_own_folder("nnUNet_raw", raw)
    found = [name for name in names if name == text or (text.isdecimal() and number_of(name) == int(text))]
    if len(found) > 1:
        raise ConfigError(f"dataset: {text} means several folders of {raw}: {', '.join(found)}. Write the whole name.")
    if not found:
        raise ConfigError(f"dataset: {text} is not in {raw}, from which `preprocess` takes it. Found: {', '.join(names) or 'no datasets'}.")
    return found[0]


def load_raw_dataset_json(dataset: Path) -> dict[str, Any]:
    """The dataset.json of a raw dataset, checked. Raises DataError."""
    if not (dataset / "dataset.json").is_file():
        raise DataError(f"dataset.json: {dataset / 'dataset.json'} does not exist. See nnU-Net's dataset format.")
    content = load_dataset_json(dataset)
    labels_of(content, str(dataset / "dataset.json"))
    return content


def raw_cases(dataset: Path, dataset_json: dict[str, Any]) -> tuple[str, ...]:
    """Ids of the training cases of a raw dataset, sorted. Raises DataError when there are none, StorageError.

    Source: nnunetv2/utilities/utils.py, get_filenames_of_train_images_and_targets.
    """
    listed = dataset_json.get("dataset")
    if isinstance(listed, dict):
        found = set(map(str, listed))
    else:
        ending, folder = dataset_json["file_ending"], dataset / "imagesTr"
        try:
            with reading(folder):
                names = [path.name for path in folder.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            names = []
        found = {name[: -len(ending) - 5] for name in names if name.endswith(ending)}
    if not found:
        raise DataError(f"dataset: {dataset} has no training images (imagesTr/<case>_0000{dataset_json['file_ending']}).")
    check_case_ids(sorted(found), str(dataset / "imagesTr"))
    return tuple(sorted(found))


def refuse_other_number(dataset: Path, dataset_json: dict[str, Any], cases: Sequence[str]) -> None:
    """Raise DataError where numTraining of a raw dataset is not the number of its training cases: nnU-Net refuses it."""
    if (named := dataset_json.get("numTraining")) != len(cases):
        raise DataError(
            f"dataset.json: numTraining of {dataset / 'dataset.json'} is {shown(named)}, and the dataset has {len(cases)} training cases. "
            "Correct the number, or put the missing cases there."
        )


def refuse_lacking_labels(dataset: Path, dataset_json: dict[str, Any], cases: Sequence[str]) -> None:
    """Raise DataError where training cases of a raw dataset have no label file, by the names in labelsTr; StorageError.

    A dataset.json that lists its files is nnU-Net's to check.
    """
    if isinstance(dataset_json.get("dataset"), dict):
        return
    ending, present = dataset_json["file_ending"], file_names(dataset / "labelsTr")
    if lacking := [f"{case}{ending}" for case in cases if f"{case}{ending}" not in present]:
        raise DataError(f"dataset: {dataset / 'labelsTr'} lacks {listed(lacking)}. Put the label file of every training image there.")
