"""Batches on their way between two nodes: with targets compressed, images as they are.

At 128^3 labels, a third of a batch's bytes, shrink to 2.5 % for 4 ms of CPU; images, which hold noise, would shrink to 81 % for 10 ms of
the loader and 5 ms of the training thread (docs/performance.md).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from trainers.data.batches import Batch


@dataclass(frozen=True)
class PackedTarget:
    """The compressed bytes of one target."""

    shape: tuple[int, ...]
    dtype: str
    content: bytes


@dataclass(frozen=True)
class PackedBatch:
    """A batch without its targets, and these compressed."""

    rest: Batch
    targets: tuple[PackedTarget, ...]


def packed(batch: Batch) -> PackedBatch:
    """`batch` for another node."""
    return PackedBatch(replace(batch, targets=[]), tuple(map(_packed, batch.targets)))


def unpacked(sent: PackedBatch) -> Batch:
    """The batch that was packed, with the same bits."""
    return replace(sent.rest, targets=[_unpacked(target) for target in sent.targets])


def _packed(target: npt.NDArray[Any]) -> PackedTarget:
    import blosc2  # here, as a worker whose loaders are on its own node needs none of it

    options = {"codec": blosc2.Codec.LZ4, "clevel": 1, "filters": [blosc2.Filter.SHUFFLE], "filters_meta": [0], "nthreads": 1}
    content = blosc2.compress2(np.ascontiguousarray(target), typesize=target.itemsize, **options)
    return PackedTarget(target.shape, target.dtype.str, bytes(content))


def _unpacked(target: PackedTarget) -> npt.NDArray[Any]:
    import blosc2

    found = np.empty(target.shape, target.dtype)
    blosc2.decompress2(target.content, dst=found, nthreads=1)
    return found
