"""Which convolutions a network's forward pass calls, and what they give beside PyTorch's choice."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.nnunet_beside import configuration, labels_for, random_batch, seeded_network
from trainers.network.one_dnn import use_one_dnn

HAS_ONE_DNN = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
pytestmark = pytest.mark.skipif(not HAS_ONE_DNN, reason="this PyTorch has no oneDNN")


class Convolutions(TorchDispatchMode):
    """Counts the convolutions that PyTorch chooses a backend for, upsampling aside, and those that oneDNN was called for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.left_to_pytorch, self.of_one_dnn = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left_to_pytorch += func in (torch.ops.aten.conv2d.default, torch.ops.aten.conv3d.default)
        self.of_one_dnn += func is torch.ops.aten.mkldnn_convolution.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_every_convolution_of_a_single_sample_is_one_dnns(dimensions: int) -> None:
    config, labels = configuration(dimensions), labels_for("labels")
    network = seeded_network(config, labels).eval()
    images, _ = random_batch(config, labels, 1, 1)
    with torch.inference_mode(), Convolutions() as usual:
        before = network(images)
    use_one_dnn(network)
    with torch.inference_mode(), Convolutions() as chosen:
        after = network(images)
    assert (usual.of_one_dnn, chosen.left_to_pytorch) == (0, 0)
    assert chosen.of_one_dnn == usual.left_to_pytorch
    for mine, theirs in zip(after, before, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
