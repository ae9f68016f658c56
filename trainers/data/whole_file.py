"""Is an image file as long as its header says? SimpleITK silently reads a NIfTI file that was cut, with zeros for what is missing."""

import gzip
import math
from pathlib import Path


def check_whole(path: Path) -> None:
    """Raise ValueError or OSError for a NIfTI file that was cut. Files of other kinds are left to their readers, which notice."""
    name = path.name.lower()
    if not name.endswith((".nii", ".nii.gz")):
        return
    import nibabel

    try:
        image = nibabel.load(path)
        needed = int(image.dataobj.offset) + math.prod(image.shape) * int(image.get_data_dtype().itemsize)
        found = path.stat().st_size if name.endswith(".nii") else _unpacked_bytes(path)
    except OSError:
        raise
    except Exception as err:  # of gzip, zlib or nibabel
        raise ValueError(f"the file was cut or is no NIfTI file: {type(err).__name__}: {err}") from err
    if found < needed:
        raise ValueError(f"the file was cut: {found} of {needed} bytes are there")


def _unpacked_bytes(path: Path) -> int:
    """Length of what a gzip file holds; its check sum is compared on the way."""
    found = 0
    with gzip.open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            found += len(block)
    return found
