"""Pseudo-Dice: from each rank's counts on validation patches to one smoothed score per epoch, and whether it is the best so far.

It pools the voxels of all patches of all ranks as if they were one volume. It is no Dice of a case, and is never called one.

B batch (per rank), C foreground class or region, Z Y X voxels.
Sources: nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py (`validation_step`, `on_validation_epoch_end`),
nnunetv2/training/logging/nnunet_logger.py (EMA), nnunetv2/training/loss/dice.py (`get_tp_fp_fn_tn`).
"""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from trainers.contract.commits import BestRecord
from trainers.contract.plans import Labels
from trainers.network.arg_max import running_arg_max


def zero_counts(labels: Labels, device: torch.device) -> Tensor:
    """Where an epoch's counting starts: (3, C) int64 zeros."""
    return torch.zeros((3, len(labels.foreground)), dtype=torch.int64, device=device)


@torch.no_grad()
def batch_counts(logits_BCZYX: Tensor, target: Tensor, labels: Labels) -> Tensor:
    """True positive, false positive and false negative voxels of the rank's samples, (3, C) int64, on the logits' device.

    `target` is (B, 1, Z, Y, X) label values, or (B, C, Z, Y, X) zeros and ones per region, followed by the ignore channel if there
    is an ignore label; ignored voxels are not counted. A label is predicted where its logit is the largest, a region where its
    probability exceeds 0.5. Does not wait for the device and changes no argument.
    """
    if labels.has_regions:
        predicted_BCZYX, truth_BCZYX, ignored_B1ZYX = _regions(logits_BCZYX, target, labels)
    else:
        predicted_BCZYX, truth_BCZYX, ignored_B1ZYX = _classes(logits_BCZYX, target, labels)
    if ignored_B1ZYX is not None:
        predicted_BCZYX = predicted_BCZYX & ~ignored_B1ZYX
        truth_BCZYX = truth_BCZYX & ~ignored_B1ZYX
    axes = (0, *range(2, logits_BCZYX.ndim))
    tp_C = (predicted_BCZYX & truth_BCZYX).sum(axes)
    return torch.stack([tp_C, predicted_BCZYX.sum(axes) - tp_C, truth_BCZYX.sum(axes) - tp_C])


def _regions(logits_BCZYX: Tensor, target: Tensor, labels: Labels) -> tuple[Tensor, Tensor, Tensor | None]:
    num_regions = logits_BCZYX.shape[1]
    ignored_B1ZYX = None if labels.ignore_label is None else target[:, num_regions:] != 0
    return torch.sigmoid(logits_BCZYX) > 0.5, target[:, :num_regions] != 0, ignored_B1ZYX


def _classes(logits_BCZYX: Tensor, target_B1ZYX: Tensor, labels: Labels) -> tuple[Tensor, Tensor, Tensor | None]:
    predicted_B1ZYX = _largest(logits_BCZYX)
    class_ids = torch.arange(1, logits_BCZYX.shape[1], device=logits_BCZYX.device).view(1, -1, *[1] * (logits_BCZYX.ndim - 2))
    ignored_B1ZYX = None if labels.ignore_label is None else target_B1ZYX == labels.ignore_label
    return predicted_B1ZYX == class_ids, target_B1ZYX == class_ids, ignored_B1ZYX


def _largest(logits_BCZYX: Tensor) -> Tensor:
    """Which class has the largest logit, the first of equals, (B, 1, Z, Y, X). Torch's arg-max where it is fast, and for NaN, which it
    takes for the largest.
    """
    if logits_BCZYX.device.type == "cpu" and bool(logits_BCZYX.sum().isfinite()):
        return running_arg_max(logits_BCZYX.unbind(1), logits_BCZYX.shape[1]).unsqueeze(1)
    return logits_BCZYX.argmax(1, keepdim=True)


def gather_epoch(counts_3C: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Add up counts (3, C) and other sums (any shape) over all ranks in one all-reduce; both come back in float64 on the CPU.

    Every rank has to call it. Counts up to 2^53 stay exact. Without a process group it returns the arguments' values.
    """
    packed = torch.cat([counts_3C.detach().double().flatten(), sums.detach().to(counts_3C.device).double().flatten()])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(packed)
    packed = packed.cpu()
    return packed[: counts_3C.numel()].view(counts_3C.shape), packed[counts_3C.numel() :].view(sums.shape)


def dice_per_class(counts_3C: Tensor) -> tuple[float, ...]:
    """2 tp / (2 tp + fp + fn) of each class; NaN for a class that is neither present nor predicted."""
    return tuple(2 * tp / (2 * tp + fp + fn) if tp + fp + fn else math.nan for tp, fp, fn in counts_3C.T.tolist())


def mean_dice(per_class: Sequence[float]) -> float:
    """Mean over the classes that have a value; NaN if none has."""
    known = [dice for dice in per_class if not math.isnan(dice)]
    return sum(known) / len(known) if known else math.nan


def updated(best: BestRecord, dice: float, epoch: int) -> tuple[BestRecord, bool]:
    """Smooth one epoch's pseudo-Dice into `best`; True if this epoch is the new best (strictly greater, or the first with a value).

    NaN (no foreground seen or predicted in any patch) is counted and changes nothing else; in nnU-Net it would make the average NaN
    for ever.
    """
    if math.isnan(dice):
        return best.model_copy(update={"skipped": best.skipped + 1}), False
    ema = dice if best.ema is None else best.decay * best.ema + (1 - best.decay) * dice
    if best.score is not None and ema <= best.score:
        return best.model_copy(update={"ema": ema}), False
    return best.model_copy(update={"ema": ema, "score": ema, "best_epoch": epoch}), True
