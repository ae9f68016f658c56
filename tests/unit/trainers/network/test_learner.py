"""The step of one rank: learning rate, clipping, the scaler's branch, warm-up, and which device a worker takes."""

import copy
import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import Toys
from tests.toy import toy_spec
from trainers.contract.plans import Labels
from trainers.contract.run_spec import RunSpec, Schedule
from trainers.data.batches import Batch
from trainers.errors import DivergedError
from trainers.network.checkpoint import copied_to_cpu
from trainers.network.hand_over import HandOver
from trainers.network.learner import Learner, learning_rate
from trainers.network.optimizer import sgd
from trainers.training.asked import Asked
from trainers.training.assemble import ModelConfig, assemble, model_config, warm_up
from trainers.training.loop import EpochTotals, check_finite
from trainers.training.state import TrainingProgress
from trainers.training.world import World, device_for

CPU = torch.device("cpu")
ALONE = World(global_rank=0, local_rank=0, world_size=1, device=CPU)
SIZE = (24, 24, 24)


@pytest.fixture
def made(toys: Toys) -> tuple[RunSpec, ModelConfig]:
    spec = toy_spec(toys("labels"))
    return spec, model_config(spec)


def batch(seed: int, labels: Labels) -> Batch:
    draw = np.random.default_rng(seed)
    images = draw.normal(size=(2, 1, *SIZE)).astype(np.float32)
    targets = [draw.integers(0, labels.num_heads, (2, 1, *(s // 2**i for s in SIZE))).astype(np.int16) for i in range(2)]
    return Batch(images=images, targets=targets, case_ids=("a", "b"))


def learner_of(made: tuple[RunSpec, ModelConfig]) -> Learner:
    spec, plan = made
    return assemble(spec, plan, ALONE, fencing_token=1)


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.tensors()["network_weights"].items()}


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_the_learning_rate_is_nnunets_polynomial() -> None:
    from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

    schedule = Schedule(epochs=7)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=schedule.initial_lr)
    theirs = PolyLRScheduler(optimizer, schedule.initial_lr, schedule.epochs)
    for epoch in range(7):
        theirs.step(epoch)
        assert learning_rate(schedule, epoch) == optimizer.param_groups[0]["lr"]


def test_the_same_seed_starts_from_the_same_weights_and_another_does_not(made: tuple[RunSpec, ModelConfig]) -> None:
    spec, plan = made
    first, second = weights(learner_of(made)), weights(learner_of(made))
    assert largest_difference(first, second) == 0
    other = weights(assemble(spec.model_copy(update={"seed": 1}), plan, ALONE, fencing_token=1))
    assert largest_difference(first, other) > 0


def test_warm_up_leaves_no_trace(made: tuple[RunSpec, ModelConfig]) -> None:
    warmed, cold = learner_of(made), learner_of(made)
    warm_up(warmed, made[1], ALONE)
    assert largest_difference(weights(warmed), weights(cold)) == 0
    assert warmed.optimizer.state_dict()["state"] == {}
    for learner in (warmed, cold):
        learner.start_epoch(0)
        learner.step(batch(0, learner.labels))
    assert largest_difference(weights(warmed), weights(cold)) == 0


def test_batch_statistics_and_dropout_leave_no_trace_and_draw_the_same_after_a_resume(made: tuple[RunSpec, ModelConfig]) -> None:
    spec, plan = made
    architecture = copy.deepcopy(plan.configuration["architecture"])
    architecture["arch_kwargs"] |= {
        "norm_op": "torch.nn.modules.batchnorm.BatchNorm3d",
        "dropout_op": "torch.nn.modules.dropout.Dropout3d",
        "dropout_op_kwargs": {"p": 0.2},
    }
    architecture["_kw_requires_import"] = sorted({*architecture["_kw_requires_import"], "norm_op", "dropout_op"})
    changed = dataclasses.replace(plan, configuration={**plan.configuration, "architecture": architecture})
    unbroken, resumed = assemble(spec, changed, ALONE, fencing_token=1), assemble(spec, changed, ALONE, fencing_token=2)
    warm_up(unbroken, changed, ALONE)
    assert all(int(count) == 0 for name, count in weights(unbroken).items() if name.endswith("num_batches_tracked"))
    unbroken.start_epoch(0)
    unbroken.step(batch(0, unbroken.labels))
    resumed.load(copied_to_cpu(unbroken.tensors()))
    warm_up(resumed, changed, ALONE)
    for learner in (unbroken, resumed):
        learner.start_epoch(1)
        learner.start_iteration(1, 0)
        learner.step(batch(1, learner.labels))
    assert largest_difference(weights(unbroken), weights(resumed)) == 0


def test_running_statistics_that_are_no_numbers_are_not_saved_and_part_no_ranks(made: tuple[RunSpec, ModelConfig]) -> None:
    """Each rank has its own, so no rank may raise by them where the others go on."""
    learner = learner_of(made)
    norm = torch.nn.BatchNorm3d(2)
    learner.plain = torch.nn.Sequential(learner.plain, norm)
    assert learner.is_state_finite()
    assert norm.running_var is not None
    norm.running_var[0] = torch.inf
    assert not learner.is_state_finite()
    totals = EpochTotals(train_loss=0.5, val_loss=math.nan, pseudo_dice=(0.5,), longest_wait_s=0.0, asked=Asked())
    check_finite(totals, learner, TrainingProgress())
    with torch.no_grad():
        norm.weight[0] = torch.nan
    with pytest.raises(DivergedError, match="weights hold NaN"):
        check_finite(totals, learner, TrainingProgress())


def test_the_head_without_weight_never_moves_and_keeps_its_place_in_the_optimizer(made: tuple[RunSpec, ModelConfig]) -> None:
    learner = learner_of(made)
    frozen = [name for name, parameter in learner.plain.named_parameters() if not parameter.requires_grad]
    before = weights(learner)
    for seed in range(3):
        learner.step(batch(seed, learner.labels))
    after = weights(learner)
    assert frozen
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert len(learner.optimizer.param_groups[0]["params"]) == len(list(learner.plain.parameters()))


def test_the_scaler_changes_no_step_and_is_restored_with_the_state(made: tuple[RunSpec, ModelConfig]) -> None:
    """The branch that GPUs take, with a real scaler on the CPU: scaling by a power of two is exact, so are the steps."""
    scaled, plain = learner_of(made), learner_of(made)
    scaled.scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=2.0**10)
    for seed in range(3):
        scaled.step(batch(seed, scaled.labels))
        plain.step(batch(seed, plain.labels))
    assert largest_difference(weights(scaled), weights(plain)) < 1e-6
    saved = scaled.tensors()
    assert saved["grad_scaler_state"]["scale"] == 2.0**10
    restored = learner_of(made)
    restored.scaler = torch.amp.GradScaler("cpu", enabled=True)
    restored.load(saved)
    assert restored.scaler.get_scale() == 2.0**10
    assert plain.tensors()["grad_scaler_state"] is None


def test_a_step_with_an_overflow_is_skipped_by_the_scaler(made: tuple[RunSpec, ModelConfig]) -> None:
    learner = learner_of(made)
    learner.scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=2.0**10)
    before = weights(learner)
    broken = batch(0, learner.labels)
    broken.images[:] = np.inf
    learner.step(broken)
    assert largest_difference(before, weights(learner)) == 0
    assert learner.scaler.get_scale() == 2.0**9


