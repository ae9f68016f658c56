"""From a run's specification to what the loop trains with: network, optimizer and loss of this rank, restored from the newest state."""

import logging
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainers.contract.cascade import network_channels
from trainers.contract.commits import BestRecord, Committed
from trainers.contract.plans import Labels, labels_of, load_dataset_json, plans_of, without_cases
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec, Schedule
from trainers.contract.split_batch import rank_positions
from trainers.errors import ConfigError
from trainers.network.checkpoint import Checkpoint, checkpoint_header, read_checkpoint
from trainers.network.cpu_convolutions import prepare_for_cpu
from trainers.network.learner import Learner, as_list
from trainers.network.loss import SegmentationLoss
from trainers.network.model import deep_supervision_weights, freeze_dead_head, has_batchnorm_or_dropout, mirroring_axes
from trainers.network.optimizer import sgd
from trainers.network.own import OwnLoss, asked, check_modes, freeze_unused, network_of
from trainers.network.pretrained import load_pretrained
from trainers.storage.faults import retry_storage
from trainers.training.state import StateWriter, TrainingProgress, newest_valid
from trainers.training.world import World

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelConfig:
    """What plans and dataset.json say of the network and its training."""

    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    configuration: dict[str, Any]
    labels: Labels
    channels: int
    """Of the network's input: see `network_channels`."""

    @property
    def global_batch(self) -> int:
        """The plan's batch size: samples of one optimizer step over all ranks."""
        return int(self.configuration["batch_size"])


def model_config(spec: RunSpec) -> ModelConfig:
    """Read a run's plans and dataset.json. Raises ConfigError or DataError."""
    plans = plans_of(spec)
    dataset_json = load_dataset_json(spec.preprocessed_folder)
    configuration = plans.configuration(spec.configuration)
    labels = labels_of(dataset_json, str(spec.preprocessed_folder / "dataset.json"))
    channels = network_channels(configuration, dataset_json, labels)
    return ModelConfig(plans.content, dataset_json, configuration, labels, channels)


def assemble(spec: RunSpec, plan: ModelConfig, world: World, fencing_token: int) -> Learner:
    """This rank's network (compiled on GPUs, wrapped in DDP), optimizer and loss, freshly initialised from the run's seed."""
    configure_kernels(world.device, deterministic=spec.deterministic)
    torch.manual_seed(spec.seed)
    settings = spec.settings
    plain = network_of(spec, plan.configuration, plan.channels, plan.labels.num_heads, settings.deep_supervision).to(world.device)
    draws = has_batchnorm_or_dropout(plain)
    if draws and spec.workers.is_elastic:
        raise ConfigError("workers: a network with batch normalisation or dropout depends on the number of workers. Name `count`.")
    if draws:
        log.warning("%s: the network has batch normalisation or dropout, so its results depend on the number of workers", spec.run_key)
    shapes = output_shapes(plain, plan, world.device)
    weights = deep_supervision_weights(len(shapes))
    if spec.own.network is None:
        freeze_dead_head(plain, weights)
    else:
        least = min(2, len(rank_positions(plan.global_batch, world.world_size, world.global_rank)))  # some layers need two while they learn
        image = torch.zeros((least, plan.channels, *plan.configuration["patch_size"]), device=world.device)
        check_modes(spec.own.network.name, output_shapes(plain, plan, world.device, training=True, batch=least), shapes)
        freeze_unused(plain, weights, image)
    is_fast_gpu = world.device.type == "cuda" and not spec.deterministic
    optimizer = sgd(plain, spec.schedule, fused=is_fast_gpu)
    network: nn.Module = plain
    if world.device.type == "cpu":
        prepare_for_cpu(plain)
    if spec.compile and is_fast_gpu:
        check_compiler()
        network = torch.compile(network)  # type: ignore[assignment]
    if world.world_size > 1:
        network = DistributedDataParallel(network, device_ids=[world.device.index] if world.device.type == "cuda" else None)
    return Learner(
        plain=plain,
        network=network,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(world.device.type, enabled=world.device.type == "cuda"),
        loss=_loss(spec, plan, weights, world),
        labels=plan.labels,
        schedule=spec.schedule,
        device=world.device,
        global_batch=plan.global_batch,
        world_size=world.world_size,
        fencing_token=fencing_token,
        dropout_seed=spec.seed * 100_003 + world.global_rank if draws else None,
        curve=settings.rate,
    )


def _loss(spec: RunSpec, plan: ModelConfig, weights: Sequence[float], world: World) -> Callable[..., torch.Tensor]:
    if spec.own.loss is not None:
        return OwnLoss(spec.own.loss, plan.labels, plan.configuration, weights, world.world_size / plan.global_batch)
    batch_dice = bool(plan.configuration["batch_dice"])
    return SegmentationLoss(plan.labels, batch_dice, weights, plan.global_batch, world.world_size, spec.settings.loss)


