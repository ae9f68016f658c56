"""The cases of a held-out test set: found in a folder of images as nnU-Net names them, and checked before a worker starts."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.dataset.label_files import read_label_files
from orchestrator.dataset.preflight import problems_of_label_files
from orchestrator.dataset.problems import Problems, listed
from orchestrator.errors import ConfigError, DataError
from trainers.contract.held_out import HeldOutCase
from trainers.contract.plans import Labels, num_input_channels
from trainers.storage.faults import reading

LABEL_CURES = {"restore": "Copy it there anew.", "correct": "Correct the label file."}


def held_out_cases(images: Path, labels: Path | None, dataset_json: dict[str, object]) -> dict[str, HeldOutCase]:
    """Case id -> its files. `dataset_json`: of the model.

    Raises ConfigError or DataError with all problems: no such folder, another file ending, a missing channel, labels without images and
    images without labels; StorageError where a disk is away.
    """
    ending, channels = str(dataset_json["file_ending"]), num_input_channels(dataset_json)
    found = Problems()
    names = _names_in(images, "images")
    by_case, strange = cases_by_name(names, ending)
    if strange:
        found.add(
            DataError(
                f"images: {images} holds {listed(strange)}; the model reads <case>_0000{ending}, a four-digit number per channel. "
                "Rename or convert these files, or move them away."
            )
        )
    found.add(*(DataError(text) for text in channel_problems(images, by_case, channels, ending)))
    if not by_case and not strange:
        found.add(DataError(f"images: {images} holds no file: expected <case>_0000{ending}. Name the folder that holds the test images."))
    if labels is not None:
        found.add(*(DataError(text) for text in label_file_problems(labels, _names_in(labels, "labels"), images, list(by_case), ending)))
    found.raise_if_any()
    return {
        case: HeldOutCase(
            images=tuple(images / f"{case}_{channel:04d}{ending}" for channel in range(channels)),
            labels=None if labels is None else labels / f"{case}{ending}",
        )
        for case in sorted(by_case)
    }


def check_labels(folder: Path, cases: Mapping[str, HeldOutCase], known: Labels, reader: str) -> None:
    """Read every label file. Raises DataError with all that are damaged or hold a value which the model's dataset.json does not name."""
    files = {case: files.labels for case, files in cases.items() if files.labels is not None}
    found = Problems()
    found.add(*problems_of_label_files(folder, read_label_files(files, reader), known, **LABEL_CURES))
    found.raise_if_any()


def cases_by_name(names: Sequence[str], ending: str) -> tuple[dict[str, list[int]], list[str]]:
    """Case -> the channels of which there is a file; and the names that are none of an image. Pure."""
    pattern = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}", re.ASCII | re.DOTALL)
    by_case: dict[str, list[int]] = {}
    strange = []
    for name in sorted(names):
        if match := pattern.fullmatch(name):
            by_case.setdefault(match[1], []).append(int(match[2]))
        elif not (ending in (".tif", ".tiff") and name.endswith(".json")):  # TIFF: its spacing
            strange.append(name)
    return by_case, strange


def channel_problems(images: Path, by_case: Mapping[str, Sequence[int]], channels: int, ending: str) -> list[str]:
    """A sentence for each channel that cases lack, or have too much. Pure."""
    wrong: dict[tuple[int, bool], list[str]] = {}
    for case, present in by_case.items():
        for channel in {*range(channels)} ^ {*present}:
            wrong.setdefault((channel, channel in present), []).append(case)
    return [
        f"images: in {images} {listed(cases)} {'has' if is_extra else 'lacks'} the channel file <case>_{channel:04d}{ending}; "
        f"the model has {channels} channel{'s' if channels > 1 else ''}. {'Move it away.' if is_extra else 'Copy it there.'}"
        for (channel, is_extra), cases in sorted(wrong.items())
    ]


def label_file_problems(labels: Path, names: Sequence[str], images: Path, cases: Sequence[str], ending: str) -> list[str]:
    """Labels without images, images without labels, and labels of another file ending, a sentence each. Pure."""
    labelled = {name.removesuffix(ending) for name in names if name.endswith(ending)}
    is_spacing = ending in (".tif", ".tiff")
    strange = sorted(name for name in names if not name.endswith(ending) and not (is_spacing and name.endswith(".json")))
    found = []
    if strange:
        found.append(f"labels: {labels} holds {listed(strange)}; the model reads <case>{ending}. Convert these files, or move them away.")
    if alone := sorted(labelled - {*cases}):
        found.append(
            f"labels: {labels} holds labels of {listed(alone)}, of which {images} has no image. Copy the images, or move them away."
        )
    if bare := sorted({*cases} - labelled):
        found.append(f"labels: {labels} has no file of {listed(bare)}. Copy them there, or predict without labels: `nnfleet predict`.")
    return found


def _names_in(folder: Path, what: str) -> list[str]:
    """Names of the files in a folder; hidden ones are nobody's."""
    with reading(folder):
        if not folder.is_dir():
            place = folder.absolute()
            raise ConfigError(f"{what}: {place} is no folder where nnfleet looks for it. Name one that the cluster's nodes see.")
        return [path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
