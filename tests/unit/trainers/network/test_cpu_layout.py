"""Layouts of convolutions on a CPU: which take which, with the same results and the same checkpoints."""

import copy

import pytest
import torch
from torch import nn

from trainers.network.cpu_layout import choose_layouts


def gets_channels_last(convolution: nn.Module, channels: int) -> bool:
    """Whether the layout that `convolution` computes in is that of channels last."""
    choose_layouts(convolution)
    seen: list[torch.Tensor] = []
    convolution.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    convolution(torch.zeros(1, channels, 4, 4, 4))
    return seen[0].stride(1) == 1


@pytest.mark.parametrize(
    ("channels", "heads", "kernel", "expected"),
    [(4, 8, 3, True), (16, 24, 3, True), (24, 16, (1, 3, 3), True), (32, 64, 3, False), (1, 32, 3, False), (4, 3, 1, False)],
)
def test_convolutions_with_channels_outside_blocks_take_them_last(channels: int, heads: int, kernel: int, expected: bool) -> None:
    assert gets_channels_last(nn.Conv3d(channels, heads, kernel), channels) == expected


def test_results_differ_by_rounding_and_checkpoints_not_at_all() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv3d(2, 4, 3), nn.InstanceNorm3d(4), nn.LeakyReLU(), nn.Conv3d(4, 3, 1))
    chosen = copy.deepcopy(plain)
    choose_layouts(chosen)
    images = torch.randn(2, 2, 8, 8, 8)
    for network in (plain, chosen):
        network(images).square().sum().backward()
    for theirs, ours in zip(plain.parameters(), chosen.parameters(), strict=True):
        assert theirs.grad is not None
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
        assert ours.grad.stride() == theirs.grad.stride()
    assert [tensor.stride() for tensor in chosen.state_dict().values()] == [tensor.stride() for tensor in plain.state_dict().values()]
