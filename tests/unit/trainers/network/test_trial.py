"""One patch of zeros on the meta device: which networks are refused, and that what plans alone tell agrees with it."""

import itertools
from typing import Any

import pytest
import torch

from tests.nnunet_beside import configuration
from trainers.contract.architecture import NetworkTrial, NetworkVerdict
from trainers.contract.plans import fault_of_configuration
from trainers.network import trial
from trainers.network.trial import verdict


def tried(settings: dict[str, Any], batch: int = 2) -> NetworkVerdict:
    return verdict(NetworkTrial(configuration=settings, channels=2, heads=3, batch=batch))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_plans_alone_refuse_the_patches_that_the_network_does_not_take(dimensions: int) -> None:
    strides = [[1] * dimensions, [2] * dimensions, [*[1] * (dimensions - 1), 3]]
    for patch in itertools.product((1, 2, 3, 4), *[(2, 4)] * (dimensions - 2), (4, 6, 7, 12)):
        settings = {**configuration(dimensions, (4, 8, 8), strides=strides), "patch_size": list(patch)}
        assert bool(fault_of_configuration(settings)) is bool(tried(settings).refusal), patch


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"n_blocks_per_stage": [1, 1, 1, 1]}, "cannot be built from this configuration"),
        ({"norm_op_kwargs": {"epsilon": 1}}, "cannot be built from this configuration"),
        (
            {"norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d"},
            "does not take a patch of [16, 16, 16] voxels in a batch of 2",
        ),
    ],
)
def test_a_network_that_does_not_take_its_patch_is_refused(settings: dict[str, Any], sentence: str) -> None:
    found = tried(configuration(3, **settings))
    assert sentence in found.refusal
    assert "Correct `architecture`" in found.refusal


def test_outputs_that_are_no_targets_are_refused() -> None:
    settings = configuration(3)
    settings["architecture"]["network_class_name"] = "dynamic_network_architectures.architectures.resnet.ResNet18_CIFAR"
    assert tried(settings).refusal
    del settings["architecture"]["arch_kwargs"]["strides"]
    assert "lacks 'strides'" in tried(settings).refusal


def test_batch_normalisation_of_one_voxel_needs_two_samples_on_every_worker() -> None:
    settings = {**configuration(2, norm_op="torch.nn.modules.batchnorm.BatchNorm2d"), "patch_size": [8, 8]}
    assert tried(settings) == NetworkVerdict()
    assert "Expected more than 1 value per channel" in tried(settings, batch=1).refusal


@pytest.mark.parametrize("error", [NotImplementedError("no kernel"), RuntimeError("no item() on meta tensors"), MemoryError()])
def test_what_the_meta_device_cannot_tell_refuses_nothing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    class Custom(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise error

    monkeypatch.setattr(trial, "build_network", lambda *arguments: Custom())
    found = tried(configuration(3))
    assert found.refusal == ""
    assert type(error).__name__ in found.unknown
