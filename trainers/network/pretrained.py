"""Beginning with the weights of another training: nnU-Net's rule (nnunetv2/run/load_pretrained_weights.py).

Every weight and buffer of the network but those of the segmentation layers must stand in the checkpoint in the same shape; what else
stands there is left. Segmentation layers keep their random weights, as the classes may be others.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from trainers.contract.pretrained import check_unchanged
from trainers.contract.run_spec import PretrainedWeights
from trainers.errors import CheckpointError, ConfigError
from trainers.network.checkpoint import read_checkpoint
from trainers.network.model import plain_state_dict, unwrapped

SEGMENTATION_LAYERS = ".seg_layers."
"""What the names of their weights contain."""
MAX_LISTED = 3


def load_pretrained(network: nn.Module, weights: PretrainedWeights) -> None:
    """Give `network` the weights of a checkpoint. Raises ConfigError where it is not the planned one or does not fit, StorageError."""
    check_unchanged(weights)
    found = weights_in(weights.file)
    if fault := misfit(plain_state_dict(network), found, weights.file):
        raise ConfigError(fault)
    own = plain_state_dict(network)
    with torch.no_grad():
        unwrapped(network).load_state_dict({name: found[name] if is_transferred(name) else own[name] for name in own})


def weights_in(file: Path) -> Mapping[str, Tensor]:
    """The weights of a checkpoint. Raises ConfigError where it is none, StorageError."""
    try:
        weights: dict[str, Tensor] = read_checkpoint(file)["network_weights"]
    except CheckpointError as err:
        raise ConfigError(f"pretrained_weights: {str(err).removeprefix('checkpoint: ')}") from err
    return weights


def is_transferred(name: str) -> bool:
    """True for a weight that is not of a segmentation layer."""
    return SEGMENTATION_LAYERS not in name


def misfit(own: Mapping[str, Tensor], found: Mapping[str, Tensor], file: Path) -> str:
    """Why a network with the weights `own` cannot begin with those that were found in `file`, in words; empty when it can. Pure."""
    due = [name for name in own if is_transferred(name)]
    lacking = [name for name in due if name not in found]
    other = [
        f"{name} ({_shape(found[name])}, here {_shape(own[name])})"
        for name in due
        if name in found and found[name].shape != own[name].shape
    ]
    faults = [
        *([f"it lacks {len(lacking)} of {len(due)} weights: {_listed(lacking)}"] if lacking else []),
        *([f"{len(other)} weights have other shapes there: {_listed(other)}"] if other else []),
    ]
    if not faults:
        return ""
    return (
        f"pretrained_weights: {file} is of another network than this run's: {'; '.join(faults)}. Name a checkpoint of the same network: "
        "it is trained on this dataset's plans moved to its own by nnUNetv2_move_plans_between_datasets."
    )


def _shape(weight: Tensor) -> str:
    return " x ".join(map(str, weight.shape)) or "one number"


def _listed(texts: list[str]) -> str:
    more = len(texts) - MAX_LISTED
    return ", ".join(texts[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
