"""Seconds per epoch beside nnU-Net's own trainer: same data, plan, thread and loader processes, in turn in one process tree.

    python -m benchmarks.epoch [--epochs 30] [--iterations 50] [--val-iterations 10] [--json FILE]

Each side trains one epoch while the other's loader processes are suspended. Ours is the real loop with the real state commits; the
time to finish writing a commit is counted although training would not wait for it. nnU-Net is its trainer's own epoch, whole.
A first round of epochs on both sides is thrown away.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.update({"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "nnUNet_n_proc_DA": "1", "nnUNet_compile": "f"})

import psutil
import torch

from benchmarks.rows import Row, pairwise, quartiles, store
from benchmarks.side_processes import children, resume, suspend, validate_by_nnunet
from tests.integration.cluster import local_ray
from tests.toy import Toy, nnunet_environment, toy_dataset, toy_spec
from trainers.contract.fencing import acquire_token
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import LoaderSpec, Schedule, WorkerSpec
from trainers.data.batches import Batch, BatchSource, Preparation, SplitName
from trainers.network.learner import Learner
from trainers.storage.files import write_atomic
from trainers.training.assemble import assemble, model_config, progress_from, state_writer, warm_up
from trainers.training.loop import train
from trainers.training.mid_epoch import MidEpochSaver
from trainers.training.state import StateWriter
from trainers.training.world import current_world

WARM_UP_EPOCHS = 2
PARTS = ("step", "wait for data", "hand-over", "validation", "saving", "plotting", "rest")
BARE = "bare"
"""Ours: forward, loss, backward and optimizer step on ready tensors, and the forward and loss of validation patches."""


class Stopwatch:
    """Seconds per part of the epoch that is running, and the finished epochs."""

    def __init__(self) -> None:
        self.now: dict[str, float] = defaultdict(float)
        self.epochs: list[dict[str, float]] = []

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its duration added to `part`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.now[part] += time.perf_counter() - started

        return call

    def close(self, total_s: float) -> None:
        """End the epoch; what no part accounts for is the rest."""
        parts = {part: self.now[part] for part in PARTS[:-1]}
        self.epochs.append({**parts, "rest": total_s - sum(parts.values()), "total": total_s, BARE: self.now[BARE]})
        self.now.clear()


class NnunetSide:
    """nnU-Net's own trainer, one epoch at a time."""

    def __init__(self, toy: Toy, schedule: Schedule) -> None:
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        self.watch = Stopwatch()
        plans = json.loads((toy.preprocessed / "nnUNetPlans.json").read_text()) | {"continue_training": False}
        dataset_json = json.loads((toy.preprocessed / "dataset.json").read_text())
        with nnunet_environment(toy.base), contextlib.redirect_stdout(io.StringIO()):
            self.trainer = nnUNetTrainer(plans, "toy_3d", 0, dataset_json, torch.device("cpu"))
            self.trainer.num_epochs = schedule.epochs
            self.trainer.num_iterations_per_epoch = schedule.train_iterations
            self.trainer.num_val_iterations_per_epoch = schedule.val_iterations
            before = set(children())
            self.trainer.on_train_start()
            self.loaders = sorted(set(children()) - before)
        self._instrument()

    def _instrument(self) -> None:
        trainer, timed = self.trainer, self.watch.timed
        trainer.train_step = timed("step", trainer.train_step)
        trainer.save_checkpoint = timed("saving", trainer.save_checkpoint)
        trainer.logger.plot_progress_png = timed("plotting", trainer.logger.plot_progress_png)

    def epoch(self) -> None:
        """The body of nnUNetTrainer.run_training's loop."""
        trainer, started = self.trainer, time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.on_epoch_start()
            trainer.on_train_epoch_start()
            following = self.watch.timed("wait for data", lambda: next(trainer.dataloader_train))
            trainer.on_train_epoch_end([trainer.train_step(following()) for _ in range(trainer.num_iterations_per_epoch)])
            self.watch.timed("validation", validate_by_nnunet)(trainer)
            trainer.on_epoch_end()
        self.watch.close(time.perf_counter() - started)


