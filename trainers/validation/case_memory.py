"""How much memory the prediction of a case takes on a CPU, by a plain sum. With a GPU what belongs to tiles lies there.

libraries                  1 GiB     of a process that has loaded them (measured: 0.9 GB)
weights                    2 x the checkpoint files
image                      8 bytes   x channels x voxels, as read and padded
logits                     2 bytes   x heads x voxels, at least those of a patch
sums and one class         12 bytes  x voxels
a tile's network           36 bytes  x features of the finest stage x voxels of a patch (measured: 33 to 36 bytes)
a tile's output            12 bytes  x heads x voxels of a patch
export and score           48 bytes  x original voxels
export by nnU-Net's code   12 bytes  x heads x original voxels, where probabilities are kept
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainers.contract.cascade import network_channels
from trainers.contract.plans import labels_of, load_dataset_json, num_input_channels, plans_of
from trainers.contract.run_spec import RunSpec
from trainers.data.case_files import read_properties, shape_of_case
from trainers.errors import DataError, StorageError

LIBRARIES = 2**30
USUAL_FEATURES = 32
"""Of nnU-Net's finest stage, where a network's settings do not name them."""


@dataclass(frozen=True)
class Model:
    """What of a network and its plans determines the memory. `channels`: those that the network takes."""

    channels: int
    heads: int
    features: int
    patch: tuple[int, ...]
    weights_bytes: int
    keeps_probabilities: bool = False


@dataclass(frozen=True)
class CaseMemory:
    """What the largest of some cases needs."""

    case_id: str
    peak_bytes: int


def peak_bytes(model: Model, shape_ZYX: Sequence[int], original_voxels: int) -> int:
    """Bytes that the prediction of a preprocessed case takes; see the module. Pure."""
    of_patch = math.prod(model.patch)
    patch_ZYX = (1,) * (3 - len(model.patch)) + model.patch
    voxels = math.prod(max(pair) for pair in zip(shape_ZYX, patch_ZYX, strict=True))
    per_voxel = 8 * model.channels + 2 * model.heads + 12
    per_patch_voxel = 36 * model.features + 12 * model.heads
    per_original_voxel = 48 + (12 * model.heads if model.keeps_probabilities else 0)
    parts = voxels * per_voxel, of_patch * per_patch_voxel, original_voxels * per_original_voxel
    return LIBRARIES + 2 * model.weights_bytes + sum(parts)


def of_largest(spec: RunSpec, cases: Sequence[str], weights_bytes: int) -> CaseMemory | None:
    """What the case of most preprocessed voxels needs; None where none can be read, which the worker of each will report.

    `weights_bytes`: size of all checkpoint files that one worker holds.
    """
    dataset_json = load_dataset_json(spec.model_folder)
    settings = plans_of(spec).configuration(spec.configuration)
    folder, channels = spec.preprocessed_folder / str(settings["data_identifier"]), num_input_channels(dataset_json)
    shapes: dict[str, tuple[int, ...]] = {}
    for case in cases:
        try:
            shapes[case] = shape_of_case(folder, case, channels)
        except (DataError, StorageError):
            continue
    if not shapes:
        return None
    case = max(shapes, key=lambda case: math.prod(shapes[case]))
    try:
        original = math.prod(int(size) for size in read_properties(folder, case)["shape_before_cropping"])
    except (DataError, StorageError, KeyError, TypeError):
        original = math.prod(shapes[case])
    return CaseMemory(case, peak_bytes(_model(spec, settings, dataset_json, weights_bytes), shapes[case], original))


def _model(spec: RunSpec, settings: dict[str, Any], dataset_json: dict[str, Any], weights_bytes: int) -> Model:
    labels = labels_of(dataset_json)
    features = settings.get("architecture", {}).get("arch_kwargs", {}).get("features_per_stage", USUAL_FEATURES)
    return Model(
        channels=network_channels(settings, dataset_json, labels),
        heads=labels.num_heads,
        features=int(features[0] if isinstance(features, list) else features),
        patch=tuple(settings["patch_size"]),
        weights_bytes=weights_bytes,
        keeps_probabilities=spec.validation.npz,
    )