class NothingIsRead(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses to read a tensor's value, for which a step on a GPU would have to wait until all kernels before are done."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a training step reads a value from the device"
        return func(*args, **(kwargs or {}))


def as_on_gpus(learner: Learner) -> Learner:
    """The scaler and the fused optimizer that GPUs have, on the CPU."""
    learner.scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=2.0**10)
    learner.optimizer = sgd(learner.plain, learner.schedule, fused=True)
    return learner


def test_nothing_in_a_step_waits_for_the_device(made: tuple[RunSpec, ModelConfig]) -> None:
    learner = as_on_gpus(learner_of(made))
    with NothingIsRead():  # type: ignore[no-untyped-call]
        learner.step(batch(0, learner.labels))
    learner.optimizer = sgd(learner.plain, learner.schedule)
    with NothingIsRead(), pytest.raises(AssertionError, match="reads a value"):  # type: ignore[no-untyped-call]
        learner.step(batch(1, learner.labels))


def test_an_overflow_in_the_very_first_step_spoils_no_momentum(made: tuple[RunSpec, ModelConfig]) -> None:
    fused, plain = as_on_gpus(learner_of(made)), learner_of(made)
    broken = batch(0, fused.labels)
    broken.images[:] = np.inf
    before = weights(fused)
    fused.step(broken)
    assert largest_difference(before, weights(fused)) == 0
    for seed in range(3):
        fused.step(batch(seed, fused.labels))
        plain.step(batch(seed, plain.labels))
    assert largest_difference(weights(fused), weights(plain)) < 1e-6


