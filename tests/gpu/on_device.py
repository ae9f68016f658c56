"""Trainings on a device of this process, from a run folder to its end, with batches prepared in the training thread."""

from pathlib import Path
from typing import Any

import torch

from tests.own_batches import OwnBatches
from tests.toy import Toy, toy_spec
from trainers.contract.commits import newest_committed
from trainers.contract.fencing import acquire_token
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec, Schedule, WorkerSpec
from trainers.data.batches import Batch, SplitName
from trainers.data.dataset import open_dataset
from trainers.data.samples import make_batch
from trainers.network.learner import Learner
from trainers.storage.files import write_atomic
from trainers.training.assemble import assemble, model_config, warm_up
from trainers.training.rank import train_rank
from trainers.training.state import TrainingProgress
from trainers.training.world import World

SCHEDULE = Schedule(epochs=3, train_iterations=10, val_iterations=3)


def spec_for(toy: Toy, folder: Path, device: torch.device, **overrides: Any) -> RunSpec:
    """A short run of `toy` on `device`, with its results in `folder`; deterministic and not compiled unless `overrides` ask for it."""
    fields = {"schedule": SCHEDULE, "compile": False, "deterministic": True, **overrides}
    workers = WorkerSpec(count=1, gpus=int(device.type == "cuda"), cpus=1)
    return toy_spec(toy, workers=workers, model_folder=folder / "model", **fields)


def alone(device: torch.device) -> World:
    """A world of one worker."""
    return World(global_rank=0, local_rank=0, world_size=1, device=device)


def learner_on(spec: RunSpec, device: torch.device) -> Learner:
    """A learner at the beginning of its training."""
    plan = model_config(spec)
    learner = assemble(spec, plan, alone(device), fencing_token=1)
    warm_up(learner, plan, alone(device))
    learner.start_epoch(0)
    learner.network.train()
    return learner


def batches_of(spec: RunSpec, count: int, split: SplitName = "train") -> list[Batch]:
    """The first batches of a run."""
    data, positions = open_dataset(spec), range(model_config(spec).global_batch)
    return [make_batch(data, spec, split, 0, iteration, positions) for iteration in range(count)]


def train_on(spec: RunSpec, device: torch.device, killed_at: tuple[int, int] | None = None) -> TrainingProgress:
    """Train a run, or go on with it, and return what its newest state has reached."""
    folder = RunFolder(spec.run_folder)
    if not folder.spec_file.is_file():
        write_atomic(folder.spec_file, spec.model_dump_json().encode())
    token = acquire_token(folder, "tests/gpu")
    train_rank(spec, folder, alone(device), token, lambda positions, *_: OwnBatches(spec, positions, killed_at))
    newest = newest_committed(folder)
    assert newest is not None
    return TrainingProgress(history=newest.history, best_policy=newest.best_policy, in_flight=newest.in_flight)
