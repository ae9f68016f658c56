"""Convolutions of oneDNN wherever a network predicts on a CPU: a plain rule, so that every start of a job computes the same bits.

PyTorch's own choice passes oneDNN by for a single sample whose channels x slices x rows are at most 20,480, and for pointwise
convolutions in one thread, and takes `slow_conv3d` in its place. Measured, one sample, one thread, two convolutions a stage, CPU time as
a share of that by PyTorch's choice: features 4 to 16 and 24^3 voxels 0.39, 8 to 32 and 48^3 0.20, 16 to 128 and 48^3 0.52, 32 to 320 and
64^3 0.97; 8 to 64 and 128^2 0.97. With two samples at once PyTorch takes oneDNN by itself for all but pointwise ones; two tiles or
mirrored copies at once take 0.93 to 1.34 of the time that these take one by one, and twice a patch's memory. Results differ by rounding.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn


def has_one_dnn() -> bool:
    """Whether PyTorch was built with it."""
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def use_one_dnn(network: nn.Module) -> None:
    """Let each convolution of a network in float32 on a CPU be computed by oneDNN; without it in this PyTorch nothing changes."""
    if not has_one_dnn():
        return
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d) and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            module._conv_forward = functools.partial(_convolved, module)  # type: ignore[method-assign]


def _convolved(convolution: nn.Conv2d | nn.Conv3d, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    options: tuple[Any, ...] = (convolution.padding, convolution.stride, convolution.dilation, convolution.groups)
    return torch.mkldnn_convolution(inputs, weight, bias, *options)
