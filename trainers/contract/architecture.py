"""What of a configuration's network cannot be, by its plans alone: pure functions, without torch.

nnU-Net builds U-Nets of dynamic_network_architectures: stage i of the encoder divides its input by `strides[i]`, and the decoder joins each
stage with the one below, enlarged by the same strides. So every axis of the patch must be divisible by the product of its strides.
Sources: dynamic_network_architectures/building_blocks/plain_conv_encoder.py, residual_encoders.py and unet_decoder.py;
nnunetv2/experiment_planning/experiment_planners/network_topology.py (`pad_shape`).
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainers.contract.names import shown
from trainers.contract.run_spec import Frozen, RunSpec
from trainers.errors import DataError

MAX_SIZE = 100_000
"""Largest number that plans may name for a batch, a kernel, features or an axis of a patch."""
MAX_STAGES = 100
_BUILDABLE = re.compile(
    r"dynamic_network_architectures\.(architectures|building_blocks)(\.[a-z_]\w*)?\.[A-Z]\w*|torch\.nn(\.modules(\.[a-z_]\w*)?)?\.[A-Z]\w*",
    re.ASCII,
)
"""Classes that plans may name. nnU-Net imports and calls whatever stands there; a longer path reaches functions that load code."""
_BLOCKS = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage", "ResidualUNet": "n_blocks_per_stage"}
_PER_STAGE = ("strides", "kernel_sizes", "features_per_stage", "n_conv_per_stage", "n_blocks_per_stage")
_PER_STAGE_OF_DECODER = "n_conv_per_stage_decoder"
_PER_AXIS = ("kernel_sizes", "strides")


def is_size(value: Any) -> bool:
    """A whole number from 1 to MAX_SIZE."""
    return type(value) is int and 1 <= value <= MAX_SIZE


class NetworkTrial(Frozen):
    """What `trainers.network.trial` tries: a network with one patch of zeros."""

    configuration: dict[str, Any]
    """Resolved, of the plans."""
    channels: int
    heads: int
    """Output channels."""
    batch: int
    """Samples of the worker that has the fewest: some layers need two."""
    pretrained_weights: Path | None = None
    """A checkpoint that the network is to begin with."""
    run: RunSpec | None = None
    """A run with functions of the user's, which are tried too."""

    @property
    def depends_on_files(self) -> bool:
        """True where the verdict follows from more than the plans."""
        return self.run is not None or self.pretrained_weights is not None


class NetworkVerdict(Frozen):
    """What came of it."""

    refusal: str = ""
    """Why no training with this network can work; empty: it can, as far as shapes show."""
    is_own: bool = False
    """What is refused is a function of the user's, not the plans."""
    unknown: str = ""
    """Why the meta device could not decide it."""
    unfit_weights: str = ""
    """Why the network cannot begin with the checkpoint; empty: it can, or there is none."""


def fault_of_architecture(architecture: Any, patch: Sequence[int] | None) -> str:
    """What of `architecture` cannot be, of the settings that it has; '' when all can. `patch`: the network's, checked before, voxels."""
    fault = _fault_of_names(architecture)
    name = "" if fault else str(architecture.get("network_class_name") or "UNet").rpartition(".")[2]
    if patch is None or not name.endswith("UNet"):
        return fault
    arguments = architecture.get("arch_kwargs", {})
    needed = ("n_stages", "conv_op", *_PER_STAGE[:3], _BLOCKS[name], _PER_STAGE_OF_DECODER) if name in _BLOCKS else ()
    if missing := [key for key in needed if key not in arguments]:
        return f"arch_kwargs of {name} lacks {', '.join(missing)}"
    return _fault_of_operations(arguments, len(patch)) or _fault_of_stages(arguments, len(patch)) or _fault_of_patch(arguments, patch)


def target_scales(configuration: Mapping[str, Any], deep_supervision: bool = True) -> tuple[tuple[float, ...], ...]:
    """Resolution of each target relative to the patch, finest (1.0) first: one per stage but the deepest, or one alone."""
    try:
        strides = configuration["architecture"]["arch_kwargs"]["strides"]
    except KeyError as err:
        raise DataError(f"plans: the configuration lacks {err}. Run nnUNetv2_plan_experiment again.") from err
    per_axis = [[s] * len(configuration["patch_size"]) if isinstance(s, int) else s for s in strides]
    coarser = itertools.accumulate(per_axis, lambda before, stride: [a * b for a, b in zip(before, stride, strict=True)])
    return tuple(tuple(1 / factor for factor in row) for row in coarser)[: -1 if deep_supervision else 1]


