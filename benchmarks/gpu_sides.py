"""What `benchmarks.gpu` measures on each worker: our epochs and nnU-Net's in turn, with batches that are prepared or ready."""

import contextlib
import io
import itertools
import json
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field

import torch

from benchmarks.side_processes import children, resume, suspend, validate_by_nnunet
from tests.own_batches import OwnBatches
from tests.toy import PLANS, Toy, nnunet_environment
from trainers.contract.fencing import acquire_token
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.data.batches import Batch, BatchSource, Preparation, SplitName
from trainers.storage.files import write_atomic
from trainers.training.rank import train_rank
from trainers.training.world import World

PHASES = ("prepared", "ready")
"""Batches that loader processes prepare; the same ready ones again and again."""
AHEAD = 3
"""Batches per loader process that are prepared or waiting."""
SAMPLE_S = 0.1
WINDOW_S = 1.0
"""Over which the driver averages: until then a sample may hold what was before."""


@dataclass
class Epochs:
    """Seconds of each epoch of one side, and the part of it in which the GPU was busy."""

    seconds: list[float] = field(default_factory=list)
    busy: list[float | None] = field(default_factory=list)


class Busy:
    """The part of the time in which a kernel ran on a GPU, as its driver reports it; of a CPU nothing is known."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._samples, self._ends = device, list[tuple[float, float]](), threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "Busy":
        if self._device.type == "cuda":
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()

    def _sample(self) -> None:
        while not self._ends.wait(SAMPLE_S):
            self._samples.append((time.perf_counter(), torch.cuda.utilization(self._device) / 100))

    def since(self, began_s: float) -> float | None:
        """Its mean since a moment of `time.perf_counter`, without the driver's first window; None where nothing was sampled."""
        values = [share for at, share in self._samples if at >= began_s + WINDOW_S]
        return sum(values) / len(values) if values else None


class Loaded:
    """A BatchSource of loader processes, each with one thread, as Ray's loader actors are in a run: they prepare ahead over the ends of
    splits and epochs."""

    def __init__(self, spec: RunSpec, positions: Sequence[int], loaders: int) -> None:
        self.wait_s, self.preparation, self.loaders = 0.0, Preparation(), loaders
        self._pool = ProcessPoolExecutor(loaders, multiprocessing.get_context("spawn"), _open_spec, (spec.model_dump_json(),))
        self._counts: dict[SplitName, int] = {"train": spec.schedule.train_iterations, "val": spec.schedule.val_iterations}
        order = ((split, epoch, number) for epoch in itertools.count() for split, count in self._counts.items() for number in range(count))
        self._asked = (self._pool.submit(_batch, *place, list(positions)) for place in order)
        self._ahead: deque[Future[Batch]] = deque(itertools.islice(self._asked, AHEAD * loaders))

    def is_ready(self) -> None:
        """Returns once the first batch is prepared."""
        self._ahead[0].result()

    def batches(self, split: SplitName, epoch: int, first_iteration: int = 0) -> Iterator[Batch]:
        """See BatchSource; asked for in the order of a training that begins with epoch 0."""
        for _ in range(first_iteration, self._counts[split]):
            began = time.perf_counter()
            batch = self._ahead.popleft().result()
            self.wait_s += time.perf_counter() - began
            self.preparation += batch.preparation
            self._ahead.extend(itertools.islice(self._asked, 1))
            yield batch

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


_opened: list[OwnBatches] = []
"""Of a loader process."""


def _open_spec(spec: str) -> None:
    torch.set_num_threads(1)
    _opened.append(OwnBatches(RunSpec.model_validate_json(spec), []))


def _batch(split: SplitName, epoch: int, iteration: int, positions: list[int]) -> Batch:
    return _opened[0].batch(split, epoch, iteration, positions)


class Ready:
    """A BatchSource that gives the first batch of each split again and again: nothing is loaded."""

    def __init__(self, inner: BatchSource, spec: RunSpec) -> None:
        self.wait_s, self.preparation, self.loaders = 0.0, Preparation(), 1
        schedule = spec.schedule
        self._counts = {"train": schedule.train_iterations, "val": schedule.val_iterations}
        self._batches = {split: next(iter(inner.batches(split, 0))) for split in ("train", "val")}

    def batches(self, split: SplitName, epoch: int, first_iteration: int = 0) -> Iterator[Batch]:
        """See BatchSource."""
        yield from itertools.repeat(self._batches[split], self._counts[split] - first_iteration)


