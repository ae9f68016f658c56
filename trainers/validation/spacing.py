"""Millimetres between the voxels of a case's original grid, as preprocessing noted them; or why they are not known.

nnU-Net copies the labels into gt_segmentations without what may lie beside them (a TIFF's spacing is a .json), and labels may have a header
of their own making: the image's spacing is the one that the model was trained at.
"""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spacing:
    """Of the reader's axes Z Y X, that is before nnU-Net's transposition."""

    mm_ZYX: tuple[float, ...] | None
    why_unknown: str = ""
    """Empty where `mm_ZYX` is given."""


def noted_spacing(properties: dict[str, Any], reader: str) -> Spacing:
    """The spacing in a case's properties, which nnU-Net's image reader of this name gave."""
    noted = properties.get("spacing")
    if reader == "NaturalImage2DIO":
        return Spacing(None, "images of this format (PNG, BMP, 2D TIFF) have no spacing in millimetres")
    if reader == "Tiff3DIO" and noted == (1, 1, 1):  # a tuple: a .json would have made it a list
        return Spacing(
            None,
            "nnU-Net's preprocessing found no .json with the spacing beside the TIFF images; "
            'write imagesTr/<case>.json as {"spacing": [z, y, x]} for each case, then plan and preprocess again',
        )
    try:
        mm = tuple(float(step) for step in noted or ())
    except (TypeError, ValueError):
        mm = ()
    if len(mm) != 3 or not all(math.isfinite(step) and step > 0 for step in mm):
        return Spacing(None, f"the preprocessed case notes the spacing {noted!r}; correct the image's header and preprocess again")
    return Spacing(mm)
