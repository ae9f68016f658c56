"""Lesion-wise detection: connected components of one class in reference and prediction, and which of them meet.

* Voxels that touch by a face, an edge or a corner are one lesion (26 neighbours; 8 in a single slice): two that touch count as one.
* A true lesion is detected when any voxel of it is predicted.
* A predicted component without a voxel of any true lesion is a false positive. One that bridges several lesions detects all of them.
* The Dice of a true lesion is that against all predicted components that touch it, each as a whole; it is 0 for a missed one.
* The lesion-wise Dice of a case is the mean over its true lesions and its false positives, which count 0.

That is the lesion-wise Dice of the BraTS challenges since 2023, in its variant without dilation of the reference (BraTS joins true lesions
that lie a few voxels apart) and without a smallest volume (BraTS leaves out lesions below 50 voxels, for example): every component counts.
"""

import math

import cc3d
import numpy as np

from trainers.contract.lesions import Lesions
from trainers.validation.surfaces import Mask


def lesions_of(reference_ZYX: Mask, prediction_ZYX: Mask) -> Lesions:
    """Count and match the lesions of two masks of one shape."""
    reference_ZYX, prediction_ZYX = np.pad(reference_ZYX, 1), np.pad(prediction_ZYX, 1)  # cc3d (4.1.1) fails on a single line of voxels
    true_ZYX, num_true = cc3d.connected_components(reference_ZYX, connectivity=26, return_N=True)
    predicted_ZYX, num_predicted = cc3d.connected_components(prediction_ZYX, connectivity=26, return_N=True)
    both = reference_ZYX & prediction_ZYX
    codes = true_ZYX[both].astype(np.int64) * (num_predicted + 1) + predicted_ZYX[both]
    meetings, voxels = np.unique(codes, return_counts=True)
    of_true, of_predicted = np.divmod(meetings, num_predicted + 1)
    sizes = np.bincount(predicted_ZYX[prediction_ZYX], minlength=num_predicted + 1)
    overlap = np.bincount(of_true, voxels, num_true + 1)[1:]
    touching = np.bincount(of_true, sizes[of_predicted], num_true + 1)[1:]
    dice = 2 * overlap / (np.bincount(true_ZYX[reference_ZYX], minlength=num_true + 1)[1:] + touching)
    num_false = num_predicted - np.unique(of_predicted).size
    counted = num_true + num_false
    return Lesions(
        num_true=num_true,
        num_detected=int((overlap > 0).sum()),
        num_false=num_false,
        dice=float(dice.sum()) / counted if counted else math.nan,
    )
