"""The loss against nnU-Net's own, value and gradients, in one process."""

import math

import pytest
import torch

from tests.nnunet_beside import (
    KINDS,
    as_target,
    assert_close,
    configuration,
    gradients,
    labels_for,
    nnunet_loss,
    random_batch,
    seeded_network,
)
from trainers.network.loss import SegmentationLoss
from trainers.network.model import deep_supervision_weights

WEIGHTS = deep_supervision_weights(3)
ARCHITECTURES = {
    "3d": configuration(3),
    "2d": configuration(2),
    "anisotropic": configuration(3, strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]),
}


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("shape", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradients_are_those_of_nnunet(kind: str, shape: str, batch_dice: bool) -> None:
    labels, config = labels_for(kind), ARCHITECTURES[shape]
    network = seeded_network(config, labels)
    images, targets = random_batch(config, labels, size=3, seed=1, blank=[1])
    theirs = nnunet_loss(labels, batch_dice, 3)(network(images), targets)
    theirs.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
    expected = gradients(network)
    network.zero_grad(set_to_none=True)
    ours = SegmentationLoss(labels, batch_dice, WEIGHTS, global_batch=3)(network(images), targets)
    ours.backward()  # type: ignore[no-untyped-call]
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert_close(gradients(network), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_one_output_without_deep_supervision(kind: str) -> None:
    labels = labels_for(kind)
    torch.manual_seed(0)
    logits = torch.randn(2, labels.num_heads, 6, 5, 4)
    target = as_target(torch.randint(0, max(labels.values) + 1, (2, 1, 6, 5, 4), dtype=torch.int16), labels)
    theirs = nnunet_loss(labels, True, 2)([logits, logits], [target, target])  # weights of two outputs are 1 and 0
    ours = SegmentationLoss(labels, True, [1.0], global_batch=2)(logits, target)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["regions", "regions_ignore"])
def test_region_targets_may_be_bool(kind: str) -> None:
    labels, config = labels_for(kind), configuration(2)
    network = seeded_network(config, labels)
    images, targets = random_batch(config, labels, size=2, seed=1)
    outputs = network(images)
    loss = SegmentationLoss(labels, False, WEIGHTS, global_batch=2)
    bools = [target.bool() for target in targets]
    assert loss(outputs, bools).item() == loss(outputs, targets).item()
    assert loss(outputs, bools).item() == pytest.approx(nnunet_loss(labels, False, 3)(outputs, bools).item(), rel=1e-6)


def test_value_worked_by_hand() -> None:
    # Four voxels, equal logits: probability 1/2 everywhere, cross entropy ln 2. One voxel is foreground:
    # Dice = (2 * 1/2 + 1e-5) / (1 + 4 * 1/2 + 1e-5) = 1.00001 / 3.00001
    labels = labels_for("labels")
    logits = torch.zeros(1, 2, 2, 2)
    target = torch.tensor([[[[0, 1], [0, 0]]]], dtype=torch.int16)
    for batch_dice in (True, False):
        loss = SegmentationLoss(labels, batch_dice, [1.0], global_batch=1)
        assert loss(logits, target).item() == pytest.approx(math.log(2) - 1.00001 / 3.00001, rel=1e-6)


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("kind", ["ignore", "regions_ignore"])
def test_a_batch_without_a_valid_voxel_moves_nothing(kind: str, batch_dice: bool) -> None:
    labels, config = labels_for(kind), configuration(2)
    network = seeded_network(config, labels)
    images, targets = random_batch(config, labels, size=2, seed=1, blank=[0, 1])
    outputs = network(images)
    loss = SegmentationLoss(labels, batch_dice, WEIGHTS, global_batch=2)(outputs, targets)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(-1)  # cross entropy 0, Dice of nothing against nothing 1
    assert loss.item() == pytest.approx(nnunet_loss(labels, batch_dice, 3)(outputs, targets).item())
    assert all(not gradient.any() for gradient in gradients(network).values())


def test_the_dead_output_is_not_looked_at() -> None:
    labels, config = labels_for("labels"), configuration(2)
    network = seeded_network(config, labels)
    images, targets = random_batch(config, labels, size=2, seed=1)
    outputs = network(images)
    loss = SegmentationLoss(labels, True, WEIGHTS, global_batch=2)
    expected = loss(outputs, targets).item()
    assert loss([*outputs[:-1], outputs[-1] * math.nan], targets).item() == expected


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_logits_are_summed_in_float32(kind: str, half: torch.dtype) -> None:
    labels = labels_for(kind)
    torch.manual_seed(0)
    logits = torch.randn(2, labels.num_heads, 48, 48, 48).to(half)  # sums of 110592 voxels exceed float16's range
    target = as_target(torch.randint(0, max(labels.values) + 1, (2, 1, 48, 48, 48), dtype=torch.int16), labels)
    loss = SegmentationLoss(labels, True, [1.0], global_batch=2)
    value = loss(logits, target)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(logits.float(), target).item(), rel=1e-4)


def test_a_world_size_that_is_not_there_is_refused() -> None:
    with pytest.raises(AssertionError, match="meant for 2 ranks, the process group has 1"):
        SegmentationLoss(labels_for("labels"), True, WEIGHTS, global_batch=2, world_size=2)
