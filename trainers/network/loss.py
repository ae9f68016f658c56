"""nnU-Net's losses, shared out over ranks so that DDP's averaged gradient is that of the whole global batch, however it is split.

Labels: cross entropy + soft Dice without background. Regions: binary cross entropy + sigmoid Dice of every region. Some trainers use one
of the two terms alone. Voxels with the ignore label take no part. nnU-Net divides by the voxels, valid voxels or samples of its batch; we
divide the sum over the rank's own samples by the *global* number and multiply by the world size, which DDP's average takes back. Terms
that are no sums over samples (the Dice of the pooled batch, the number of valid voxels) get their global sums from one all-reduce per step.

B batch (per rank), C class or region, Z Y X voxels (Z only in 3D).
Sources: nnunetv2/training/loss/{compound_losses,dice,deep_supervision,robust_ce_loss}.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from trainers.contract.plans import Labels
from trainers.contract.trainer_table import Loss

SMOOTH = 1e-5
"""Added to numerator and denominator of each Dice, as in nnU-Net."""


@dataclass(frozen=True)
class _Terms:
    """What one output contributes, summed over voxels; per rank, float32."""

    entropy: Tensor
    """Sum of the (binary) cross entropy over the rank's valid voxels (and regions)."""
    num_voxels: int
    """Elements over which nnU-Net averages the entropy when nothing is ignored; per sample."""
    num_valid: Tensor
    """Voxels without the ignore label; 0 where there is none."""
    overlap: Tensor
    """(B, C) probability on the class's own voxels."""
    predicted: Tensor
    """(B, C) probability on all valid voxels."""
    truth: Tensor
    """(B, C) the class's own voxels."""


class SegmentationLoss:
    """Called by every rank with its samples; gradients averaged by DDP and values averaged over ranks are nnU-Net's of the global batch.

    `weights` are those of the network's outputs, finest first (see `deep_supervision_weights`); an output of weight 0 is not looked at, nor
    are the lower targets of a network with fewer outputs.
    `global_batch` is the number of samples over all ranks, of which each has one or more. Without a process group, `world_size` is 1.
    A call makes at most one all-reduce, on every rank or on none.
    """

    def __init__(
        self, labels: Labels, batch_dice: bool, weights: Sequence[float], global_batch: int, world_size: int = 1, kind: Loss = "dice_ce"
    ) -> None:
        present = dist.get_world_size() if dist.is_initialized() else 1
        assert world_size == present, f"the loss is meant for {world_size} ranks, the process group has {present}"
        self.labels = labels
        self.batch_dice = batch_dice
        self.weights = tuple(float(weight) for weight in weights)
        self.global_batch = global_batch
        self.world_size = world_size
        self.has_entropy, self.has_dice = kind != "dice", kind != "ce"
        self.smooth = 0.0 if kind == "dice_ce_no_smooth" else SMOOTH

    def __call__(self, outputs: Tensor | Sequence[Tensor], targets: Tensor | Sequence[Tensor]) -> Tensor:
        """The rank's share of the loss, float32 scalar.

        `outputs`: logits (B, C, [Z,] Y, X) per output, any float type. `targets`: (B, 1, [Z,] Y, X) label values, or
        (B, C, [Z,] Y, X) zeros and ones per region, followed by one channel that is 1 where ignored if there is an ignore label.
        """
        outputs = [outputs] if isinstance(outputs, Tensor) else outputs
        targets = [targets] if isinstance(targets, Tensor) else targets
        used = [(w, o, t) for w, o, t in zip(self.weights, outputs, targets[: len(self.weights)], strict=True) if w != 0]
        terms = [self._terms(logits, target) for _, logits, target in used]
        pooled, num_valid = self._global_sums(terms)
        losses = [
            weight * self._value(term, sums_3C, valid)
            for (weight, _, _), term, sums_3C, valid in zip(used, terms, pooled, num_valid, strict=True)
        ]
        return torch.stack(losses).sum()

    def _value(self, term: _Terms, pooled_3C: Tensor, num_valid: Tensor) -> Tensor:
        """The rank's share of the loss of one output."""
        if not self.has_dice:
            return self._entropy(term, num_valid)
        if not self.has_entropy:
            return -self._dice(term, pooled_3C)
        return self._entropy(term, num_valid) - self._dice(term, pooled_3C)

    def _terms(self, logits_BCZYX: Tensor, target: Tensor) -> _Terms:
        if self.labels.has_regions:
            return _region_terms(logits_BCZYX, target, self.labels.ignore_label is not None)
        return _label_terms(logits_BCZYX, target, self.labels.ignore_label)

    def _global_sums(self, terms: list[_Terms]) -> tuple[list[Tensor], list[Tensor]]:
        """Per output: overlap, predicted and true voxels of the whole global batch (3, C), and the global number of valid voxels.

        What the loss does not need is not gathered, and holds the rank's own value.
        """
        sums_S3C = torch.stack([torch.stack([t.overlap, t.predicted, t.truth]).sum(1) for t in terms])
        valid_S = torch.stack([t.num_valid for t in terms])
        if self.world_size > 1 and ((self.batch_dice and self.has_dice) or self.labels.ignore_label is not None):
            packed = torch.cat([sums_S3C.detach().flatten(), valid_S])
            dist.all_reduce(packed)
            valid_S = packed[sums_S3C.numel() :]
            # The value is the global sum. Every rank goes on with the same numbers, so each would send the same gradient to the others:
            # the sum of these is world_size times its own, without a second collective in the backward pass.
            sums_S3C = packed[: sums_S3C.numel()].view_as(sums_S3C) + self.world_size * (sums_S3C - sums_S3C.detach())
        return list(sums_S3C), list(valid_S)

    def _entropy(self, term: _Terms, num_valid: Tensor) -> Tensor:
        """The rank's share of the mean (binary) cross entropy; 0 if no voxel of the global batch is valid."""
        if self.labels.ignore_label is None:
            return term.entropy * (self.world_size / (self.global_batch * term.num_voxels))
        return term.entropy * self.world_size / num_valid.clamp_min(1)

    def _dice(self, term: _Terms, pooled_3C: Tensor) -> Tensor:
        """The mean soft Dice of the pooled global batch, or the rank's share of the mean over samples."""
        if self.batch_dice:
            overlap, predicted, truth = pooled_3C
            return _soft_dice(overlap, predicted, truth, self.smooth).mean()
        dice_BC = _soft_dice(term.overlap, term.predicted, term.truth, self.smooth)
        return dice_BC.mean(1).sum() * (self.world_size / self.global_batch)


