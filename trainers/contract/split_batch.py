"""How a global batch is divided over the ranks of a run.

The plan's batch size is the global one. Every rank takes the floor of its share, the first ranks one more
(nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py, `_set_batch_size_and_oversample`), as one contiguous slice of positions.
"""

from collections.abc import Mapping
from typing import Any

from trainers.errors import ConfigError


def rank_sizes(batch_size: int, world_size: int) -> list[int]:
    """Samples per rank of one global batch. Raises ConfigError when there are more ranks than samples."""
    if world_size < 1 or batch_size < 1:
        raise ValueError(f"batch_size and world_size must be at least 1, got {batch_size} and {world_size}")
    if world_size > batch_size:
        raise ConfigError(
            f"workers: {world_size} workers cannot share a global batch of {batch_size}: each needs at least one sample. "
            f"Ask for at most {batch_size} workers, or plan a larger batch size."
        )
    share, larger = divmod(batch_size, world_size)
    return [share + 1] * larger + [share] * (world_size - larger)


def rank_positions(batch_size: int, world_size: int, global_rank: int) -> range:
    """Positions in the global batch that `global_rank` trains on; the ranks' ranges follow each other and cover the batch."""
    sizes = rank_sizes(batch_size, world_size)
    start = sum(sizes[:global_rank])
    return range(start, start + sizes[global_rank])


def split_dependence(configuration: Mapping[str, Any]) -> str:
    """What in a resolved configuration's network makes results depend on how the batch is split over ranks; empty: nothing that plans tell.

    Batch statistics are taken, and dropout is drawn, per rank. `trainers.network.model.has_batchnorm_or_dropout` asks the network itself.
    """
    architecture = configuration.get("architecture")
    arguments = architecture.get("arch_kwargs") if isinstance(architecture, Mapping) else None
    if not isinstance(arguments, Mapping):
        return ""
    if "batchnorm" in str(arguments.get("norm_op")).lower():
        return f"batch normalisation (norm_op: {arguments['norm_op']})"
    dropout = arguments.get("dropout_op_kwargs")
    share = dropout.get("p", 0.5) if isinstance(dropout, Mapping) else 0.5  # torch's default
    if arguments.get("dropout_op") and share:
        return f"dropout (dropout_op: {arguments['dropout_op']})"
    return f"stochastic depth (stochastic_depth_p: {arguments['stochastic_depth_p']})" if arguments.get("stochastic_depth_p") else ""