class InTurn:
    """A BatchSource around ours that lets nnU-Net train an epoch before each of ours, with the other side's loaders suspended."""

    def __init__(self, inner: BatchSource, loaders: list[int], writer: StateWriter, watch: Stopwatch, peer: NnunetSide) -> None:
        self._inner, self._loaders, self._writer, self.watch, self._peer = inner, loaders, writer, watch, peer
        self._started: float | None = None
        self._waited = 0.0

    @property
    def wait_s(self) -> float:
        return self._inner.wait_s

    @property
    def preparation(self) -> Preparation:
        return self._inner.preparation

    @property
    def loaders(self) -> int:
        return self._inner.loaders

    def batches(self, split: SplitName, epoch: int, first_iteration: int = 0) -> Iterator[Batch]:
        if split == "train":
            self.close_epoch()
            suspend(self._loaders)
            resume(self._peer.loaders)
            self._peer.epoch()
            suspend(self._peer.loaders)
            resume(self._loaders)
            self._started, self._waited = time.perf_counter(), self.wait_s
            return self._inner.batches(split, epoch)
        self.watch.now["wait for data"] = self.wait_s - self._waited
        return self._validation(split, epoch)

    def _validation(self, split: SplitName, epoch: int) -> Iterator[Batch]:
        started = time.perf_counter()
        yield from self._inner.batches(split, epoch)
        self.watch.now["validation"] += time.perf_counter() - started

    def close_epoch(self) -> None:
        """End our epoch with its commit on disk."""
        if self._started is not None:
            self.watch.timed("saving", self._writer.drain)()
            self.watch.close(time.perf_counter() - self._started)


def run_both(toy: Toy, schedule: Schedule) -> tuple[Stopwatch, Stopwatch]:
    """Our epochs and nnU-Net's, in turn."""
    from orchestrator.training.loader_pool import LoaderPool

    spec = toy_spec(
        toy,
        schedule=schedule,
        workers=WorkerSpec(count=1, gpus=0, cpus=2),
        loader=LoaderSpec(actors=1, prefetch=6),
        model_folder=toy.base / "ours" / "model",
    )
    folder = RunFolder(spec.run_folder)
    write_atomic(folder.spec_file, spec.model_dump_json().encode())
    torch.set_num_threads(1)
    world, plan, fencing_token = current_world(0), model_config(spec), acquire_token(folder, "benchmark")
    learner = assemble(spec, plan, world, fencing_token)
    reached, writer = progress_from(None, schedule), state_writer(spec, folder, plan, fencing_token, None)
    warm_up(learner, plan, world)
    ours = Stopwatch()
    instrument(learner, writer, ours)
    peer = NnunetSide(toy, schedule)
    with LoaderPool(spec, folder, range(plan.global_batch), 0) as pool:
        source = InTurn(pool, loader_pids(), writer, ours, peer)
        train(spec, folder, world, learner, source, MidEpochSaver(spec, folder, world, learner, writer), reached)
        source.close_epoch()
    resume(peer.loaders)
    for loader in (peer.trainer.dataloader_train, peer.trainer.dataloader_val):
        loader._finish()
    return ours, peer.watch


def instrument(learner: Learner, writer: StateWriter, watch: Stopwatch) -> None:
    """Time the parts of our epoch; the hand-over is inside steps and evaluations and taken out of them."""

    def without_hand_over(function: Callable[[Batch], Any], part: str | None) -> Callable[[Batch], Any]:
        def call(batch: Batch) -> Any:
            before, started = watch.now["hand-over"], time.perf_counter()
            result = function(batch)
            spent = time.perf_counter() - started - (watch.now["hand-over"] - before)
            watch.now[BARE] += spent
            if part is not None:
                watch.now[part] += spent
            else:  # all of the validation is a part of its own
                watch.now["hand-over"] = before
            return result

        return call

    learner.on_device = watch.timed("hand-over", learner.on_device)  # type: ignore[assignment]
    learner.step = without_hand_over(learner.step, "step")  # type: ignore[method-assign,assignment]
    learner.evaluate = without_hand_over(learner.evaluate, None)  # type: ignore[method-assign,assignment]
    writer.commit = watch.timed("saving", writer.commit)  # type: ignore[method-assign]


