"""What must be equal between an interrupted run and an unbroken one."""

from typing import Any

from trainers.contract.commits import Committed, committed_position, newest_committed
from trainers.contract.run_folder import RunFolder
from trainers.network import checkpoint


def weights_digest(folder: RunFolder) -> str:
    """SHA-256 over sorted tensor names and bytes of the final checkpoint."""
    return checkpoint.weights_digest(folder.checkpoint("final"))


def curves(folder: RunFolder) -> list[tuple[Any, ...]]:
    """What must not depend on interruptions: losses, Dice, EMA and learning rate per epoch."""
    rows = reached(folder).history
    return [(r.epoch, r.train_loss, r.val_loss, r.pseudo_dice, r.pseudo_dice_mean, r.ema_pseudo_dice, r.learning_rate) for r in rows]


def reached(folder: RunFolder) -> Committed:
    """The newest commit, which has to be there."""
    committed = newest_committed(folder)
    assert committed is not None, f"{folder.root} has no commit"
    return committed


def epochs_done(folder: RunFolder) -> int:
    """Committed epochs."""
    return committed_position(folder)[0]
