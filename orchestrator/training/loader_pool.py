"""Batches prepared ahead by Ray actors that call the pure function of `trainers/data/samples.py`: nothing forks, nothing is left to chance.

Any actor may prepare any batch, so a batch goes to the actor with the least to do, and one that was lost with its actor is prepared
again, bit for bit, when Ray has restarted it. With `placement: local` actors take no CPU of Ray's accounting (`num_cpus=0`): the worker
that owns them has reserved their cores, and they stay on its node where they can. With `cluster` each takes one CPU of whatever node has
one free; Ray prefers nodes without GPUs for that, and starts those of a node that dies elsewhere.
"""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import ray
from ray._private import state  # no public call returns whether an actor has a place, short of asking the dashboard
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainers.contract.bottleneck import judged
from trainers.contract.plans import plans_of
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.contract.split_batch import rank_positions
from trainers.data.batches import Batch, Preparation, Request, SplitName, requests_from
from trainers.data.wire import PackedBatch, packed, unpacked
from trainers.errors import ConfigError, DataError, NnfleetError, StorageError
from trainers.storage.faults import retry_storage

if TYPE_CHECKING:
    from trainers.data.dataset import TrainingData

log = logging.getLogger(__name__)
SLOW_S = 60.0
PLACED_S = 20.0
"""How often it is asked, while a batch is waited for, whether its loader has found a free CPU on some node."""
SEEN_S = 30.0
"""How long a loader on another node than its worker's waits to see the run's folders there, while none has prepared a batch so."""
RESTARTS = 20
"""Deaths of one actor, and tries of one batch, after which the worker fails: a batch that always takes all memory shall not loop."""


class Loader:
    """One loader actor: opens the run's dataset once and prepares batches of fixed positions."""

    def __init__(self, run_folder: str, positions: Sequence[int], consumer_node: str = "") -> None:
        """`consumer_node`: Ray's id of the node whose worker takes the batches; empty: this one."""
        import torch

        import trainers.data.samples  # noqa: F401 # takes seconds, which pass while the worker builds its network

        torch.set_num_threads(1)
        self._is_remote = bool(consumer_node) and consumer_node != ray.get_runtime_context().get_node_id()
        self._is_unseen = self._is_remote
        self._run_folder = Path(run_folder)
        self._positions = list(positions)
        self.opened: tuple[RunSpec, TrainingData] | None = None
        """The run and its data; while None, the next batch opens them."""

    def make_to_send(self, split: SplitName, epoch: int, iteration: int, is_proven: bool = False) -> Batch | PackedBatch:
        """As `make`, packed where the worker is on another node."""
        batch = self.make(split, epoch, iteration, is_proven)
        return packed(batch) if self._is_remote else batch

    def make(self, split: SplitName, epoch: int, iteration: int, is_proven: bool = False) -> Batch:
        """The samples of this worker's positions in one global batch. A disk that is away is waited for.

        `is_proven`: batches have come from other nodes, so folders that are not on this one are an outage: it may have just started.
        """
        if self._is_unseen and not is_proven:
            self._look_elsewhere()
        return retry_storage(lambda: self._made(split, epoch, iteration), f"batch {iteration} of {split} in epoch {epoch}")

    def _look_elsewhere(self) -> None:
        """Open the run's dataset on a node that may never have seen it. Raises ConfigError, with the node's address and the path."""
        try:
            self.opened = retry_storage(self._open, "the first batch of a loader", SEEN_S)
        except (StorageError, DataError) as err:
            cause = err.__cause__ if isinstance(err.__cause__, StorageError) else err
            node = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call] # Ray leaves it untyped
            raise ConfigError(
                f"loader.placement: node {node} cannot prepare batches: {cause} Give each node with CPUs the "
                "shared folders by the same paths, or set loader.placement: local."
            ) from err
        self._is_unseen = False

    def _open(self) -> "tuple[RunSpec, TrainingData]":
        from trainers.data.dataset import open_dataset

        spec = RunFolder(self._run_folder).living_spec()
        return spec, open_dataset(spec)

    def _made(self, split: SplitName, epoch: int, iteration: int) -> Batch:
        from trainers.data.samples import make_batch

        if self.opened is None:  # here and not at the start, where an error in the data would look like the death of the actor
            self.opened = self._open()
        spec, data = self.opened
        wall_s, cpu_s, disk_s = time.perf_counter(), time.thread_time(), data.disk.seconds
        try:
            batch = make_batch(data, spec, split, epoch, iteration, self._positions)
        except StorageError:
            self.opened = None  # files that were open when the disk went away may stay unreadable when it is back
            raise
        took = Preparation(time.perf_counter() - wall_s, time.thread_time() - cpu_s, data.disk.seconds - disk_s)
        return replace(batch, preparation=took)