def loader_pids() -> list[int]:
    """Our loader actors, once they have taken their names."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = [p.pid for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::Loader")]
        if found:
            return found
        time.sleep(0.1)
    raise RuntimeError("no loader actor started within 60 s")


def report(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, Any]:
    """Medians per part; ratios of totals, pair by pair, with quartiles, and with nnU-Net's plotting taken out; ours beside the steps."""
    print(f"{'part':<16}{'nnfleet s':>12}{'nnU-Net s':>12}")
    for part in (*PARTS, "total"):
        print(f"{part:<16}{statistics.median(e[part] for e in ours):>12.3f}{statistics.median(e[part] for e in theirs):>12.3f}")
    pairs = list(zip(ours, theirs, strict=True))
    whole, unplotted = [a["total"] / b["total"] for a, b in pairs], [a["total"] / (b["total"] - b["plotting"]) for a, b in pairs]
    steps = [a["step"] / b["step"] for a, b in pairs]
    outside = [e["total"] - e[BARE] for e in ours]
    rows = {
        "epoch": (whole, "0.60"),
        "epoch, nnU-Net's plotting taken out": (unplotted, "0.90"),
        "training steps alone": (steps, ""),
        "beside the bare steps, share of 30 s": ([seconds / 30 for seconds in outside], "0.03"),
    }
    print(f"\n{'nnfleet / nnU-Net, ' + str(len(pairs)) + ' pairs':<40}{'median':>8}{'quartiles':>16}{'target':>8}")
    found = {name: quartiles(values) for name, (values, _) in rows.items()}
    for name, (low, median, high) in found.items():
        print(f"{name:<40}{median:>8.3f}{low:>8.3f}{high:>8.3f}{rows[name][1]:>8}")
    return {"ratios": found, "outside_s": statistics.median(outside), "ours": ours, "nnunet": theirs}


def table_rows(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> list[Row]:
    """Its rows in the table of all benchmarks."""
    totals, others = [epoch["total"] for epoch in ours], [epoch["total"] for epoch in theirs]
    unplotted = [epoch["total"] - epoch["plotting"] for epoch in theirs]
    outside = [epoch["total"] - epoch[BARE] for epoch in ours]
    return [
        pairwise("epoch, tiny plan, s", totals, others),
        pairwise("the same, nnU-Net's plotting taken out, s", totals, unplotted),
        pairwise("its training steps alone, s", [epoch["step"] for epoch in ours], [epoch["step"] for epoch in theirs]),
        Row("beside the bare steps of an epoch, s; ratio: to 30 s", statistics.median(outside), None, quartiles([s / 30 for s in outside])),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--val-iterations", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    schedule = Schedule(epochs=options.epochs + WARM_UP_EPOCHS, train_iterations=options.iterations, val_iterations=options.val_iterations)
    with tempfile.TemporaryDirectory() as base, local_ray(num_cpus=2):
        ours, theirs = run_both(toy_dataset(Path(base)), schedule)
    result = report(ours.epochs[WARM_UP_EPOCHS:], theirs.epochs[WARM_UP_EPOCHS:])
    print(f"\nagain: python -m benchmarks.epoch --epochs {options.epochs} --iterations {options.iterations} (2 cores, {torch.__version__})")
    store(options.json, table_rows(result["ours"], result["nnunet"]), result)


if __name__ == "__main__":
    main()
