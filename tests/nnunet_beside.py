"""nnU-Net's own loss and counts, put together as nnUNetTrainer does it, with small networks and random batches to compare ours on."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss, get_tp_fp_fn_tn
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss
from nnunetv2.utilities.helpers import softmax_helper_dim1
from torch import Tensor, nn

from trainers.contract.architecture import target_scales
from trainers.contract.plans import Labels, labels_of
from trainers.contract.trainer_table import Loss
from trainers.network.model import build_network

KINDS: dict[str, dict[str, Any]] = {
    "labels": {"labels": {"background": 0, "organ": 1, "lesion": 2}},
    "ignore": {"labels": {"background": 0, "organ": 1, "lesion": 2, "ignore": 3}},
    "regions": {"labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "tip": 3}, "regions_class_order": [1, 2, 3]},
    "regions_ignore": {
        "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "tip": 3, "ignore": 4},
        "regions_class_order": [1, 2, 3],
    },
}


def labels_for(kind: str) -> Labels:
    """Labels of one of KINDS."""
    return labels_of(KINDS[kind])


def configuration(dimensions: int = 3, features: Sequence[int] = (4, 8, 16, 16), **arch: Any) -> dict[str, Any]:
    """A small configuration as it stands in nnU-Net's plans. No bias before a norm: its gradient would be rounding noise alone."""
    count = len(features)
    return {
        "patch_size": [16] * dimensions,
        "batch_size": 4,
        "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": count,
                "features_per_stage": list(features),
                "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
                "kernel_sizes": [[3] * dimensions] * count,
                "strides": [[1] * dimensions, *[[2] * dimensions] * (count - 1)],
                "n_conv_per_stage": [1] * count,
                "n_conv_per_stage_decoder": [1] * (count - 1),
                "conv_bias": False,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
                **arch,
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }


def seeded_network(config: dict[str, Any], labels: Labels, seed: int = 0) -> nn.Module:
    """A network with the initial weights of `seed`."""
    torch.manual_seed(seed)
    return build_network(config, 1, labels.num_heads)


def random_batch(config: dict[str, Any], labels: Labels, size: int, seed: int, blank: Sequence[int] = ()) -> tuple[Tensor, list[Tensor]]:
    """Images (B, 1, [Z,] Y, X) float32 and int16 targets per output; the samples `blank` hold nothing but the ignore label."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn((size, 1, *config["patch_size"]), generator=generator)
    targets = []
    for scale in target_scales(config):
        shape = [round(p * s) for p, s in zip(config["patch_size"], scale, strict=True)]
        values = torch.randint(0, max(labels.values) + 1, (size, 1, *shape), generator=generator, dtype=torch.int16)
        if labels.ignore_label is not None:
            values[list(blank)] = labels.ignore_label
        targets.append(as_target(values, labels))
    return images, targets


def as_target(values_B1ZYX: Tensor, labels: Labels) -> Tensor:
    """What augmentation makes of label values: themselves, or one channel per region and one for the ignore label."""
    if not labels.has_regions:
        return values_B1ZYX
    groups = [*labels.foreground.values(), *([] if labels.ignore_label is None else [(labels.ignore_label,)])]
    return torch.cat([torch.isin(values_B1ZYX, torch.tensor(group)) for group in groups], 1).to(torch.int16)


def nnunet_weights(num_outputs: int) -> np.ndarray:
    """Deep-supervision weights as in nnUNetTrainer._build_loss of a single process."""
    weights = np.array([1 / (2**i) for i in range(num_outputs)])
    weights[-1] = 0
    return np.asarray(weights / weights.sum())


def nnunet_loss(
    labels: Labels, batch_dice: bool, num_outputs: int, name: Loss = "dice_ce"
) -> Callable[[list[Tensor], list[Tensor]], Tensor]:
    """The loss of nnUNetTrainer._build_loss of a single process, without torch.compile; or one of its terms, as its variants build it."""
    dice = {"batch_dice": batch_dice, "smooth": 0 if name == "dice_ce_no_smooth" else 1e-5, "ddp": False}
    kind = MemoryEfficientSoftDiceLoss
    if name == "dice":
        loss = kind(**dice, do_bg=labels.has_regions, apply_nonlin=torch.sigmoid if labels.has_regions else softmax_helper_dim1)
    elif name == "ce":
        loss = RobustCrossEntropyLoss(ignore_index=-100 if labels.ignore_label is None else labels.ignore_label)
    elif labels.has_regions:
        loss = DC_and_BCE_loss({}, {**dice, "do_bg": True}, use_ignore_label=labels.ignore_label is not None, dice_class=kind)
    else:
        loss = DC_and_CE_loss({**dice, "do_bg": False}, {}, weight_ce=1, weight_dice=1, ignore_label=labels.ignore_label, dice_class=kind)
    whole: Callable[[list[Tensor], list[Tensor]], Tensor] = DeepSupervisionWrapper(loss, nnunet_weights(num_outputs))
    return whole


def nnunet_counts(output: Tensor, target: Tensor, labels: Labels) -> np.ndarray:
    """Foreground tp, fp, fn (3, C) by the steps of nnUNetTrainer.validation_step."""
    axes = [0, *range(2, output.ndim)]
    target = target.clone()
    if labels.has_regions:
        onehot = (torch.sigmoid(output) > 0.5).long()
    else:
        onehot = torch.zeros(output.shape, dtype=torch.float16)
        onehot.scatter_(1, output.argmax(1)[:, None], 1)
    mask = None
    if labels.ignore_label is not None and not labels.has_regions:
        mask = (target != labels.ignore_label).float()
        target[target == labels.ignore_label] = 0
    elif labels.ignore_label is not None:
        mask = ~target[:, -1:] if target.dtype == torch.bool else 1 - target[:, -1:]
        target = target[:, :-1]
    counts = np.stack([c.numpy() for c in get_tp_fp_fn_tn(onehot, target, axes=axes, mask=mask)[:3]])
    return counts if labels.has_regions else counts[:, 1:]


def gradients(network: nn.Module) -> dict[str, Tensor]:
    """Gradient of every parameter that has one, by name."""
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Same names, and a relative L2 difference of at most `tolerance` in each tensor."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        error = float((ours[name] - expected).norm())
        assert error <= tolerance * float(expected.norm()), f"{name}: {error / float(expected.norm()):.1e} of its norm"
