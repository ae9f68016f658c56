"""Which folds of one model were trained by older code of the user's: one rule for `status` and `compare`. Pure."""

from collections.abc import Sequence
from typing import NamedTuple


class Coded(NamedTuple):
    """A fold, by the code that trained it."""

    code: str
    """As `OwnParts.text` has it; empty: none of the user's, or it is not known."""
    begun_unix: float
    """As `begun_or_taken_unix`; 0: not known."""


def older_code(folds: Sequence[Coded]) -> list[str]:
    """For each of the folds of a model by which older code it was trained, with the newer one; '' for one that was not, or of which it is
    not known. The newest code is that of the fold that began last."""
    known = [fold for fold in folds if fold.code and fold.begun_unix > 0]
    newest = max(known, key=lambda fold: fold.begun_unix, default=None)
    return ["" if newest is None or fold not in known or fold.code == newest.code else f"{fold.code}, now {newest.code}" for fold in folds]
