"""Networks that cannot be are told from their plans alone; everything that nnU-Net's own planner makes passes."""

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from tests.nnunet_beside import configuration
from tests.unit.old_plans import old_configuration
from trainers.contract.architecture import nearest_patch
from trainers.contract.plans import Plans, fault_of_configuration
from trainers.errors import DataError

RESIDUAL = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"


def changed(dimensions: int = 3, patch: list[int] | None = None, lacking: str = "", **arguments: Any) -> dict[str, Any]:
    """A small sound configuration (four stages, each but the first with stride 2) with other settings of its network."""
    settings = configuration(dimensions, **arguments)
    settings["architecture"]["arch_kwargs"].pop(lacking, None)
    return {**settings, "patch_size": patch or settings["patch_size"]}


def _lacking(settings: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in keys}


@pytest.mark.parametrize("dimensions", [2, 3])
def test_every_topology_of_nnunets_planner_passes(dimensions: int) -> None:
    sizes, lengths_mm = (12, 20, 37, 64, 150, 320), (0.7, 1.0, 3.5)
    for size, last, first_mm in product(sizes, sizes, lengths_mm):
        spacing = [first_mm, 1.0, 0.8][3 - dimensions :]
        _, strides, kernels, patch, _ = get_pool_and_conv_props(spacing, [size, 40, last][3 - dimensions :], 4, 999999)
        stages = len(strides)
        plan = configuration(dimensions, [8] * stages, strides=strides, kernel_sizes=kernels)
        plan |= {"patch_size": patch, "spacing": spacing}
        if stages > 1:  # of a smaller patch nnU-Net makes no network that works
            assert fault_of_configuration(json.loads(json.dumps(plan, default=int))) == ""


@pytest.mark.parametrize(
    "settings",
    [
        changed(kernel_sizes=3, features_per_stage=8, n_conv_per_stage=2, n_conv_per_stage_decoder=2),
        changed(strides=[1, 2, [1, 2, 2], 2], patch=[4, 8, 16]),
        changed(kernel_sizes=[[1, 3, 3], [1, 3, 3], 3, 3], strides=[1, [1, 2, 2], 2, 2], patch=[8, 16, 24]),
        changed(2) | {"spacing": [3.0, 1.0, 1.0]},
        changed(patch=[8, 8, 8], norm_op="torch.nn.modules.batchnorm.BatchNorm3d"),
        changed(patch=[8, 8, 8], norm_op=None),
        changed(kernel_sizes=[[3, 3, 3]] * 3 + [[2, 2, 2]]),  # the decoder does not use the bottleneck's
    ],
)
def test_sound_networks_pass(settings: dict[str, Any]) -> None:
    assert fault_of_configuration(settings) == ""


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        changed(patch=[20, 16, 16]),
        "patch_size [20, 16, 16] must be divisible by [8, 8, 8], the products of its 4 stages' strides: "
        "the nearest that fits is [24, 16, 16]",
    ),
    (changed(2, patch=[19, 27]), "patch_size [19, 27] must be divisible by [8, 8], the products of its 4 stages' strides: the nearest"),
    (changed(patch=[4, 4, 4]), "divisible by [8, 8, 8], the products of its 4 stages' strides: the nearest that fits is [16, 8, 8]"),
    (
        changed(patch=[8, 8, 8]),
        "one voxel in the deepest stage, where instance normalisation needs two: the nearest that fits is [16, 8",
    ),
    (changed(patch=[16, 16]), "conv_op is 'torch.nn.modules.conv.Conv3d', and patch_size has 2 axes"),
    (
        changed(norm_op="torch.nn.modules.instancenorm.InstanceNorm2d"),
        "norm_op is 'torch.nn.modules.instancenorm.InstanceNorm2d', and",
    ),
    (
        changed(kernel_sizes=[[3, 3]] * 4),
        "kernel_sizes must be whole numbers from 1 to 100000, or lists of 3 of them, with one entry per",
    ),
    (changed(kernel_sizes=[[3, 3, 3]] * 3), "kernel_sizes has 3 entries, and n_stages: 4 needs 4"),
    (
        changed(kernel_sizes=[[3, 4, 3]] * 4),
        "kernel_sizes above the bottleneck must be odd, else each convolution cuts a voxel off, got [3, 4",
    ),
    (changed(strides=[1, 2, 2]), "strides has 3 entries, and n_stages: 4 needs 4"),
    (changed(strides=2), "strides must be whole numbers from 1 to 100000, or lists of 3 of them, with one entry per stage, got 2"),
    (changed(strides=[1, 2, 2, 0]), "strides must be whole numbers from 1"),
    (
        changed(strides=[2, 2, 2, 1]),
        "strides must begin with 1 on every axis, else the network's output is smaller than its patch, got",
    ),
    (changed(features_per_stage=[4, 8]), "features_per_stage has 2 entries, and n_stages: 4 needs 4"),
    (changed(features_per_stage=[4, 8, -1, 8]), "features_per_stage must be whole numbers from 1 to 100000 with one entry per stage"),
    (changed(n_conv_per_stage=[1, 1, 1, True]), "n_conv_per_stage must be whole numbers"),
    (changed(n_conv_per_stage_decoder=[1, 1, 1, 1]), "n_conv_per_stage_decoder has 4 entries, and n_stages: 4 needs 3"),
    (changed(n_stages=1), "n_stages must be a whole number from 2 to 100, got 1"),
    (changed(n_stages="four"), "n_stages must be a whole number from 2 to 100, got 'four'"),
    (changed(lacking="n_conv_per_stage"), "arch_kwargs of PlainConvUNet lacks n_conv_per_stage"),
    ({**changed(), "spacing": [1.0, 1.0]}, "spacing must be a positive number of mm for each axis of patch_size, got [1.0, 1.0]"),
    ({**changed(), "spacing": [1.0, -1.0, 1.0]}, "spacing must be a positive number"),
]


