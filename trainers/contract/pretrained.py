"""The checkpoint that a run begins with instead of random weights: which file, and that it is still the one that the run was planned with.

Torch-free; `trainers/network/pretrained.py` loads it.
"""

from pathlib import Path

from trainers.contract.run_spec import PretrainedWeights
from trainers.errors import ConfigError
from trainers.storage.faults import reading
from trainers.storage.files import sha256_of


def pretrained_from(file: Path) -> PretrainedWeights:
    """The file with the SHA-256 that it has now. Raises ConfigError where none can be read there, StorageError where its disk is away."""
    return PretrainedWeights(file=file, sha256=_digest(file))


def check_unchanged(weights: PretrainedWeights) -> None:
    """Raise ConfigError unless the file is there and holds the bytes that the run was planned with, StorageError where its disk is away."""
    if (found := _digest(weights.file)) != weights.sha256:
        raise ConfigError(
            f"pretrained_weights: {weights.file} has changed since the run was planned: its SHA-256 is {found[:16]}..., not "
            f"{weights.sha256[:16]}... Put the file back, or submit again: a new run."
        )


def _digest(file: Path) -> str:
    try:
        with reading(file):
            return sha256_of(file)
    except OSError as err:
        why = "does not exist" if isinstance(err, FileNotFoundError) else f"cannot be read: {err.strerror}"
        raise ConfigError(
            f"pretrained_weights: {file} {why}. Name a checkpoint (.pth) by a path that the cluster's head and workers see alike."
        ) from err
