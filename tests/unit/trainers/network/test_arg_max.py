"""The running arg-max beside torch's and numpy's."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from trainers.network.arg_max import running_arg_max, times


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("count", "kind"), [(1, torch.uint8), (2, torch.uint8), (118, torch.uint8), (256, torch.uint8), (257, torch.int16)]
)
def test_the_largest_is_numpys_also_among_equals(count: int, kind: torch.dtype, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    values = torch.randint(-count, count, (count, 9, 7)).to(dtype)  # many are equal
    values[:, 0] = 0
    values[:, 1] = -torch.inf
    values[-1, 2] = torch.inf
    values[count // 2, 3], values[:, 3, 1] = -0.0, 0.0
    found = running_arg_max(values, count)
    assert found.dtype == kind
    np.testing.assert_array_equal(found.numpy(), values.numpy().argmax(0))


def test_values_may_come_in_one_tensor_that_is_overwritten() -> None:
    values = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(1))

    def one_after_the_other() -> Iterator[torch.Tensor]:
        room = torch.empty(4, 3)
        for value in values:
            yield room.copy_(value)

    assert torch.equal(running_arg_max(one_after_the_other(), 5).long(), values.argmax(0))


def test_strided_values_give_the_same() -> None:
    logits = torch.randn(2, 3, 5, 4, 6, generator=torch.Generator().manual_seed(1)).to(memory_format=torch.channels_last_3d)
    assert torch.equal(running_arg_max(logits.unbind(1), 3).long(), logits.argmax(1))


def test_a_value_is_set_under_its_mask_alone() -> None:
    assert times(torch.tensor([True, False]), 255, torch.uint8).tolist() == [255, 0]
    assert times(torch.tensor([True, False]), 300, torch.int16).tolist() == [300, 0]