def test_a_state_loads_whichever_kernels_wrote_it(made: tuple[RunSpec, ModelConfig]) -> None:
    fused, plain = as_on_gpus(learner_of(made)), learner_of(made)
    for learner in (fused, plain):
        learner.step(batch(0, learner.labels))
    of_fused, of_plain = (copied_to_cpu(learner.tensors()) for learner in (fused, plain))
    assert of_fused["optimizer_state"]["param_groups"] == of_plain["optimizer_state"]["param_groups"]
    assert of_fused["optimizer_state"]["state"].keys() == of_plain["optimizer_state"]["state"].keys()
    fused.load(of_plain)
    plain.load(of_fused)
    assert (fused.optimizer.param_groups[0]["fused"], plain.optimizer.param_groups[0]["fused"]) == (True, None)
    for learner in (fused, plain):
        learner.step(batch(1, learner.labels))
    assert largest_difference(weights(fused), weights(plain)) < 1e-6
    fused.load({**of_plain, "optimizer_state": {**of_plain["optimizer_state"], "state": {}}})  # of a training without a step
    assert all("momentum_buffer" in fused.optimizer.state[p] for p in fused.plain.parameters() if p.requires_grad)


def test_mixed_precision_gives_nearly_the_loss_of_full_precision(
    made: tuple[RunSpec, ModelConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autocast around network and loss, in the type that CPUs have for it."""
    learner = learner_of(made)
    with torch.no_grad():
        full = float(learner.evaluate(batch(0, learner.labels))[0])
        monkeypatch.setattr(Learner, "autocast", lambda self: torch.autocast("cpu", dtype=torch.bfloat16))
        mixed, logits_BCZYX, _ = learner.evaluate(batch(0, learner.labels))
    assert logits_BCZYX.dtype == torch.bfloat16
    assert float(mixed) == pytest.approx(full, abs=0.02)
    assert float(mixed) != full


@pytest.mark.parametrize(("local_rank", "expected"), [(0, "cuda:0"), (3, "cuda:3")])
def test_the_local_rank_picks_the_gpu(local_rank: int, expected: str) -> None:
    assert str(device_for(local_rank, gpus_per_worker=1, gpus_visible=4)) == expected


def test_no_gpu_is_taken_where_workers_have_none_and_a_missing_one_is_an_error() -> None:
    assert device_for(5, gpus_per_worker=0, gpus_visible=0) == CPU
    with pytest.raises(RuntimeError, match="local rank 2 needs GPU 2, but 2 GPUs are visible"):
        device_for(2, gpus_per_worker=1, gpus_visible=2)


def test_a_batch_from_read_only_memory_becomes_tensors_of_their_own(made: tuple[RunSpec, ModelConfig]) -> None:
    own = batch(0, made[1].labels)
    for array in (own.images, *own.targets):
        array.flags.writeable = False
    before = own.images.sum(), own.targets[1].sum()
    images, targets = HandOver(CPU)(own)
    images += 1
    targets[1] += 1
    assert (own.images.sum(), own.targets[1].sum()) == before
