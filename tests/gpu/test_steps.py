"""Steps on a GPU beside the same ones on the CPU: precision, overflow, compilation, hand-over, and that no step waits for the GPU."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import Toys
from tests.gpu.on_device import batches_of, learner_on, spec_for
from trainers.data.batches import Batch
from trainers.network.hand_over import HandOver
from trainers.network.learner import Learner
from trainers.training.pseudo_dice import batch_counts, zero_counts

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]  # of kernels that have no deterministic form
CPU = torch.device("cpu")


def losses(learner: Learner, batches: list[Batch]) -> list[float]:
    """Loss of each step."""
    return [float(learner.step(batch)) for batch in batches]


def weights(learner: Learner) -> list[torch.Tensor]:
    """Of the whole network, on the CPU."""
    return [parameter.detach().cpu() for parameter in learner.plain.parameters()]


@contextmanager
def nothing_waits() -> Iterator[None]:
    """An operation that waits for the GPU raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", ["labels", "regions", "ignore"])
def test_steps_in_full_precision_are_those_of_the_cpu(
    kind: str, toys: Toys, tmp_path: Path, gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Learner, "autocast", lambda self: torch.autocast(self.device.type, enabled=False))
    spec = spec_for(toys(kind), tmp_path, gpu)
    batches = batches_of(spec, 4)
    ours, theirs = learner_on(spec, gpu), learner_on(spec, CPU)
    assert losses(ours, batches) == pytest.approx(losses(theirs, batches), rel=1e-3)
    for on_gpu, on_cpu in zip(weights(ours), weights(theirs), strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("deterministic", [True, False])
def test_mixed_precision_gives_nearly_the_losses_of_the_cpu(deterministic: bool, toys: Toys, tmp_path: Path, gpu: torch.device) -> None:
    spec = spec_for(toys("labels"), tmp_path, gpu, deterministic=deterministic)
    batches = batches_of(spec, 4)
    ours = learner_on(spec, gpu)
    assert ours.scaler.is_enabled()
    assert losses(ours, batches) == pytest.approx(losses(learner_on(spec, CPU), batches), abs=0.05)


def test_an_overflow_in_the_very_first_step_changes_nothing(toys: Toys, tmp_path: Path, gpu: torch.device) -> None:
    spec = spec_for(toys("labels"), tmp_path, gpu, deterministic=False)
    first, second = batches_of(spec, 2)
    learner = learner_on(spec, gpu)
    before, scale = weights(learner), learner.scaler.get_scale()
    learner.step(Batch(np.full_like(first.images, np.inf), first.targets, first.case_ids))
    assert all(torch.equal(a, b) for a, b in zip(before, weights(learner), strict=True))
    assert learner.scaler.get_scale() == scale / 2
    momenta = [state["momentum_buffer"] for state in learner.optimizer.state.values()]
    assert not any(bool(momentum.any()) for momentum in momenta)
    learner.step(second)
    assert learner.is_finite()


def test_no_step_and_no_count_waits_for_the_gpu(toys: Toys, tmp_path: Path, gpu: torch.device) -> None:
    spec = spec_for(toys("labels"), tmp_path, gpu, deterministic=False)
    learner, batches = learner_on(spec, gpu), batches_of(spec, 3)
    learner.step(batches[0])  # what is done once: kernels chosen, memory pinned
    loss_sum, counts_3C = torch.zeros((), dtype=torch.float64, device=gpu), zero_counts(learner.labels, gpu)
    with nothing_waits():
        for batch in batches:
            loss_sum += learner.step(batch)
        with torch.no_grad():
            for batch in batches:
                loss, logits_BCZYX, target = learner.evaluate(batch)
                loss_sum += loss
                counts_3C += batch_counts(logits_BCZYX, target, learner.labels)
    assert np.isfinite(float(loss_sum))
    assert int(counts_3C.sum()) > 0


def test_counts_are_those_of_the_cpu(gpu: torch.device, toys: Toys, tmp_path: Path) -> None:
    labels = learner_on(spec_for(toys("labels"), tmp_path, CPU), CPU).labels
    torch.manual_seed(0)
    logits_BCZYX, target = torch.randn(2, labels.num_heads, 24, 24, 24), torch.randint(0, 3, (2, 1, 24, 24, 24), dtype=torch.int16)
    on_gpu = batch_counts(logits_BCZYX.to(gpu), target.to(gpu), labels)
    assert torch.equal(on_gpu.cpu(), batch_counts(logits_BCZYX, target, labels))


def test_batches_arrive_whole_while_the_gpu_is_busy(gpu: torch.device) -> None:
    hand_over, busy = HandOver(gpu), torch.randn(2048, 2048, device=gpu)
    sums, draw = [], np.random.default_rng(0)
    batches = [
        Batch(draw.normal(size=(2, 1, 64, 64, 64)).astype(np.float32), [draw.integers(0, 9, (2, 1, 64, 64, 64))], ()) for _ in range(8)
    ]
    for batch in batches * 3:
        images_BCZYX, targets = hand_over(batch)
        busy = torch.tanh(busy @ busy)
        sums.append((images_BCZYX.double().sum(), targets[0].sum()))
    for (image_sum, target_sum), batch in zip(sums, batches * 3, strict=True):
        assert float(image_sum) == pytest.approx(batch.images.sum(dtype=np.float64), abs=1e-3)
        assert int(target_sum) == int(batch.targets[0].sum())


def test_a_compiled_network_takes_nearly_the_same_steps(toys: Toys, tmp_path: Path, gpu: torch.device) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("torch.compile needs a C compiler")
    spec = spec_for(toys("labels"), tmp_path, gpu, compile=True, deterministic=False)
    batches = batches_of(spec, 4)
    compiled, plain = learner_on(spec, gpu), learner_on(spec.model_copy(update={"compile": False}), gpu)
    assert losses(compiled, batches) == pytest.approx(losses(plain, batches), abs=0.05)
    assert {name.split(".")[0] for name in compiled.tensors()["network_weights"]} == {"encoder", "decoder"}
