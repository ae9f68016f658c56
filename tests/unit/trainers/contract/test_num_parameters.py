"""The number of parameters by plans is that of the network which nnU-Net builds of them."""

from typing import Any

import pytest

from trainers.contract.num_parameters import num_parameters
from trainers.network.model import build_network

PLAIN = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
RESIDUAL = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"


def configuration(name: str, axes: int, *, bias: bool, features: tuple[int, ...] = (4, 8, 8)) -> dict[str, Any]:
    blocks = "n_conv_per_stage" if name == PLAIN else "n_blocks_per_stage"
    arguments = {
        "n_stages": 3,
        "features_per_stage": list(features),
        "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
        "kernel_sizes": [[1, 3, 3][-axes:], [3] * axes, [3] * axes],
        "strides": [[1] * axes, [1, 2, 2][-axes:], [2] * axes],
        blocks: [1, 3, 2],
        "n_conv_per_stage_decoder": [1, 2],
        "conv_bias": bias,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    architecture = {
        "network_class_name": name,
        "arch_kwargs": arguments,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    return {"patch_size": [16] * axes, "architecture": architecture}


@pytest.mark.parametrize("name", [PLAIN, RESIDUAL])
@pytest.mark.parametrize(("axes", "bias"), [(3, True), (2, False)])
def test_they_are_counted_as_torch_counts_them(name: str, axes: int, *, bias: bool) -> None:
    made = configuration(name, axes, bias=bias)
    network = build_network(made, 2, 3)
    assert num_parameters(made, 2, 3) == sum(parameter.numel() for parameter in network.parameters())


def test_of_another_network_the_number_is_not_known() -> None:
    made = configuration(PLAIN, 3, bias=True)
    assert num_parameters(made, 2, 3)
    made["architecture"]["network_class_name"] = "my.Network"
    assert num_parameters(made, 2, 3) is None
    assert num_parameters({}, 2, 3) is None