def nearest_patch(patch: Sequence[int], factors: Sequence[int], *, least_voxels: int = 1) -> list[int]:
    """The nearest patch whose axes are multiples of `factors`, with a bottleneck of at least `least_voxels` (1 or 2) voxels."""
    sizes = [max(1, math.floor(size / factor + 0.5)) for size, factor in zip(patch, factors, strict=True)]
    if math.prod(sizes) < least_voxels:
        sizes[factors.index(min(factors))] += 1
    return [size * factor for size, factor in zip(sizes, factors, strict=True)]


def _fault_of_names(architecture: Any) -> str:
    """nnU-Net imports and calls what an architecture names: only networks of its own library and layers of torch are let through."""
    arguments = architecture.get("arch_kwargs", {}) if isinstance(architecture, dict) else None
    imported = architecture.get("_kw_requires_import", []) if isinstance(arguments, dict) else None
    if not isinstance(arguments, dict) or not isinstance(imported, list) or not all(isinstance(key, str) for key in imported):
        return "architecture must hold arch_kwargs (an object) and _kw_requires_import (a list of its keys)"
    for name in (architecture.get("network_class_name"), *(arguments.get(key) for key in imported)):
        if name is not None and not (isinstance(name, str) and _BUILDABLE.fullmatch(name)):
            return f"architecture names {shown(name)}, and nnfleet builds from classes of dynamic_network_architectures and torch.nn alone"
    return ""


def _fault_of_operations(arguments: Mapping[str, Any], axes: int) -> str:
    """Layers for another number of axes than the patch has."""
    for key in ("conv_op", "norm_op"):
        named = re.search(r"(\d)d$", str(arguments.get(key)))
        if named and int(named[1]) != axes:
            return f"{key} is {shown(arguments[key])}, and patch_size has {axes} axes"
    return ""


def _fault_of_stages(arguments: Mapping[str, Any], axes: int) -> str:
    """Numbers of stages, and lists with an entry per stage."""
    stages = arguments.get("n_stages")
    if "n_stages" in arguments and not (type(stages) is int and 2 <= stages <= MAX_STAGES):
        return f"n_stages must be a whole number from 2 to {MAX_STAGES}, got {shown(stages)}"
    for key in (key for key in (*_PER_STAGE, _PER_STAGE_OF_DECODER) if key in arguments):
        value = arguments[key]
        if is_size(value) and key != "strides":  # one number for all stages
            continue
        if not isinstance(value, list) or not all(is_size(entry) or (key in _PER_AXIS and _is_per_axis(entry, axes)) for entry in value):
            lists = f", or lists of {axes} of them," if key in _PER_AXIS else ""
            return f"{key} must be whole numbers from 1 to {MAX_SIZE}{lists} with one entry per stage, got {shown(value)}"
        expected = stages - (key == _PER_STAGE_OF_DECODER) if isinstance(stages, int) else len(value)
        if len(value) != expected:
            return f"{key} has {len(value)} entries, and n_stages: {stages} needs {expected}"
    return ""


def _is_per_axis(entry: Any, axes: int) -> bool:
    return isinstance(entry, list) and len(entry) == axes and all(map(is_size, entry))


def _fault_of_patch(arguments: Mapping[str, Any], patch: Sequence[int]) -> str:
    """Kernels and strides with which the network's output is not of the patch's size, or that leave nothing to normalise."""
    even = [size for size in _rows(arguments, "kernel_sizes", len(patch))[:-1] if any(length % 2 == 0 for length in size)]
    if even:
        return f"kernel_sizes above the bottleneck must be odd, else each convolution cuts a voxel off, got {shown(even[0])}"
    strides = _rows(arguments, "strides", len(patch))
    if not strides:
        return ""
    if any(stride != 1 for stride in strides[0]):
        return f"strides must begin with 1 on every axis, else the network's output is smaller than its patch, got {shown(strides[0])}"
    factors = [math.prod(column) for column in zip(*strides, strict=True)]
    is_normalised = "InstanceNorm" in str(arguments.get("norm_op"))
    fitting = nearest_patch(patch, factors, least_voxels=2 if is_normalised else 1)
    if any(size % factor for size, factor in zip(patch, factors, strict=True)):
        why = f"must be divisible by {shown(factors)}, the products of its {len(strides)} stages' strides"
        return f"patch_size {list(patch)} {why}: the nearest that fits is {shown(fitting)}"
    if is_normalised and list(patch) == factors:
        why = "leaves one voxel in the deepest stage, where instance normalisation needs two"
        return f"patch_size {list(patch)} {why}: the nearest that fits is {shown(fitting)}"
    return ""


def _rows(arguments: Mapping[str, Any], key: str, axes: int) -> list[list[int]]:
    """One list of `axes` numbers per stage; empty where the plans do not say."""
    value = arguments.get(key, [])
    stages = value if isinstance(value, list) else [value] * int(arguments.get("n_stages", 1))
    return [entry if isinstance(entry, list) else [entry] * axes for entry in stages]