_prepared: dict[tuple[str, tuple[int, ...]], list[Any]] = {}
"""Actors that were started before their pool: by run folder and positions."""


def prepare(folder: RunFolder, global_rank: int, world_size: int) -> None:
    """Start the loader actors of a rank for the pool that it will open, so that they import their libraries while it imports its own.

    What is wrong with the run's files is left for the pool to meet.
    """
    with contextlib.suppress(NnfleetError, OSError):
        spec = folder.living_spec()
        if spec.own.trainer is not None:
            return  # its loop has loaders of its own
        batch = int(plans_of(spec).configuration(spec.configuration)["batch_size"])
        positions = rank_positions(batch, world_size, global_rank)
        is_local = spec.loader.placement == "local"
        _prepared[str(folder.root), tuple(positions)] = [start_loader(folder, positions, is_local) for _ in range(spec.loader.actors)]


def start_loader(folder: RunFolder, positions: Sequence[int], is_local: bool) -> Any:
    """A loader actor: on this worker's node if it can be, or where Ray finds a free CPU."""
    here = ray.get_runtime_context().get_node_id()
    if is_local:
        place: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=True)}
    else:
        place = {"num_cpus": 1, "scheduling_strategy": "DEFAULT"}  # Ray's: nodes without GPUs first, then those least in use
    actor = ray.remote(Loader).options(max_restarts=RESTARTS, max_task_retries=RESTARTS, **place)
    return actor.remote(str(folder.root), list(positions), here)