def _soft_dice(overlap: Tensor, predicted: Tensor, truth: Tensor, smooth: float) -> Tensor:
    return (2 * overlap + smooth) / (truth + predicted + smooth).clamp_min(1e-8)


def _label_terms(logits_BCZYX: Tensor, target_B1ZYX: Tensor, ignore_label: int | None) -> _Terms:
    """Terms of mutually exclusive labels; the Dice terms are those of the foreground classes. Float32 whatever the logits are."""
    logits_BCZYX = logits_BCZYX.float()
    entropy = functional.cross_entropy(
        logits_BCZYX, target_B1ZYX[:, 0].long(), reduction="sum", ignore_index=-100 if ignore_label is None else ignore_label
    )
    probability_BCZYX = torch.softmax(logits_BCZYX, 1)[:, 1:]
    class_ids = torch.arange(1, logits_BCZYX.shape[1], device=logits_BCZYX.device, dtype=target_B1ZYX.dtype)
    truth_BCZYX = target_B1ZYX == class_ids.view(1, -1, *[1] * (logits_BCZYX.ndim - 2))
    valid_B1ZYX = None if ignore_label is None else target_B1ZYX != ignore_label
    return _terms(entropy, target_B1ZYX[0].numel(), probability_BCZYX, truth_BCZYX, valid_B1ZYX)


def _region_terms(logits_BCZYX: Tensor, target: Tensor, has_ignore: bool) -> _Terms:
    """Terms of regions, which may overlap; nnU-Net's mean over valid voxels sums the regions, its plain mean averages them."""
    num_regions = logits_BCZYX.shape[1]
    region_BCZYX = target[:, :num_regions]
    valid_B1ZYX = target[:, num_regions:] == 0 if has_ignore else None
    entropy = functional.binary_cross_entropy_with_logits(
        logits_BCZYX.float(), region_BCZYX.float(), weight=None if valid_B1ZYX is None else valid_B1ZYX.float(), reduction="sum"
    )
    return _terms(entropy, region_BCZYX[0].numel(), torch.sigmoid(logits_BCZYX), region_BCZYX != 0, valid_B1ZYX)


def _terms(entropy: Tensor, num_voxels: int, probability_BCZYX: Tensor, truth_BCZYX: Tensor, valid_B1ZYX: Tensor | None) -> _Terms:
    axes = tuple(range(2, probability_BCZYX.ndim))
    if valid_B1ZYX is None:
        num_valid = entropy.new_zeros(())
    else:
        num_valid = valid_B1ZYX.sum().float()
        truth_BCZYX = truth_BCZYX & valid_B1ZYX
    shown_BCZYX = probability_BCZYX if valid_B1ZYX is None else probability_BCZYX * valid_B1ZYX
    return _Terms(
        entropy=entropy,
        num_voxels=num_voxels,
        num_valid=num_valid,
        overlap=(probability_BCZYX * truth_BCZYX).sum(axes, dtype=torch.float32),
        predicted=shown_BCZYX.sum(axes, dtype=torch.float32),
        truth=truth_BCZYX.sum(axes).float(),
    )
