"""Convolutions on a CPU: which take which way, with the same results and the same checkpoints."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from trainers.network.cpu_convolutions import prepare_for_cpu


def chosen_by_torch(convolution: nn.Conv3d, images_BCZYX: torch.Tensor) -> str:
    """Which kernels PyTorch itself takes for a convolution without padding."""
    found = torch._C._select_conv_backend(images_BCZYX, convolution.weight, None, [1] * 3, [0] * 3, [1] * 3, False, [0] * 3, 1)
    return str(found).rpartition(".")[2]


def gradients(network: nn.Module, images_BCZYX: torch.Tensor) -> list[torch.Tensor]:
    """The output, and the gradients of input and weights."""
    images_BCZYX = images_BCZYX.clone().requires_grad_()
    output = network(images_BCZYX)
    output.square().sum().backward()
    return [output.detach(), *(tensor.grad for tensor in (images_BCZYX, *network.parameters()) if tensor.grad is not None)]


@pytest.mark.parametrize(
    ("channels", "heads", "kernel", "expected"),
    [(4, 8, 3, True), (16, 24, 3, True), (24, 16, (1, 3, 3), True), (32, 64, 3, False), (1, 32, 3, False), (4, 3, 1, False)],
)
def test_convolutions_with_channels_outside_blocks_take_them_last(channels: int, heads: int, kernel: Any, expected: bool) -> None:
    convolution = nn.Conv3d(channels, heads, kernel)
    prepare_for_cpu(convolution)
    assert (convolution(torch.zeros(2, channels, 4, 4, 4)).stride(1) == 1) == expected


@pytest.mark.parametrize(("size", "is_taken"), [((6, 6, 6), True), ((64, 80, 8), True), ((64, 81, 8), False), ((3, 6, 6), False)])
def test_a_single_sample_that_torch_takes_from_onednn_is_given_back(size: tuple[int, ...], is_taken: bool) -> None:
    convolution, images = nn.Conv3d(4, 16, 3), torch.randn(1, 4, *size)
    if size[0] > 3:  # an output of one slice has no halves
        assert chosen_by_torch(convolution, images) == ("Slow3d" if is_taken else "Mkldnn")
    assert chosen_by_torch(convolution, images.repeat(2, 1, 1, 1, 1)) == "Mkldnn"
    prepare_for_cpu(convolution)
    assert ("OneSample" in type(convolution(images).grad_fn).__name__) == is_taken
    assert "OneSample" not in type(convolution(images.repeat(2, 1, 1, 1, 1)).grad_fn).__name__


@pytest.mark.parametrize("size", [(6, 5, 4), (7, 6, 5), (2, 4, 4), (1, 4, 4)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), ((1, 3, 3), (1, 2, 2)), ((3, 1, 1), (2, 1, 1))])
@pytest.mark.parametrize(("channels", "bias"), [(1, True), (4, False), (16, True)])
def test_results_of_a_single_sample_differ_by_rounding(size: tuple[int, ...], kernel: Any, stride: Any, channels: int, bias: bool) -> None:
    torch.manual_seed(0)
    padding = tuple((k - 1) // 2 for k in kernel) if isinstance(kernel, tuple) else 1
    plain = nn.Conv3d(channels, 16, kernel, stride=stride, padding=padding, bias=bias)
    chosen = copy.deepcopy(plain)
    prepare_for_cpu(chosen)
    images = torch.randn(1, channels, *size)
    for theirs, ours in zip(gradients(plain, images), gradients(chosen, images), strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("other", [{"groups": 2}, {"dilation": 2}, {"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}])
def test_an_unusual_convolution_is_left_as_it_is(other: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain = nn.Conv3d(4, 4, 3, **other)
    chosen = copy.deepcopy(plain)
    prepare_for_cpu(chosen)
    images = torch.randn(1, 4, 8, 8, 8)
    assert torch.equal(plain(images), chosen(images))


@pytest.mark.parametrize("batch", [1, 2])
def test_results_differ_by_rounding_and_checkpoints_not_at_all(batch: int) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv3d(2, 4, 3), nn.InstanceNorm3d(4), nn.LeakyReLU(), nn.Conv3d(4, 3, 1))
    chosen = copy.deepcopy(plain)
    prepare_for_cpu(chosen)
    images = torch.randn(batch, 2, 8, 8, 8)
    for network in (plain, chosen):
        network(images).square().sum().backward()
    for theirs, ours in zip(plain.parameters(), chosen.parameters(), strict=True):
        assert theirs.grad is not None
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
        assert ours.grad.stride() == theirs.grad.stride()
    assert [tensor.stride() for tensor in chosen.state_dict().values()] == [tensor.stride() for tensor in plain.state_dict().values()]


def test_a_copy_of_a_network_computes_the_same_bits() -> None:
    network = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.Conv3d(4, 4, 3, stride=2, padding=1))
    prepare_for_cpu(network)
    images = torch.randn(1, 2, 9, 8, 8)
    for first, second in zip(gradients(network, images), gradients(copy.deepcopy(network), images), strict=True):
        assert torch.equal(first, second)
