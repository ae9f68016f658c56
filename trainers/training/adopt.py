"""The state of a training that nnU-Net began, made the first state of a run: what follows is exact from there on.

Everything that nnU-Net's own `--c` takes up is taken: weights, momentum, the scaler of mixed precision, epoch and curves. The smoothed
pseudo-Dice and its best are counted anew from the curves, since nnU-Net writes checkpoint_latest.pth before it looks for a new best.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainers.contract.commits import BestRecord, EpochRow
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.errors import CheckpointError
from trainers.network.checkpoint import Checkpoint, read_checkpoint
from trainers.network.model import build_network
from trainers.network.optimizer import sgd
from trainers.training.assemble import ModelConfig, model_config, state_writer
from trainers.training.pseudo_dice import updated
from trainers.training.state import TrainingProgress, digest_if_there

log = logging.getLogger(__name__)
CHANGING = ("network_weights", "optimizer_state", "grad_scaler_state")
"""The part of a checkpoint that every step changes."""
_CURE = "Restore the file, or name the nnUNet_preprocessed that it was trained on."


def adopt(
    spec: RunSpec, folder: RunFolder, fencing_token: int, history: Sequence[EpochRow], latest: Path, best: Path | None = None
) -> None:
    """Commit nnU-Net's checkpoint `latest`, whose curves are `history`, and before it the checkpoint of the best epoch.

    Returns when both are durable. Raises CheckpointError for a checkpoint that is damaged, of another network, or not the one that the
    run is to go on from; StorageError.
    """
    plan = model_config(spec)
    content = read_checkpoint(latest)
    check_is_as_it_was(spec, content, len(history), latest)
    check_fits(spec, plan, content, latest)
    writer = state_writer(spec, folder, plan, fencing_token, None)
    reached = progress_of(spec, history)
    best_epoch = reached.best_policy.best_epoch
    is_best = best_epoch == len(history) - 1
    if best_epoch is not None and not is_best and (earlier := _content_of_best(spec, plan, best, best_epoch)) is not None:
        writer.commit(progress_of(spec, history[: best_epoch + 1]), True, lambda: changing(earlier))
    writer.commit(reached, is_best, lambda: changing(content))
    writer.drain()


def progress_of(spec: RunSpec, history: Sequence[EpochRow]) -> TrainingProgress:
    """What these epochs come to by our rule for the best. Pure."""
    best = BestRecord(decay=spec.schedule.ema_decay)
    for row in history:
        best, _ = updated(best, row.pseudo_dice_mean, row.epoch)
    return TrainingProgress(history=tuple(history), best_policy=best)


def changing(content: Checkpoint) -> dict[str, Any]:
    """The tensors of a checkpoint, as states hold them."""
    return {key: content.get(key) for key in CHANGING}


def check_is_as_it_was(spec: RunSpec, content: Checkpoint, epochs: int, path: Path) -> None:
    """Raise CheckpointError where nnU-Net has replaced the file since its curves and its SHA-256 were read; StorageError.

    The SHA-256 is taken once more after `content` was loaded: what lies there before and after is what was loaded.
    """
    found = content.get("current_epoch")
    is_same = spec.continued is None or digest_if_there(path) == spec.continued.sha256
    if found != epochs or not is_same:
        now = f" by one with {found}" if isinstance(found, int) and found != epochs else ""
        raise CheckpointError(
            f"checkpoint: {path} was read with {epochs} epochs done and has been replaced since{now}: nnU-Net still trains there. "
            "End that training, then import again."
        )


def check_fits(spec: RunSpec, plan: ModelConfig, content: Checkpoint, path: Path) -> None:
    """Raise CheckpointError unless weights and momenta are of the network of the plans."""
    network = build_network(plan.configuration, plan.channels, plan.labels.num_heads, spec.settings.deep_supervision)
    optimizer = sgd(network, spec.schedule)
    try:
        network.load_state_dict(content["network_weights"])
        optimizer.load_state_dict(content["optimizer_state"])
        other = [weight for weight, kept in optimizer.state.items() if kept["momentum_buffer"].shape != weight.shape]
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as err:
        why = str(err).strip().splitlines()[:2]
        raise CheckpointError(f"checkpoint: {path} does not fit the network of {spec.plans}: {' '.join(why)[:300]}. {_CURE}") from err
    if other:
        raise CheckpointError(f"checkpoint: {path} holds {len(other)} momenta of other shapes than their weights. {_CURE}")


def _content_of_best(spec: RunSpec, plan: ModelConfig, path: Path | None, best_epoch: int) -> Checkpoint | None:
    """The checkpoint of the best epoch, unless it is gone or of a later epoch than the state: both are said."""
    content = None if path is None else read_checkpoint(path)
    epoch = None if content is None else content.get("current_epoch")
    if path is None or content is None or epoch != best_epoch + 1:
        found = "is not there" if path is None else f"is of epoch {epoch - 1}" if isinstance(epoch, int) else "names no epoch"
        until = "the next epoch that beats it gives a new one, and where none does the run has none"
        log.warning("nnU-Net's checkpoint of the best epoch, %d, %s: %s", best_epoch, found, until)
        return None
    check_fits(spec, plan, content, path)
    return content