class Peer:
    """nnU-Net's own trainer, one epoch at a time, without its plot. For validation it has half as many loader processes on top."""

    def __init__(self, toy: Toy, spec: RunSpec, device: torch.device, loaders: int) -> None:
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        plans = json.loads((toy.preprocessed / f"{PLANS}.json").read_text()) | {"continue_training": False}
        dataset_json = json.loads((toy.preprocessed / "dataset.json").read_text())
        before = set(children())
        with nnunet_environment(toy.base), contextlib.redirect_stdout(io.StringIO()):
            os.environ.update({"nnUNet_n_proc_DA": str(loaders), "nnUNet_compile": "t" if spec.compile else "f"})
            self.trainer = nnUNetTrainer(plans, spec.configuration, 0, dataset_json, device)
            self.trainer.num_epochs = len(PHASES) * spec.schedule.epochs
            self.trainer.num_iterations_per_epoch = spec.schedule.train_iterations
            self.trainer.num_val_iterations_per_epoch = spec.schedule.val_iterations
            self.trainer.on_train_start()
            self.trainer.logger.plot_progress_png = lambda *_: None  # which a short epoch would pay for as a long one does
        self.loaders = sorted(set(children()) - before)
        self._sources = [self.trainer.dataloader_train, self.trainer.dataloader_val]

    def without_loading(self) -> None:
        """From now on the next batch of each split again and again."""
        trainer = self.trainer
        resume(self.loaders)
        trainer.dataloader_train, trainer.dataloader_val = (itertools.repeat(next(source)) for source in self._sources)
        suspend(self.loaders)

    def epoch(self) -> None:
        """The body of nnUNetTrainer.run_training's loop."""
        trainer = self.trainer
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.on_epoch_start()
            trainer.on_train_epoch_start()
            count = trainer.num_iterations_per_epoch
            trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train)) for _ in range(count)])
            validate_by_nnunet(trainer)
            trainer.on_epoch_end()

    def close(self) -> None:
        """End its loader processes."""
        resume(self.loaders)
        for source in self._sources:
            if hasattr(source, "_finish"):
                source._finish()


class InTurn:
    """A BatchSource around ours that lets nnU-Net train an epoch before each of ours; the loaders of the side that waits are suspended."""

    def __init__(self, inner: BatchSource, own_loaders: list[int], peer: Peer | None, device: torch.device, busy: Busy) -> None:
        self._inner, self._own, self._peer, self._device, self._busy = inner, own_loaders, peer, device, busy
        self.ours, self.theirs = Epochs(), Epochs()
        self._began: float | None = None

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
        """See BatchSource."""
        if split == "train":
            self.close_epoch()
            if self._peer is not None:
                self._peers_epoch(self._peer)
            self._began = self._now()
        return self._inner.batches(split, epoch, first_iteration)

    def _peers_epoch(self, peer: Peer) -> None:
        suspend(self._own)
        resume(peer.loaders)
        began = self._now()
        peer.epoch()
        self._note(self.theirs, began)
        suspend(peer.loaders)
        resume(self._own)

    def close_epoch(self) -> None:
        """Our epoch has ended."""
        if self._began is not None:
            self._note(self.ours, self._began)
            self._began = None

    def _note(self, epochs: Epochs, began: float) -> None:
        epochs.seconds.append(self._now() - began)
        epochs.busy.append(self._busy.since(began))

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def measured(toy: Toy, spec: RunSpec, world: World, loaders: int, *, has_peer: bool) -> dict[str, tuple[Epochs, Epochs]]:
    """Our epochs and nnU-Net's, as one worker sees them: with batches that loader processes prepare, and with ready ones."""
    peer = Peer(toy, spec, world.device, loaders) if has_peer else None
    found = {}
    try:
        for what in PHASES:
            if peer is not None and what == "ready":
                peer.without_loading()
            found[what] = _phase(spec.model_copy(update={"model_folder": spec.model_folder / what}), world, loaders, peer, what)
    finally:
        if peer is not None:
            peer.close()
    return found


def _phase(spec: RunSpec, world: World, loaders: int, peer: Peer | None, what: str) -> tuple[Epochs, Epochs]:
    folder, turns = RunFolder(spec.run_folder), list[InTurn]()
    if world.is_main:
        write_atomic(folder.spec_file, spec.model_dump_json().encode())
    token = world.from_main(acquire_token(folder, "benchmark") if world.is_main else 0)

    @contextlib.contextmanager
    def opened(positions: list[int], *_: int) -> Iterator[BatchSource]:
        before = set(children())
        own: list[int] = []
        loaded = Loaded(spec, positions, loaders) if loaders else None
        try:
            inner: BatchSource = loaded or OwnBatches(spec, positions)
            source = Ready(OwnBatches(spec, positions), spec) if what == "ready" else inner
            if loaded is not None:
                loaded.is_ready()  # its processes are there
            own = sorted(set(children()) - before)
            with Busy(world.device) as busy:
                turns.append(InTurn(source, own, peer, world.device, busy))
                yield turns[0]
                turns[0].close_epoch()  # before the loaders end
        finally:
            resume(own)
            if loaded is not None:
                loaded.close()

    train_rank(spec, folder, world, token, opened)
    return turns[0].ours, turns[0].theirs
