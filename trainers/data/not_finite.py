"""Voxels of a preprocessed image that are no finite numbers (NaN, infinite): which, how many, and whether the raw image has them too.

One such voxel of a raw image becomes a whole channel: by its mean and deviation in nnU-Net's Z score, and by the splines of resampling.
Only an image that is neither normalised by its own values nor resampled keeps a single one. Of NIfTI files nnU-Net's SimpleITK readers
make zeros of them; its nibabel readers and the other formats pass them on.
"""

import glob
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainers.contract.plans import load_dataset_json
from trainers.errors import DataError, NnfleetError

log = logging.getLogger(__name__)


def middle_is_finite(image: Any) -> bool:
    """False if a voxel of the middle line of any channel is no finite number. Unpacks a few blocks of an image (C, Z, Y, X) alone."""
    _, z, y, _ = (size // 2 for size in image.shape)
    return bool(np.isfinite(np.asarray(image[:, z, y])).all())


def not_finite(folder: Path, case_id: str, image: Any) -> DataError:
    """The error of a case whose `image` (C, Z, Y, X) has such voxels: channels and numbers of voxels, cause, and cure.

    `folder` lies in the folder of its preprocessed dataset. The raw images are read if they are where nnU-Net looks for them, or beside.
    """
    counts = [int(np.count_nonzero(~np.isfinite(np.asarray(image[channel])))) for channel in range(image.shape[0])]
    names = _channel_names(folder.parent, len(counts))
    total = int(np.prod(image.shape[1:]))
    found = ", ".join(f"{count} of {total} voxels of channel {names[c]}" for c, count in enumerate(counts) if count)
    where = f"preprocessed data: case {case_id} in {folder} holds values that are not finite numbers (NaN or infinite): {found}."
    return DataError(f"{where} {_cause(folder.parent, case_id)}")


def _cause(dataset_folder: Path, case_id: str) -> str:
    try:
        files, raw = _raw_image(dataset_folder, case_id)
    except Exception as err:  # image libraries raise whatever they like, and the case's own error is what matters
        log.warning("the raw images of case %s were not checked: %s: %s", case_id, type(err).__name__, err)
        return (
            f"Mostly its raw image (imagesTr of {dataset_folder.name} in nnUNet_raw) holds them, and preprocessing passes them on: "
            "correct it there, then run nnUNetv2_preprocess again."
        )
    counts = [int(np.count_nonzero(~np.isfinite(channel))) for channel in raw]
    at_fault = [f"{files[min(c, len(files) - 1)]} ({count} of them)" for c, count in enumerate(counts) if count]
    if at_fault:
        return f"They come from the raw image {', '.join(at_fault)}: correct it, then run nnUNetv2_preprocess again."
    return f"Its raw image {files[0]} has none, so the preprocessed file was damaged since: run nnUNetv2_preprocess again."


def _raw_image(dataset_folder: Path, case_id: str) -> tuple[list[str], npt.NDArray[np.float32]]:
    """The raw files of a case and their values (C, Z, Y, X). Raises what nnU-Net's readers raise."""
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    named = os.environ.get("nnUNet_raw")  # noqa: SIM112 - nnU-Net's
    roots = [Path(root) for root in (named, dataset_folder.parents[1] / "nnUNet_raw") if root]
    folder = next((root / dataset_folder.name for root in roots if (root / dataset_folder.name / "dataset.json").is_file()), None)
    if folder is None:
        raise FileNotFoundError(f"{dataset_folder.name} is not in {' or '.join(map(str, roots))}")
    dataset_json = load_dataset_json(folder)
    files = _raw_files(folder, dataset_json, case_id)
    if files[0].endswith((".nii", ".nii.gz")):
        return files, NibabelIO().read_images(files)[0]  # SimpleITK gives zeros in place of such voxels
    reader = determine_reader_writer_from_dataset_json(dataset_json, files[0], verbose=False)
    return files, reader().read_images(files)[0]


def _raw_files(folder: Path, dataset_json: dict[str, Any], case_id: str) -> list[str]:
    """As nnU-Net's `get_filenames_of_train_images_and_targets`, which forks processes: those may hang inside a Ray worker."""
    if listed := dataset_json.get("dataset"):
        return [str(folder / os.path.expandvars(file)) for file in listed[case_id]["images"]]
    ending = dataset_json["file_ending"]
    pattern = f"{glob.escape(case_id)}_[0-9][0-9][0-9][0-9]{ending}"
    if not (files := sorted(map(str, (folder / "imagesTr").glob(pattern)))):
        raise FileNotFoundError(f"{folder / 'imagesTr'} has no {case_id}_0000{ending}")
    return files


def _channel_names(dataset_folder: Path, channels: int) -> list[str]:
    """'0 (CT)' for each channel; numbers alone where dataset.json does not say."""
    try:
        content = load_dataset_json(dataset_folder)
    except NnfleetError:
        return [str(channel) for channel in range(channels)]
    named = content.get("channel_names") or content["modality"]
    texts = named if isinstance(named, list) else [named.get(str(channel)) for channel in range(channels)]
    return [f"{channel} ({texts[channel]})" if channel < len(texts) and texts[channel] else str(channel) for channel in range(channels)]
