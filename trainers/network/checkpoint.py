"""Checkpoints in nnU-Net's format, from plain types alone, so that `torch.load(weights_only=True)` and nnU-Net both read them.

Source of the keys: nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py, save_checkpoint and load_checkpoint;
nnunetv2/inference/predict_from_raw_data.py, initialize_from_trained_model_folder.
"""

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from trainers.contract.commits import BestRecord, EpochRow
from trainers.contract.run_spec import RunSpec
from trainers.contract.trainer_table import checkpoint_trainer_name
from trainers.data.restricted_pickle import NUMBERS
from trainers.errors import CheckpointError
from trainers.storage.faults import find_outage

Checkpoint = dict[str, Any]
torch.serialization.add_safe_globals(NUMBERS)  # never numpy's own


def checkpoint_header(
    spec: RunSpec, plans: dict[str, Any], dataset_json: dict[str, Any], mirroring_axes: tuple[int, ...] | None
) -> Checkpoint:
    """The part of a checkpoint that stays the same over a run: what nnU-Net needs to build the network and to predict.

    A network of the user's has no trainer's name of nnU-Net's, which would build another one.
    """
    return {
        "trainer_name": f"own network {spec.own.network.name}" if spec.own.network else checkpoint_trainer_name(spec.trainer),
        "init_args": {"plans": plans, "configuration": spec.configuration, "fold": spec.fold, "dataset_json": dataset_json},
        "inference_allowed_mirroring_axes": mirroring_axes,
        "nnfleet": {"run_key": spec.run_key, "trainer": spec.trainer, "seed": spec.seed},
    }


def training_part(history: Sequence[EpochRow], best: BestRecord) -> Checkpoint:
    """What nnU-Net needs beside weights and optimizer to continue a training: its logger's lists, best score, epoch."""
    return {
        "logging": {
            "mean_fg_dice": [row.pseudo_dice_mean for row in history],
            "ema_fg_dice": [math.nan if row.ema_pseudo_dice is None else row.ema_pseudo_dice for row in history],
            "dice_per_class_or_region": [list(row.pseudo_dice) for row in history],
            "train_losses": [row.train_loss for row in history],
            "val_losses": [row.val_loss for row in history],
            "lrs": [row.learning_rate for row in history],
            "epoch_start_timestamps": [row.started_unix for row in history],
            "epoch_end_timestamps": [row.ended_unix for row in history],
        },
        "_best_ema": best.score,
        "current_epoch": len(history),
    }


def whole_state(kept: Checkpoint, header: Checkpoint, curves: Checkpoint) -> Checkpoint:
    """A state of `kept` (the tensors, and what a trainer of the user's keeps), `checkpoint_header` and `training_part`, whose curves such
    a trainer may know better."""
    return {**kept, **header, **curves, **kept}


def copied_to_cpu(value: Any, older: Any = None) -> Any:
    """A deep copy of nested containers with every tensor copied to the CPU once; names that share a tensor go on sharing it.

    Where they fit, the tensors of `older`, a copy that nobody needs any more, are written over: to get fresh memory from the system
    takes several times as long as the copying does.
    """
    spare: dict[Any, list[torch.Tensor]] = defaultdict(list)
    for tensor in {id(tensor): tensor for tensor in _tensors_of(older)}.values():
        spare[_layout(tensor)].append(tensor)
    return _copied(value, spare, {})


def _copied(value: Any, spare: dict[Any, list[torch.Tensor]], copies: dict[Any, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        key = (value.data_ptr(), _layout(value))
        if value.numel() == 0 or key not in copies:
            fitting = spare[_layout(value)]
            copies[key] = fitting.pop().copy_(value.detach()) if fitting else value.detach().to("cpu", copy=True)
        return copies[key]
    if isinstance(value, dict):
        return {name: _copied(item, spare, copies) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item, spare, copies) for item in value)
    return value


def _tensors_of(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors_of(item)


def _layout(tensor: torch.Tensor) -> Any:
    return tensor.shape, tensor.stride(), tensor.dtype


def read_checkpoint(path: Path) -> Checkpoint:
    """Load a checkpoint onto the CPU without executing anything in it. Raises CheckpointError (missing, broken), StorageError."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # torch raises many kinds for a broken archive
        find_outage(err, [path])
        raise CheckpointError(f"checkpoint: {path} cannot be read: {_cause(err)}. Restore the file or take another checkpoint.") from err
    weights = content.get("network_weights") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise CheckpointError(
            f"checkpoint: {path} holds no tensors under 'network_weights' and is no nnU-Net checkpoint. Take another one."
        )
    return dict(content)


def weights_digest(path: Path) -> str:
    """SHA-256 over sorted names and bytes of a checkpoint's weights, as hexadecimal digits. Raises CheckpointError."""
    weights = read_checkpoint(path)["network_weights"]
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _cause(err: Exception) -> str:
    """Why torch does not read a file, without its advice to read it with a pickle that may run anything."""
    if named := re.search(r"(?:GLOBAL|Unsupported global:|class) ([\w.]+)", str(err)):
        return f"it names {named[1]}, which a checkpoint does not need and which could run code"
    return f"{type(err).__name__}: {str(err).strip().splitlines()[0][:300] if str(err).strip() else 'no whole file'}"
