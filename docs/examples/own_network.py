"""A network of your own: `network: own_network:small_unet`. It takes what plans describe, and has one output or one per stage."""

from typing import Any

import torch
from torch import Tensor, nn


class SmallUNet(nn.Module):
    """Two stages less than a U-Net of nnU-Net's needs no list of outputs: the finest alone is trained."""

    def __init__(self, channels: int, outputs: int, width: int = 8) -> None:
        super().__init__()
        self.enter = block(channels, width)
        self.below = block(width, 2 * width)
        self.up = nn.ConvTranspose3d(2 * width, width, kernel_size=2, stride=2)
        self.leave = block(2 * width, width)
        self.head = nn.Conv3d(width, outputs, kernel_size=1)

    def forward(self, image_BCZYX: Tensor) -> Tensor:
        """Logits (B, outputs, Z, Y, X)."""
        fine = self.enter(image_BCZYX)
        coarse = self.below(nn.functional.max_pool3d(fine, 2))
        return self.head(self.leave(torch.cat((fine, self.up(coarse)), 1)))


def block(channels: int, width: int) -> nn.Module:
    """A convolution as nnU-Net's, with instance normalisation."""
    return nn.Sequential(nn.Conv3d(channels, width, 3, padding=1), nn.InstanceNorm3d(width, affine=True), nn.LeakyReLU(0.01))


def small_unet(configuration: dict[str, Any], input_channels: int, output_channels: int, deep_supervision: bool) -> nn.Module:
    """Called with a configuration of the plans, all of it; `deep_supervision` is False for predictions."""
    assert len(configuration["patch_size"]) == 3, "this network is for 3D"
    return SmallUNet(input_channels, output_channels)
