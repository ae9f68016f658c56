"""A label file as nnU-Net's reader gives it: what the validation scores, and what is checked before anything starts. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainers.data.whole_file import check_whole


@dataclass(frozen=True)
class SegmentationFile:
    """Values (Z, Y, X) and spacing in millimetres in the same order."""

    values_ZYX: npt.NDArray[Any]
    spacing_ZYX: tuple[float, ...]


def read_segmentation(path: Path, reader: Any) -> SegmentationFile:
    """Read a whole label file with a reader of nnU-Net's. Raises whatever its library raises, and ValueError for a file that was cut."""
    check_whole(path)
    values_1ZYX, properties = reader.read_seg(str(path))
    return SegmentationFile(np.asarray(values_1ZYX)[0], tuple(float(s) for s in properties["spacing"]))
