"""Which epochs are candidates: those of the highest EMA pseudo-Dice, whose weights are kept for a full validation.

A function of the history alone, which every commit holds: a run that is killed and resumed has the candidates of an unbroken one.
"""

import heapq
import math
from collections.abc import Mapping, Sequence

from trainers.contract.commits import EpochRow, Manifest
from trainers.contract.run_spec import candidate_name


def candidate_epochs(history: Sequence[EpochRow], count: int) -> tuple[int, ...]:
    """The `count` epochs of the highest EMA, highest first; of two with the same the earlier one.

    An epoch without foreground has the EMA of the one before, which says nothing of its own weights: it is none. The first of them is the
    epoch of the best checkpoint.
    """
    scores = {row.epoch: row.ema_pseudo_dice for row in history if not math.isnan(row.pseudo_dice_mean)}
    known = [(-ema, epoch) for epoch, ema in scores.items() if ema is not None]
    return tuple(epoch for _, epoch in heapq.nsmallest(count, known))


def candidates_after(epochs: Sequence[int], kept: Sequence[Manifest], newest: Mapping[int, Manifest]) -> tuple[Manifest, ...]:
    """The manifests of these epochs, of those `kept` and of the `newest` epoch's weights; none of an epoch whose weights are lost.

    The weights of an epoch that is a new best are one file under two names.
    """
    found = {manifest.epoch: manifest for manifest in kept} | dict(newest)
    return tuple(found[epoch].model_copy(update={"checkpoint": candidate_name(epoch)}) for epoch in epochs if epoch in found)
