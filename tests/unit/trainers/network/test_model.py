"""The network and its heads, beside what nnU-Net builds from the same plans."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.nnunet_beside import configuration, labels_for, nnunet_loss, nnunet_weights, random_batch, seeded_network
from tests.unit.old_plans import old_configuration
from trainers.contract.architecture import target_scales
from trainers.contract.plans import Plans
from trainers.contract.trainer_table import TrainerSettings
from trainers.errors import ConfigError
from trainers.network.loss import SegmentationLoss
from trainers.network.model import (
    build_network,
    deep_supervision_weights,
    freeze_dead_head,
    has_batchnorm_or_dropout,
    mirroring_axes,
    plain_state_dict,
    unwrapped,
)

RESIDUAL = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
    "blocks": {"n_blocks_per_stage": [1, 1, 1, 1]},
}


def _residual(dimensions: int) -> dict[str, Any]:
    config = configuration(dimensions, **RESIDUAL["blocks"])  # type: ignore[arg-type]
    config["architecture"]["network_class_name"] = RESIDUAL["network_class_name"]
    del config["architecture"]["arch_kwargs"]["n_conv_per_stage"]
    return config


CONFIGURATIONS = {
    "plain_2d": configuration(2),
    "plain_3d": configuration(3, conv_bias=True),
    "anisotropic": configuration(3, strides=[[1, 1, 1], [1, 2, 2], [1, 3, 3], [2, 2, 2]]),
    "residual": _residual(3),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_names_and_initial_weights_are_those_of_nnunet(name: str) -> None:
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

    config = CONFIGURATIONS[name]
    manager = ConfigurationManager(copy.deepcopy(config))
    torch.manual_seed(5)
    theirs = get_network_from_plans(
        manager.network_arch_class_name,
        manager.network_arch_init_kwargs,
        manager.network_arch_init_kwargs_req_import,
        2,
        3,
        allow_init=True,
        deep_supervision=True,
    ).state_dict()
    untouched = copy.deepcopy(config)
    torch.manual_seed(5)
    ours = plain_state_dict(build_network(config, 2, 3))
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert config == untouched


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_scales_are_those_of_nnunet_and_of_the_outputs(name: str) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

    config = CONFIGURATIONS[name]
    strides = ConfigurationManager(copy.deepcopy(config)).pool_op_kernel_sizes
    scales = target_scales(config)
    np.testing.assert_array_equal(scales, (1 / np.cumprod(np.vstack(strides), axis=0))[:-1])
    patch = [36] * len(config["patch_size"])
    outputs = build_network(config, 1, 3)(torch.zeros(1, 1, *patch)) if "anisotropic" in name else None
    if outputs is not None:
        assert [list(o.shape[2:]) for o in outputs] == [[round(p * s) for p, s in zip(patch, scale, strict=True)] for scale in scales]


def test_strides_may_be_single_numbers() -> None:
    assert target_scales(configuration(2, strides=[1, 2, 2, 2])) == ((1, 1), (0.5, 0.5), (0.25, 0.25))


def test_weights_are_those_of_nnunet() -> None:
    for count in range(2, 8):
        np.testing.assert_allclose(deep_supervision_weights(count), nnunet_weights(count), rtol=1e-15)
    assert deep_supervision_weights(3) == pytest.approx((2 / 3, 1 / 3, 0))
    assert deep_supervision_weights(1) == (1.0,)  # nnU-Net's rule gives 0/0


def test_prediction_mirrors_the_axes_of_the_trainer() -> None:
    assert [mirroring_axes(configuration(n), TrainerSettings()) for n in (2, 3)] == [(0, 1), (0, 1, 2)]
    assert [mirroring_axes(configuration(n), TrainerSettings(mirroring="01")) for n in (2, 3)] == [(0,), (0, 1)]
    assert mirroring_axes(configuration(3), TrainerSettings(mirroring="none")) is None  # as nnU-Net's checkpoints hold it


def test_freezing_takes_the_coarsest_head_alone() -> None:
    network = build_network(configuration(3), 1, 3)
    freeze_dead_head(network, deep_supervision_weights(3))
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias"}


def test_freezing_a_network_of_one_output() -> None:
    two_stages = build_network(configuration(2, (4, 8)), 1, 3)
    freeze_dead_head(two_stages, deep_supervision_weights(1))
    assert all(p.requires_grad for p in two_stages.parameters())
    without = build_network(configuration(2), 1, 3, deep_supervision=False)
    freeze_dead_head(without, [1.0])
    frozen = {name.rsplit(".", 1)[0] for name, p in without.named_parameters() if not p.requires_grad}
    assert frozen == {"decoder.seg_layers.0", "decoder.seg_layers.1"}


def test_training_with_the_frozen_head_is_nnunets_training_without() -> None:
    labels, config = labels_for("labels"), configuration(2)
    ours, theirs = seeded_network(config, labels), seeded_network(config, labels)
    initial = copy.deepcopy(plain_state_dict(ours))
    weights = deep_supervision_weights(3)
    freeze_dead_head(ours, weights)
    losses: list[Callable[..., torch.Tensor]] = [SegmentationLoss(labels, True, weights, 2), nnunet_loss(labels, True, 3)]
    for network, loss in zip((ours, theirs), losses, strict=True):
        optimizer = torch.optim.SGD(network.parameters(), 1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True)
        for iteration in range(5):
            images, targets = random_batch(config, labels, 2, seed=iteration)
            optimizer.zero_grad(set_to_none=True)
            loss(network(images), targets).backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
            torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
            optimizer.step()
    for name, tensor in plain_state_dict(ours).items():
        torch.testing.assert_close(tensor, theirs.state_dict()[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(tensor, initial[name]) == ("seg_layers.0." in name), name


def test_names_reach_through_torch_compile() -> None:
    network = build_network(configuration(2), 1, 3)
    compiled = torch.compile(network)
    assert isinstance(compiled, torch.nn.Module)  # torch types it as any callable
    assert any(key.startswith("_orig_mod.") for key in compiled.state_dict())
    assert unwrapped(compiled) is network
    assert list(plain_state_dict(compiled)) == list(network.state_dict())


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ({}, False),
        ({"norm_op": "torch.nn.modules.batchnorm.BatchNorm2d"}, True),
        ({"dropout_op": "torch.nn.modules.dropout.Dropout2d", "dropout_op_kwargs": {"p": 0.1}}, True),
        ({"dropout_op": "torch.nn.modules.dropout.Dropout2d", "dropout_op_kwargs": {"p": 0.0}}, False),
    ],
)
def test_layers_that_depend_on_the_split_are_noticed(arch: dict[str, Any], expected: bool) -> None:
    assert has_batchnorm_or_dropout(build_network(configuration(2, **arch), 1, 3)) is expected


def test_a_configuration_without_its_architecture_is_refused() -> None:
    with pytest.raises(ConfigError, match="no complete `architecture`"):
        build_network({"patch_size": [16, 16], "architecture": {"arch_kwargs": {}}}, 1, 3)


@pytest.mark.parametrize(
    ("axes", "network"), [(2, "PlainConvUNet"), (3, "PlainConvUNet"), (2, "ResidualEncoderUNet"), (3, "ResidualEncoderUNet")]
)
@pytest.mark.filterwarnings("ignore:Network class", "ignore:Detected old nnU-Net plans", "ignore::FutureWarning")  # nnU-Net's own
def test_old_plans_make_the_network_that_nnunet_makes_of_them(axes: int, network: str) -> None:
    """With inheritance: the child of a configuration from before nnU-Net 2.4 changes the network's numbers."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    child = {"inherits_from": "parent", "UNet_base_num_features": 6}
    content = {"configurations": {"parent": old_configuration(axes, network), "child": child}}
    manager = PlansManager(copy.deepcopy(content)).get_configuration("child")
    settings = Plans("P", Path("P.json"), content).configuration("child")
    names = (manager.network_arch_class_name, manager.network_arch_init_kwargs, manager.network_arch_init_kwargs_req_import)
    torch.manual_seed(5)
    theirs = get_network_from_plans(*names, 2, 3, allow_init=True, deep_supervision=True).state_dict()
    torch.manual_seed(5)
    ours = plain_state_dict(build_network(settings, 2, 3))
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    same = {key: value for key, value in manager.configuration.items() if key not in ("architecture", "inherits_from")}
    assert {key: value for key, value in settings.items() if key != "architecture"} == same
    assert settings["architecture"]["arch_kwargs"] == manager.network_arch_init_kwargs


@pytest.mark.parametrize(
    ("class_name", "message"),
    [
        ("dynamic_network_architectures.architectures.unet.PlainConvUNot", "cannot be built"),
        ("collections.ChainMap", "cannot be built"),
        ("builtins.dict", "is no torch network"),
    ],
)
@pytest.mark.filterwarnings("ignore:Network class", "ignore::FutureWarning")  # nnU-Net looks through all architectures, timm included
def test_a_network_that_cannot_be_built_is_a_fault_of_the_plans(class_name: str, message: str) -> None:
    config = configuration(2)
    config["architecture"]["network_class_name"] = class_name
    with pytest.raises(ConfigError, match=message):
        build_network(config, 1, 3)
