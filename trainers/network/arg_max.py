"""Arg-max over classes that come one after the other: it needs no stack of them, and on a CPU a tenth of the time of torch's arg-max."""

from collections.abc import Iterable

import torch
from torch import Tensor


def running_arg_max(values: Iterable[Tensor], count: int) -> Tensor:
    """Which of `count` equally shaped tensors is the largest in each place; of equals the first, as `torch.argmax` and `numpy.argmax`.

    uint8 for up to 256 tensors, else int16. NaN is never taken for the largest, which those two do: keep it out. A tensor may reuse the
    memory of the one before.
    """
    remaining = iter(values)
    largest = next(remaining).clone()
    found = torch.zeros(largest.shape, dtype=index_type(count - 1), device=largest.device)
    is_larger = torch.empty(largest.shape, dtype=torch.bool, device=largest.device)
    for index, value in enumerate(remaining, 1):
        torch.gt(value, largest, out=is_larger)
        torch.maximum(largest, value, out=largest)
        torch.maximum(found, times(is_larger, index, found.dtype), out=found)  # indices rise, so the newest is the largest of them
    return found


def index_type(highest: int) -> torch.dtype:
    """The smallest type of torch's that holds whole numbers up to `highest`."""
    return torch.uint8 if highest < 256 else torch.int16


def times(mask: Tensor, value: int, dtype: torch.dtype) -> Tensor:
    """`value` where `mask` is set, else 0. Multiplied bytes are ten times as fast as `where` and `masked_fill`."""
    return mask.view(torch.uint8).to(dtype) * value
