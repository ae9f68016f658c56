"""One, two and three real gloo ranks, even and uneven splits: the same losses, gradients and weights as nnU-Net's in one process."""

import copy
import itertools
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from tests.nnunet_beside import (
    KINDS,
    assert_close,
    configuration,
    gradients,
    labels_for,
    nnunet_counts,
    nnunet_loss,
    random_batch,
    seeded_network,
)
from trainers.contract.plans import Labels
from trainers.contract.trainer_table import Loss
from trainers.network.loss import SegmentationLoss
from trainers.network.model import deep_supervision_weights, freeze_dead_head, plain_state_dict
from trainers.training.pseudo_dice import batch_counts, gather_epoch

ITERATIONS = 10
CONFIGURATION = configuration(2, nonlin="torch.nn.SiLU")
"""Smooth, unlike nnU-Net's LeakyReLU, with which one voxel whose sign rounding flips moves the gradient by 1e-3, in one process too."""
WEIGHTS = deep_supervision_weights(3)
SPLITS = [(3,), (4,), (1, 2), (3, 1), (1, 1, 1), (2, 1, 1)]
"""Samples of each rank."""


@dataclass(frozen=True)
class Case:
    """One training of ITERATIONS steps."""

    kind: str
    batch_dice: bool
    split: tuple[int, ...]
    loss: Loss = "dice_ce"


@dataclass(frozen=True, repr=False)  # pytest would print thousands of tensors for minutes
class Course:
    """What a training leaves behind; with ranks, the mean of their losses and DDP's averaged gradients."""

    losses: list[float]
    gradients: list[dict[str, Tensor]]
    weights: dict[str, Tensor]


CASES = [Case(*values) for values in itertools.product(KINDS, [True, False], SPLITS)]
VARIANTS: tuple[Loss, ...] = ("dice", "ce", "dice_ce_no_smooth")
CASES += [Case("labels", *values) for values in itertools.product([True, False], [(1, 2), (2, 1, 1)], VARIANTS)]
CASES += [Case("regions", batch_dice, (1, 2), "dice") for batch_dice in (True, False)]


def _global_batch(kind: str, size: int, iteration: int) -> tuple[Tensor, list[Tensor]]:
    """Sample 0 has no valid voxel in even iterations, nothing has in iteration 5 (where there is an ignore label)."""
    blank = range(size) if iteration == 5 else [0] if iteration % 2 == 0 else []
    return random_batch(CONFIGURATION, labels_for(kind), size, seed=iteration, blank=list(blank))


def _train(network: nn.Module, loss: Any, case: Case, rank: int = 0) -> Course:
    first = sum(case.split[:rank])
    own = slice(first, first + case.split[rank])
    optimizer = torch.optim.SGD(network.parameters(), 1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True)
    losses, steps = [], []
    for iteration in range(ITERATIONS):
        images, targets = _global_batch(case.kind, sum(case.split), iteration)
        optimizer.zero_grad(set_to_none=True)
        value = loss(network(images[own]), [target[own] for target in targets])
        value.backward()
        steps.append({name.removeprefix("module."): gradient for name, gradient in gradients(network).items()})
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        losses.append(value.item())
    return Course(losses, steps, copy.deepcopy(plain_state_dict(network)))


def _our_course(case: Case, rank: int) -> Course:
    """Our loss on one rank, in DDP if there are several; on rank 0 the losses are averaged over ranks."""
    labels = labels_for(case.kind)
    network = seeded_network(CONFIGURATION, labels)
    freeze_dead_head(network, WEIGHTS)
    world_size = len(case.split)
    if world_size > 1:
        network = DistributedDataParallel(network)
    course = _train(network, SegmentationLoss(labels, case.batch_dice, WEIGHTS, sum(case.split), world_size, case.loss), case, rank)
    if world_size == 1:
        return course
    losses = torch.tensor(course.losses, dtype=torch.float64)
    dist.all_reduce(losses)
    return Course((losses / world_size).tolist(), course.gradients, course.weights)


def without_deep_supervision(labels: Labels) -> nn.Module:
    """The seeded network with its finest output alone."""
    network = seeded_network(CONFIGURATION, labels)
    decoder: Any = network.decoder  # of dynamic_network_architectures, which is untyped
    decoder.deep_supervision = False
    return network


