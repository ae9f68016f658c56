"""Which layout of memory the 3D convolutions of a network take on a CPU: a plain rule, so that every start of a run computes the same bits.

oneDNN's backward pass for channels in front is made for blocks of 16. With fewer, as in networks small enough for a CPU, it takes about
twice as long as with the channels last (measured, two samples of 24 x 24 x 24 voxels: 4 to 8 channels 9.3 and 4.3 ms, 8 to 16 14.3 and
9.0 ms, 24 to 24 45 and 35 ms, 16 to 16 and 32 to 32 alike). Results differ by rounding.
"""

from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 16


def choose_layouts(network: nn.Module) -> None:
    """Let each 3D convolution that gains by it take its input with the channels last. Weights and checkpoints keep their layout."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d) and _gains(module):
            module.register_forward_pre_hook(_channels_last)


def _gains(convolution: nn.Conv3d) -> bool:
    """Pointwise convolutions lose by it, and one input channel has no order."""
    is_pointwise = max(convolution.kernel_size) == 1
    return not is_pointwise and convolution.in_channels > 1 and bool(convolution.in_channels % BLOCK or convolution.out_channels % BLOCK)


def _channels_last(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].contiguous(memory_format=torch.channels_last_3d),)