@pytest.mark.parametrize(("settings", "sentence"), REFUSED, ids=[sentence[:60] for _, sentence in REFUSED])
def test_a_network_that_cannot_be_is_refused_with_its_numbers(settings: dict[str, Any], sentence: str) -> None:
    assert sentence in fault_of_configuration(settings)


def test_a_residual_encoder_needs_blocks_per_stage() -> None:
    settings = changed(n_blocks_per_stage=[1, 2, 2])
    settings["architecture"]["network_class_name"] = RESIDUAL
    assert fault_of_configuration(settings) == "n_blocks_per_stage has 3 entries, and n_stages: 4 needs 4"
    settings["architecture"]["arch_kwargs"]["n_blocks_per_stage"] = [1, 2, 2, 2]
    assert fault_of_configuration(settings) == ""
    del settings["architecture"]["arch_kwargs"]["n_blocks_per_stage"]
    assert fault_of_configuration(settings) == "arch_kwargs of ResidualEncoderUNet lacks n_blocks_per_stage"


OLD: list[tuple[dict[str, Any], str]] = [
    (old_configuration(network="MyUNet"), "UNet_class_name is 'MyUNet', and of plans from before nnU-Net 2.4 only PlainConvUNet and"),
    (old_configuration(network=["x"]), "UNet_class_name is ['x'], and of plans"),  # type: ignore[arg-type]
    (_lacking(old_configuration(), "conv_kernel_sizes", "num_pool_per_axis"), "PlainConvUNet it lacks num_pool_per_axis, conv_kernel"),
    (_lacking(old_configuration(), "patch_size", "spacing"), "it lacks patch_size"),
    (old_configuration(UNet_base_num_features=True), "UNet_base_num_features must be a whole number from 1 to 100000, got True"),
    (old_configuration(unet_max_num_features="many"), "unet_max_num_features must be a whole number"),
    (old_configuration(n_conv_per_stage_encoder=2), "n_conv_per_stage_encoder must be a list of at most 100 whole numbers, got 2"),
    (old_configuration(n_conv_per_stage_encoder=[1] * 200), "n_conv_per_stage_encoder must be a list of at most 100 whole"),
    (old_configuration(patch_size=[8, 17, 16]), "patch_size [8, 17, 16] must be divisible by [2, 4, 4]"),
    (old_configuration(patch_size="large"), "patch_size must be two or three whole numbers"),
    (old_configuration(n_conv_per_stage_decoder=[1]), "n_conv_per_stage_decoder has 1 entries, and n_stages: 3 needs 2"),
    (old_configuration(pool_op_kernel_sizes=[[1, 1, 1]]), "strides has 1 entries, and n_stages: 3 needs 3"),
]


@pytest.mark.parametrize(("settings", "sentence"), OLD, ids=[sentence[:60] for _, sentence in OLD])
def test_a_network_of_old_plans_that_cannot_be_rebuilt_is_refused_with_the_reason(settings: dict[str, Any], sentence: str) -> None:
    plans = Plans("P", Path("P.json"), {"configurations": {"3d_fullres": settings}})
    with pytest.raises(DataError, match=re.escape(sentence)):
        plans.configuration("3d_fullres")


def test_the_nearest_patch_is_the_nearest_multiple_and_never_nothing() -> None:
    assert nearest_patch([100, 125, 3], [32, 16, 8]) == [96, 128, 8]
    assert nearest_patch([5, 5], [8, 4], least_voxels=2) == [8, 8]
