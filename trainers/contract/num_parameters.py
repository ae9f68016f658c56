"""How many parameters a configuration's network has, by its plans alone and without torch: what its checkpoints weigh.

Sources: dynamic_network_architectures/building_blocks/plain_conv_encoder.py, residual_encoders.py, residual.py (`BasicBlockD`),
unet_decoder.py; every convolution there is followed by a normalisation with two values per feature.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

Kernel = Sequence[int]


def num_parameters(configuration: Mapping[str, Any], channels: int, heads: int) -> int | None:
    """Parameters of the network of a resolved configuration with so many input and output channels; None for a network that is none of
    nnU-Net's usual two, or whose plans lack what it takes."""
    architecture = configuration.get("architecture", {})
    name = str(architecture.get("network_class_name", "")).rpartition(".")[2]
    try:
        return _unet(architecture["arch_kwargs"], name, len(configuration["patch_size"]), channels, heads)
    except (KeyError, TypeError, IndexError):
        return None


def _unet(arguments: Mapping[str, Any], name: str, axes: int, channels: int, heads: int) -> int | None:
    stages = int(arguments["n_stages"])
    features = _per_stage(arguments["features_per_stage"], stages)
    kernels = [_per_axis(kernel, axes) for kernel in _per_stage(arguments["kernel_sizes"], stages)]
    strides = [_per_axis(stride, axes) for stride in _per_stage(arguments["strides"], stages)]
    bias = bool(arguments.get("conv_bias", False))
    if name == "PlainConvUNet":
        blocks = _per_stage(arguments["n_conv_per_stage"], stages)
        inputs = [channels, *features]
        encoder = sum(_stacked(blocks[s], inputs[s], features[s], kernels[s], bias=bias) for s in range(stages))
    elif name == "ResidualEncoderUNet":
        blocks = _per_stage(arguments["n_blocks_per_stage"], stages)
        inputs = [features[0], *features]
        encoder = _convolution(channels, features[0], kernels[0], bias=bias)
        encoder += sum(_residual(blocks[s], inputs[s], features[s], kernels[s], bias=bias) for s in range(stages))
    else:
        return None
    convolutions = _per_stage(arguments["n_conv_per_stage_decoder"], stages - 1)[::-1]
    decoder = 0
    for s, (above, below) in enumerate(pairwise(features)):
        decoder += above * below * math.prod(strides[s + 1]) + above * bias
        decoder += _stacked(convolutions[s], 2 * above, above, kernels[s], bias=bias)
        decoder += (above + 1) * heads
    return encoder + decoder


def _per_stage(value: Any, stages: int) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value] * stages


def _per_axis(value: Any, axes: int) -> Kernel:
    return list(value) if isinstance(value, list | tuple) else [value] * axes


def _convolution(inputs: int, outputs: int, kernel: Kernel, *, bias: bool) -> int:
    """A convolution with its normalisation."""
    return inputs * outputs * math.prod(kernel) + outputs * bias + 2 * outputs


def _stacked(count: int, inputs: int, outputs: int, kernel: Kernel, *, bias: bool) -> int:
    first = _convolution(inputs, outputs, kernel, bias=bias)
    return first + (count - 1) * _convolution(outputs, outputs, kernel, bias=bias)


def _residual(count: int, inputs: int, outputs: int, kernel: Kernel, *, bias: bool) -> int:
    """Blocks of two convolutions each; the first projects its input where the number of features changes."""
    projection = _convolution(inputs, outputs, [1], bias=False) if inputs != outputs else 0
    return projection + _stacked(2 * count, inputs, outputs, kernel, bias=bias)
