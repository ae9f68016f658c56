"""What must be equal between an interrupted run and an unbroken one."""

import hashlib
from typing import Any

import torch

from trainers.spec.committed import Committed, newest_committed
from trainers.spec.folder import RunFolder


def weights_digest(folder: RunFolder) -> str:
    """SHA-256 over sorted tensor names and bytes of the final checkpoint."""
    weights = torch.load(folder.checkpoint("final"), weights_only=True)["network_weights"]
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def curves(folder: RunFolder) -> list[tuple[Any, ...]]:
    """What must not depend on interruptions: losses, Dice, EMA and learning rate per epoch."""
    rows = reached(folder).history
    return [(r.epoch, r.train_loss, r.val_loss, r.pseudo_dice, r.pseudo_dice_mean, r.ema_pseudo_dice, r.learning_rate) for r in rows]


def reached(folder: RunFolder) -> Committed:
    """The newest commit, which has to be there."""
    committed = newest_committed(folder)
    assert committed is not None
    return committed


def epochs_done(folder: RunFolder) -> int:
    """Committed epochs."""
    committed = newest_committed(folder)
    return committed.epochs_done if committed else 0
