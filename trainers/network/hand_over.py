"""From a batch in shared memory to tensors on the device of a rank, while the GPU still computes the step before.

A step never waits for the GPU, so the training thread is here as soon as it has launched the step before. Copies go through pinned memory,
which PyTorch keeps and uses again, on a stream of their own; kernels that are launched later wait for them on the GPU, not the thread.
"""

from typing import Any

import numpy as np
import torch

from trainers.data.batches import Batch


class HandOver:
    """Copies the batches of one rank onto its device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copying = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Images (B, C, [Z,] Y, X) and targets, finest first. Does not wait for the device."""
        arrays = (batch.images, *batch.targets)
        if self._copying is None:
            images_BCZYX, *targets = (torch.from_numpy(np.array(array)) for array in arrays)
            return images_BCZYX, targets
        with torch.cuda.stream(self._copying):
            images_BCZYX, *targets = (_pinned(array).to(self._device, non_blocking=True) for array in arrays)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._copying)
        for tensor in (images_BCZYX, *targets):
            tensor.record_stream(computing)  # or its memory would be taken for the next copy while a step still reads it
        return images_BCZYX, targets


def _pinned(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """A copy in pinned memory; `array` may be read-only shared memory."""
    pinned = torch.empty(array.shape, dtype=torch.from_numpy(array[:0].copy()).dtype, pin_memory=True)
    pinned.numpy()[...] = array
    return pinned