class LoaderPool:
    """A BatchSource backed by loader actors; to be used as a context manager inside a worker.

    `positions` are this worker's places in the global batch. Preparation starts at once with `first_iteration` of `first_epoch` and runs
    ahead by `loader.prefetch` batches for each actor, over the boundaries of epochs.
    """

    def __init__(self, spec: RunSpec, folder: RunFolder, positions: Sequence[int], first_epoch: int, first_iteration: int = 0) -> None:
        self.wait_s, self.preparation = 0.0, Preparation()
        self._iterations: dict[SplitName, int] = {"train": spec.schedule.train_iterations, "val": spec.schedule.val_iterations}
        self._upcoming = requests_from(first_epoch, first_iteration, spec.schedule.epochs, self._iterations)
        self._loader, self._folder, self._positions = spec.loader, folder, positions
        prepared = _prepared.pop((str(folder.root), tuple(positions)), [])
        self._actors = [*prepared, *(self._start() for _ in range(spec.loader.actors - len(prepared)))]
        self._is_proven = False  # a batch has come from another node
        self._makers: dict[Any, int] = {}  # of each batch that waits, the index of its actor
        self._waiting: deque[tuple[Request, Any]] = deque()
        self._fill()

    @property
    def loaders(self) -> int:
        """How many actors prepare batches now."""
        return len(self._actors)

    def __enter__(self) -> "LoaderPool":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the actors; batches under way are dropped."""
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        self._actors, self._waiting, self._makers = [], deque(), {}

    def batches(self, split: SplitName, epoch: int, first_iteration: int = 0) -> Iterator[Batch]:
        """See BatchSource; must be asked in the order of training."""
        began_s, waited_s, prepared = time.perf_counter(), self.wait_s, self.preparation
        for iteration in range(first_iteration, self._iterations[split]):
            request, ref = self._waiting.popleft()
            if request != (split, epoch, iteration):
                raise AssertionError(f"batches are prepared in training order: next is {request}, asked {(split, epoch, iteration)}")
            batch = self.arrived(request, ref)
            self.preparation += batch.preparation
            self._fill()
            yield batch
        if split == "train":
            self._grow(time.perf_counter() - began_s, self.wait_s - waited_s, self.preparation - prepared)

    def arrived(self, request: Request, ref: Any) -> Batch:
        """The batch of a request once it is there; raises what its loader raised."""
        started = time.perf_counter()
        try:
            while not ray.wait([ref], timeout=SLOW_S if self._loader.placement == "local" else PLACED_S)[0]:
                log.warning(
                    "waiting for batch %s since %.0f s: a loader is slow or being restarted", request, time.perf_counter() - started
                )
                ref = self._placed(request, ref)
            sent: Batch | PackedBatch = ray.get(ref)
            self._is_proven |= isinstance(sent, PackedBatch)
            batch = unpacked(sent) if isinstance(sent, PackedBatch) else sent
            self._makers.pop(ref, None)
        except RayTaskError as err:
            raise err.cause from err  # itself, not Ray's class of both: that cannot be pickled, and nobody would know what it was
        finally:
            self.wait_s += time.perf_counter() - started
        return batch

    def _placed(self, request: Request, ref: Any) -> Any:
        """`ref`, or, if no node has a free CPU for its loader, the same batch of a loader on this node that takes the place of that one."""
        index = self._makers.get(ref)
        if self._loader.placement == "local" or index is None or node_of(self._actors[index]):
            return ref
        log.warning("loader.placement: no node has a free CPU for a loader of this worker: it runs on this node, beside the steps")
        ray.kill(self._actors[index], no_restart=True)
        self._actors[index] = self._start(is_local=True)
        open_requests = [(request, ref), *self._waiting]
        anew = {old: self._asked(index, each) for each, old in open_requests if self._makers.get(old) == index}
        self._waiting = deque((each, anew.get(old, old)) for each, old in self._waiting)
        self._makers = {anew.get(old, old): of for old, of in self._makers.items()}
        return anew[ref]

    def _fill(self) -> None:
        """Hand out requests until each actor has `loader.prefetch` batches ready or under way."""
        missing = self.loaders * self._loader.prefetch - len(self._waiting)
        if missing <= 0:
            return
        refs = list(self._makers)
        under_way = ray.wait(refs, num_returns=len(refs), timeout=0)[1] if refs else []  # which also fetches those ready on other nodes
        load = [0] * len(self._actors)
        for ref in under_way:
            load[self._makers[ref]] += 1
        for _ in range(missing):
            request = next(self._upcoming, None)
            if request is None:
                return
            index = load.index(min(load))
            ref = self._asked(index, request)
            load[index] += 1
            self._makers[ref] = index
            self._waiting.append((request, ref))

    def _asked(self, index: int, request: Request) -> Any:
        """The batch of a request, to be prepared by an actor."""
        return self._actors[index].make_to_send.remote(*request, self._is_proven)

    def _grow(self, total_s: float, waited_s: float, took: Preparation) -> None:
        """Start more actors where steps waited for augmentation, as many as would have been enough, within what the worker has reserved.

        No sample depends on how many there are.
        """
        if self._loader.most is None:
            return
        limit = judged(total_s, waited_s, took.wall_s, took.cpu_s, took.disk_s, self.loaders, False, self._loader.placement)
        wanted = min(limit.enough, self._loader.most) if limit.name in ("CPU augmentation", "disk") else 0
        if wanted > self.loaders:
            log.info("%s Loader actors of this worker: %d -> %d.", limit.text, self.loaders, wanted)
            self._actors += [self._start() for _ in range(wanted - self.loaders)]

    def _start(self, is_local: bool = False) -> Any:
        """One more actor, where `loader.placement` has it, or on this node."""
        return start_loader(self._folder, self._positions, is_local or self._loader.placement == "local")


def node_of(actor: Any) -> str:
    """Ray's id of the node on which an actor lives or is being started; empty while no node has what it asks for."""
    untyped: Any = state.actors
    address = untyped(actor._actor_id.hex()).get("Address", {})
    return str(address["NodeID"]) if address.get("IPAddress") else ""  # without an IP address it is the node that looks for a place