def check_compiler() -> None:
    """Raise ConfigError where torch.compile would fail at the first step for want of a C compiler."""
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        raise ConfigError(
            f"compile: {platform.node()} has no C compiler, which torch.compile needs on GPUs. "
            "Install gcc with Python's headers there, or set `compile: false`."
        )


def configure_kernels(device: torch.device, *, deterministic: bool) -> None:
    """nnU-Net's choice on GPUs (fastest kernels by trial), or repeatable ones where the run asks for them. CPUs are repeatable anyway."""
    if device.type != "cuda":
        return
    torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    torch.use_deterministic_algorithms(deterministic, warn_only=True)


def output_shapes(
    plain: nn.Module, plan: ModelConfig, device: torch.device, *, training: bool = False, batch: int = 1
) -> list[tuple[int, ...]]:
    """Spatial shape of each deep-supervision output, finest first, by asking the network, which keeps no trace of the question."""
    with asked(plain, training=training), torch.no_grad():
        outputs = as_list(plain(torch.zeros((batch, plan.channels, *plan.configuration["patch_size"]), device=device)))
    return [tuple(output.shape[2:]) for output in outputs]


def warm_up(learner: Learner, plan: ModelConfig, world: World) -> None:
    """Run `Learner.warm_up` on zeros in the shape of this rank's part of a batch."""
    rank_batch = len(rank_positions(plan.global_batch, world.world_size, world.global_rank))
    images = torch.zeros((rank_batch, plan.channels, *plan.configuration["patch_size"]), device=world.device)
    target_channels = plan.labels.num_heads + (plan.labels.ignore_label is not None) if plan.labels.has_regions else 1
    shapes = output_shapes(learner.plain, plan, world.device)
    learner.warm_up(images, [torch.zeros((rank_batch, target_channels, *s), device=world.device, dtype=torch.int16) for s in shapes])


def newest_everywhere(folder: RunFolder, world: World) -> Committed | None:
    """The newest valid state as rank 0 finds it, on every rank; None for a fresh run. A disk that is away is waited for. A collective."""
    newest = retry_storage(lambda: newest_valid(folder), f"the start from {folder.state}") if world.is_main else None
    return world.from_main(newest)


def progress_from(committed: Committed | None, schedule: Schedule) -> TrainingProgress:
    """What a state has reached; nothing for a fresh run."""
    if committed is None:
        return TrainingProgress(best_policy=BestRecord(decay=schedule.ema_decay))
    return TrainingProgress(committed.history, committed.best_policy, committed.in_flight, committed.early_end)


def restore(spec: RunSpec, folder: RunFolder, learner: Learner, committed: Committed | None) -> None:
    """Load a state's tensors into this rank's learner, or those that a fresh run is to begin with.

    Raises CheckpointError or StorageError when they cannot be read here, ConfigError for pretrained weights that do not fit.
    """
    if committed is None:
        _begin(spec, learner)
        return
    learner.load(read_checkpoint(folder.state / f"{committed.stem}.pth"))
    log.info(
        "%s continues in epoch %d after %d iterations, of fencing token %d", committed.run_key, *committed.position, committed.fencing_token
    )


def _begin(spec: RunSpec, learner: Learner) -> None:
    """Random weights stay unless the run names others. Every rank reads them, so that it does not matter when DDP shares its own."""
    weights = spec.pretrained_weights
    if weights is None:
        return
    retry_storage(lambda: load_pretrained(learner.plain, weights), f"the start from {weights.file}")
    log.info("%s begins with the weights of %s (SHA-256 %s)", spec.run_key, weights.file, weights.sha256)


def state_writer(spec: RunSpec, folder: RunFolder, plan: ModelConfig, fencing_token: int, restored: Committed | None) -> StateWriter:
    """The writer of rank 0, standing where the restored state stands."""
    return writer_with_axes(spec, folder, plan, fencing_token, restored, mirroring_axes(plan.configuration, spec.settings))


def writer_with_axes(
    spec: RunSpec, folder: RunFolder, plan: ModelConfig, fencing_token: int, restored: Committed | None, axes: tuple[int, ...] | None
) -> StateWriter:
    """Likewise, with the spatial axes that prediction mirrors."""
    dataset_json = without_cases(plan.dataset_json) if spec.pseudonyms else plan.dataset_json
    fixed: Checkpoint = checkpoint_header(spec, plan.plans, dataset_json, axes)
    candidates = spec.validation.candidates
    writer = StateWriter(folder, spec.run_key, fencing_token, fixed, spec.schedule.epochs, num_candidates=candidates)
    writer.start_from(restored)
    return writer
