"""What a full validation counts of one class's lesions in one case, as plain values; `trainers/validation/lesions.py` counts them.

NaN policy: without a true lesion there is no sensitivity, and without any lesion, true or predicted, no lesion-wise Dice either; the
number of false positives always is one.
"""

import math

from trainers.contract.run_spec import Frozen

LESION_SCORES = ("lesion_sensitivity", "lesion_false_positives", "lesion_dice")
"""Names of the scores, everywhere that per-case metrics go."""
LESION_COUNTS = ("n_lesions", "n_detected")
"""Names of the numbers of true and of detected lesions, in the summary of a class."""


class Lesions(Frozen):
    """One class (or region) in one case."""

    num_true: int
    """Lesions in the reference."""
    num_detected: int
    """Of those, with at least one voxel that is predicted."""
    num_false: int
    """Predicted lesions without a voxel of the reference."""
    dice: float
    """Lesion-wise Dice: 0 for every lesion that was missed or is false."""

    @property
    def sensitivity(self) -> float:
        """Part of the true lesions that are detected."""
        return self.num_detected / self.num_true if self.num_true else math.nan

    @property
    def scores(self) -> dict[str, float]:
        """By the names in LESION_SCORES."""
        return dict(zip(LESION_SCORES, (self.sensitivity, float(self.num_false), self.dice), strict=True))
