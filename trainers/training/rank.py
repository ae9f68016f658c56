"""One rank of a training: from a run's specification to the end of its training, wherever its batches come from."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.contract.split_batch import rank_positions
from trainers.contract.states import TrainingEnd
from trainers.data.batches import BatchSource
from trainers.errors import ConfigError
from trainers.training.assemble import assemble, model_config, newest_everywhere, progress_from, restore, state_writer, warm_up
from trainers.training.loop import train
from trainers.training.mid_epoch import MidEpochSaver
from trainers.training.start_of_log import log_rounding, log_start
from trainers.training.world import World

Opener = Callable[[list[int], int, int], AbstractContextManager[BatchSource]]
"""Opens a source of batches: (this rank's positions in the global batch, first epoch, first iteration in it)."""


def train_rank(
    spec: RunSpec, folder: RunFolder, world: World, fencing_token: int, opener: Opener, is_leaving: Callable[[], bool] = lambda: False
) -> TrainingEnd:
    """Train from the newest state until the run is trained, stopped or paused; every rank calls it. `is_leaving`: see `MidEpochSaver`.

    Raises ConfigError for a folder that holds another run, and what assembling, restoring and training raise.
    """
    plan = model_config(spec)
    if world.is_main:
        log_start(spec, plan, world.world_size)
    newest = newest_everywhere(folder, world)
    if newest is not None and newest.run_key != spec.run_key:
        raise ConfigError(f"state: {folder.state} holds states of {newest.run_key}, not of {spec.run_key}. Move them away.")
    if world.is_main:
        log_rounding(newest)
    reached = progress_from(newest, spec.schedule)
    positions = rank_positions(plan.global_batch, world.world_size, world.global_rank)
    with opener(list(positions), *reached.position) as source:  # it starts up while the network is built
        learner = assemble(spec, plan, world, fencing_token)
        restore(spec, folder, learner, newest)
        writer = state_writer(spec, folder, plan, fencing_token, newest) if world.is_main else None
        warm_up(learner, plan, world)
        mid_epoch = MidEpochSaver(spec, folder, world, learner, writer, is_leaving)
        return train(spec, folder, world, learner, source, mid_epoch, reached)
