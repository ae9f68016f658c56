"""How the 3D convolutions of a network are computed on a CPU: plain rules, so that every start of a run computes the same bits.

**Layout.** oneDNN's backward pass for channels in front is made for blocks of 16. With fewer, as in networks small enough for a CPU, it
takes about twice as long as with the channels last (measured, two samples of 24 x 24 x 24 voxels: 4 to 8 channels 9.3 and 4.3 ms, 8 to 16
14.3 and 9.0 ms, 24 to 24 45 and 35 ms, 16 to 16 and 32 to 32 alike).

**One sample.** PyTorch takes a small convolution of a single sample away from oneDNN (ATen/native/Convolution.cpp: `use_mkldnn`), though
its own kernel is the slower one: 32 to 32 channels of 24 x 24 x 24 voxels take 149 ms, a batch of two 43 ms. The forward pass calls oneDNN
by its name; the backward pass has no such name, so there the two halves of the sample go in as a batch of two.

Results differ by rounding. Weights and checkpoints keep their layout.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from trainers.network.one_dnn import has_one_dnn

BLOCK = 16
SMALL = 20480
"""Up to so many channels x slices x rows PyTorch takes a single sample for small, at any length of a row."""
Range = tuple[int, int]
"""First slice, and the one after the last; both may lie outside of a sample, where there are zeros."""


def prepare_for_cpu(network: nn.Module) -> None:
    """Let the 3D convolutions of a network take the faster way. Pointwise ones have it already, those of an unusual kind keep theirs."""
    for module in network.modules():
        if type(module) is nn.Conv3d and _is_usual(module):
            module.__class__ = CpuConv3d  # weights, hooks, copies and checkpoints stay what they are


class CpuConv3d(nn.Conv3d):
    """A 3D convolution, computed as this module describes."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if _gains_by_channels_last(self):
            input = input.contiguous(memory_format=torch.channels_last_3d)
        if _is_slow(self, input):
            return _OneSample.apply(input, weight, bias, self.stride, self.padding)  # type: ignore[no-any-return]
        return super()._conv_forward(input, weight, bias)  # type: ignore[no-any-return]


def _is_usual(convolution: nn.Conv3d) -> bool:
    """Neither pointwise nor grouped, dilated or padded with anything but so many zeros."""
    is_plain = convolution.groups == 1 and convolution.dilation == (1, 1, 1) and convolution.padding_mode == "zeros"
    return max(convolution.kernel_size) > 1 and is_plain and not isinstance(convolution.padding, str)


def _gains_by_channels_last(convolution: nn.Conv3d) -> bool:
    """One input channel has no order."""
    return convolution.in_channels > 1 and bool(convolution.in_channels % BLOCK or convolution.out_channels % BLOCK)


def _is_slow(convolution: nn.Conv3d, input_BCZYX: Tensor) -> bool:
    """Whether PyTorch would compute it without oneDNN, and its output has two halves."""
    batch, channels, depth, rows, _ = input_BCZYX.shape
    depth_padded = depth + 2 * int(convolution.padding[0]) - convolution.kernel_size[0]
    has_halves = depth_padded // convolution.stride[0] >= 1
    is_small = batch == 1 and channels * depth * rows <= SMALL
    return is_small and has_halves and input_BCZYX.dtype == torch.float32 and has_one_dnn()


class _OneSample(torch.autograd.Function):
    """`functional.conv3d` of a single sample, by oneDNN."""

    @staticmethod
    def forward(
        ctx: Any, image_1CZYX: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
    ) -> Tensor:
        ctx.save_for_backward(image_1CZYX, weight)
        ctx.stride, ctx.padding, ctx.has_bias = stride, padding, bias is not None
        return torch.mkldnn_convolution(image_1CZYX, weight, bias, padding, stride, (1, 1, 1), 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_1CZYX: Tensor) -> tuple[Tensor | None, ...]:
        image_1CZYX, weight = ctx.saved_tensors
        outputs = _halves(gradient_1CZYX.shape[2])
        inputs = [_read_by(half, weight.shape[2], ctx.stride[0], ctx.padding[0]) for half in outputs]
        for_image, for_weight, for_bias = torch.ops.aten.convolution_backward(
            _slices(gradient_1CZYX, outputs),
            _slices(image_1CZYX, inputs),
            weight,
            [weight.shape[0]] if ctx.has_bias else None,
            ctx.stride,
            (0, *ctx.padding[1:]),  # along the slices the halves hold their zeros
            (1, 1, 1),
            False,
            (0, 0, 0),
            1,
            [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.has_bias],
        )
        if for_image is not None:
            for_image = _sum_of_slices(for_image, inputs, image_1CZYX.shape[2])
        return for_image, for_weight, for_bias, None, None


def _halves(depth: int) -> tuple[Range, Range]:
    """The first and the second half of so many slices; of an odd number the second one reads a slice of zeros."""
    middle = -(-depth // 2)
    return (0, middle), (middle, 2 * middle)


def _read_by(outputs: Range, kernel: int, stride: int, padding: int) -> Range:
    """The slices of the input from which those of the output are computed."""
    first, end = outputs
    return first * stride - padding, (end - 1) * stride - padding + kernel


def _slices(sample_1CZYX: Tensor, ranges: Sequence[Range]) -> Tensor:
    """A batch of parts of a sample, equally long."""
    depth = sample_1CZYX.shape[2]
    return torch.cat([functional.pad(sample_1CZYX, (0, 0, 0, 0, -first, end - depth)) for first, end in ranges])


def _sum_of_slices(parts_BCZYX: Tensor, ranges: Sequence[Range], depth: int) -> Tensor:
    """The sample of so many slices to which each part adds its own; the reverse of `_slices`."""
    first, second = (
        functional.pad(part_1CZYX, (0, 0, 0, 0, start, depth - end))
        for part_1CZYX, (start, end) in zip(torch.split(parts_BCZYX, 1), ranges, strict=True)
    )
    return first.add_(second)