def _counts_of_rank(split: tuple[int, ...], rank: int) -> tuple[Tensor, Tensor]:
    labels = labels_for("ignore")
    network = without_deep_supervision(labels)
    images, targets = _global_batch("ignore", sum(split), 0)
    own = slice(sum(split[:rank]), sum(split[: rank + 1]))
    with torch.no_grad():
        counts = batch_counts(network(images[own]), targets[0][own], labels)
    return gather_epoch(counts, torch.tensor([split[rank], 0.25], dtype=torch.float64))


RankResult = tuple[dict[Case, Course], dict[tuple[int, ...], tuple[Tensor, Tensor]]]
"""What one rank found: a course per case, and gathered counts and sums per split."""


def _found_by_rank(rank: int, world_size: int) -> RankResult:
    cases = [case for case in CASES if len(case.split) == world_size]
    courses = {case: _our_course(case, rank) for case in cases}
    return courses, {case.split: _counts_of_rank(case.split, rank) for case in cases}


def _rank(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    torch.save(_found_by_rank(rank, world_size), folder / f"rank_{rank}.pth")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def gangs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[RankResult]]:
    """What every rank of one (this process, without a process group), two and three ranks found, by world size."""
    found = {1: [_found_by_rank(0, 1)]}
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    for world_size in (2, 3):
        folder = tmp_path_factory.mktemp(f"world_{world_size}")
        spawn(_rank, (world_size, folder), nprocs=world_size)  # type: ignore[no-untyped-call] # torch leaves it untyped
        found[world_size] = [torch.load(folder / f"rank_{rank}.pth", weights_only=False) for rank in range(world_size)]
    return found


@pytest.fixture(scope="module")
def nnunet_courses() -> dict[Case, Course]:
    """nnU-Net's loss on the whole batch in one process, without DDP and without freezing, by the case of one rank."""
    courses = {}
    for case in {replace(case, split=(sum(case.split),)) for case in CASES}:
        labels = labels_for(case.kind)
        network = seeded_network(CONFIGURATION, labels)
        courses[case] = _train(network, nnunet_loss(labels, case.batch_dice, 3, case.loss), case)
    return courses


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case.kind}-{'batch' if case.batch_dice else 'sample'}_dice-{case.split}-{case.loss}"
)
def test_any_split_trains_as_nnunet_does_in_one_process(
    case: Case, gangs: dict[int, list[RankResult]], nnunet_courses: dict[Case, Course]
) -> None:
    expected = nnunet_courses[replace(case, split=(sum(case.split),))]
    ours = gangs[len(case.split)][0][0][case]
    assert all(math.isfinite(loss) for loss in ours.losses)
    assert ours.losses == pytest.approx(expected.losses, abs=1e-5)
    assert_close(ours.gradients[0], expected.gradients[0])
    for ours_step, expected_step in zip(ours.gradients, expected.gradients, strict=True):
        flat = [torch.cat([step[name].flatten() for name in expected_step]) for step in (ours_step, expected_step)]
        assert (flat[0] - flat[1]).norm() <= 1e-4 * flat[1].norm()
    for name, tensor in expected.weights.items():
        torch.testing.assert_close(ours.weights[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("case", [case for case in CASES if len(case.split) > 1], ids=str)
def test_all_ranks_hold_the_same_bits(case: Case, gangs: dict[int, list[RankResult]]) -> None:
    first, *others = [courses[case].weights for courses, _ in gangs[len(case.split)]]
    for other in others:
        assert all(torch.equal(tensor, other[name]) for name, tensor in first.items())


@pytest.mark.parametrize("kind", ["ignore", "regions_ignore"])
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_a_global_batch_without_a_valid_voxel_has_loss_minus_one(
    kind: str, split: tuple[int, ...], gangs: dict[int, list[RankResult]]
) -> None:
    for batch_dice in (True, False):
        course = gangs[len(split)][0][0][Case(kind, batch_dice, split)]
        assert course.losses[5] == pytest.approx(-1)  # cross entropy 0, Dice of nothing against nothing 1
        assert all(not gradient.any() for gradient in course.gradients[5].values())


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_gathered_counts_are_those_of_the_whole_batch_on_every_rank(split: tuple[int, ...], gangs: dict[int, list[RankResult]]) -> None:
    labels = labels_for("ignore")
    network = without_deep_supervision(labels)
    images, targets = _global_batch("ignore", sum(split), 0)
    with torch.no_grad():
        expected = nnunet_counts(network(images), targets[0], labels)
    for _, counts in gangs[len(split)]:
        gathered, sums = counts[split]
        assert gathered.tolist() == expected.tolist()
        assert sums.tolist() == [sum(split), 0.25 * len(split)]
