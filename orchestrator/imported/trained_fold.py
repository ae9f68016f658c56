"""A fold that nnU-Net trained to its end, as its folder shows it: names, curves, schedule, checkpoints. Nothing is written there."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.errors import ConfigError, DataError
from orchestrator.imported.curves import MAX_EPOCHS, history_of_checkpoint, history_of_logs
from trainers.contract.commits import BestRecord, Committed, EpochRow, Manifest
from trainers.contract.names import Fold, shown
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointName, Schedule
from trainers.contract.trainer_table import TRAINERS, TrainerSettings
from trainers.data.nnunet_checkpoint import read_training_facts
from trainers.storage.faults import reading
from trainers.storage.files import read_json, sha256_of

log = logging.getLogger(__name__)
_SETTINGS = {
    "train_iterations": "num_iterations_per_epoch",
    "val_iterations": "num_val_iterations_per_epoch",
    "initial_lr": "initial_lr",
    "weight_decay": "weight_decay",
    "foreground_oversampling": "oversample_foreground_percent",
}
"""Field of a schedule -> its name in nnU-Net's debug.json."""
_VERSIONS = {"torch": "torch_version", "cudnn": "cudnn_version", "gpu": "gpu_name"}
"""Name of a version -> its name there."""


@dataclass(frozen=True)
class FoldName:
    """What the path of a fold's folder says."""

    dataset: str
    trainer: str
    plans: str
    configuration: str
    fold: Fold


@dataclass(frozen=True)
class TrainedFold:
    """A training of nnU-Net's that has ended."""

    folder: RunFolder
    name: FoldName
    epochs: int
    schedule: Schedule
    history: tuple[EpochRow, ...]
    versions: dict[str, str]
    final: Manifest
    best: Manifest | None
    best_ema: float | None

    def committed(self, run_key: str) -> Committed:
        """The same as the commit of a run of ours; it has no tensors to continue from."""
        emas = {row.epoch: row.ema_pseudo_dice for row in self.history if row.ema_pseudo_dice is not None}
        return Committed(
            run_key=run_key,
            epochs_done=self.epochs,
            fencing_token=1,
            history=self.history,
            best_policy=BestRecord(
                ema=self.history[-1].ema_pseudo_dice if self.history else None,
                score=self.best_ema,
                best_epoch=max(emas, key=lambda epoch: emas[epoch]) if emas else None,
            ),
            best=self.best,
            final=self.final,
            state_sha256="",
            state_size_bytes=0,
        )


def fold_name(folder: RunFolder) -> FoldName:
    """What the path of a fold's folder says. Raises ConfigError for one that nnU-Net does not make."""
    parts = folder.model_folder.name.split("__")
    dataset, fold = folder.model_folder.parent.name, folder.root.name.removeprefix("fold_")
    is_fold = folder.root.name.startswith("fold_") and re.fullmatch(r"\d{1,4}|all", fold, re.ASCII)
    if len(parts) != 3 or not all(parts) or not re.fullmatch(r"Dataset\d+_.+", dataset) or not is_fold:
        raise ConfigError(
            f"import: {folder.root} is not called as nnU-Net calls its folders, DatasetNNN_Name/Trainer__Plans__configuration/fold_K. "
            "Name the folder of a model or of one of its folds, with its name and place as nnU-Net gave them."
        )
    trainer, plans, configuration = parts
    return FoldName(dataset, trainer, plans, configuration, "all" if fold == "all" else int(fold))


def read_trained_fold(folder: RunFolder) -> TrainedFold:
    """Read a fold's folder. Raises ConfigError, DataError for a training that has not ended, CheckpointError, StorageError."""
    name = fold_name(folder)
    if not folder.checkpoint("final").is_file():
        there = sorted(path.name for path in folder.root.glob("checkpoint_*.pth"))
        raise DataError(
            f"import: {folder.root} has no checkpoint_final.pth (checkpoints: {', '.join(there) or 'none'}): its training has not ended. "
            f"Finish it here (--continue), or with nnUNetv2_train ... {name.fold} -tr {name.trainer} -p {name.plans} --c, then import it."
        )
    facts = read_training_facts(folder.checkpoint("final"))
    check_is_of(facts, name, folder.checkpoint("final"))
    history = history_of(facts, folder.checkpoint("final"))
    epochs = epochs_of(facts, folder.checkpoint("final"))
    debug = debug_of(folder)
    best = folder.checkpoint("best")
    best_facts = read_training_facts(best) if best.is_file() else None
    return TrainedFold(
        folder=folder,
        name=name,
        epochs=epochs,
        schedule=schedule_of(debug, epochs, name.trainer, folder),
        history=history[:epochs],
        versions=versions_in(debug),
        final=_manifest(folder, "final", epochs, history[-1].ema_pseudo_dice if history else None),
        best=None if best_facts is None else _manifest(folder, "best", epochs_of(best_facts, best), _score(best_facts)),
        best_ema=_score(facts),
    )


def check_is_of(facts: Mapping[str, Any], name: FoldName, path: Path) -> None:
    """Raise DataError for a checkpoint of another trainer, configuration or fold than its folder is named after."""
    arguments = facts.get("init_args")
    arguments = arguments if isinstance(arguments, dict) else {}
    found = (facts.get("trainer_name"), arguments.get("configuration"), str(arguments.get("fold")))
    if found != (name.trainer, name.configuration, str(name.fold)):
        raise DataError(
            f"import: {path} is by its own words of trainer, configuration and fold {shown(found)}, and lies in the folder of "
            f"{name.trainer}, {name.configuration}, {name.fold}. Bring it back to the place where nnU-Net wrote it."
        )


def history_of(facts: Mapping[str, Any], path: Path) -> tuple[EpochRow, ...]:
    """The epochs by the checkpoint at `path`, else by the logs beside it; none where neither lists them, which is said."""
    if facts.get("logging"):
        try:
            return history_of_checkpoint(facts["logging"])
        except (ValueError, ValidationError) as err:
            raise DataError(f"import: {path} holds no curves of nnU-Net's: {err}. Restore the file.") from err
    with reading(path.parent):
        texts = [log_file.read_text(encoding="utf-8", errors="replace") for log_file in path.parent.glob("training_log_*.txt")]
    history = history_of_logs(texts)
    if not history:
        log.warning("%s has no training curves, neither in %s nor in a training log: it is imported without", path.parent, path.name)
    return history


def epochs_of(facts: Mapping[str, Any], path: Path) -> int:
    """How many epochs were done. Raises DataError."""
    epochs = facts.get("current_epoch")
    if type(epochs) is not int or not 1 <= epochs <= MAX_EPOCHS:
        raise DataError(f"import: {path} has {shown(epochs)} as its number of epochs, expected 1 to {MAX_EPOCHS}. Restore the file.")
    return epochs


def _score(facts: Mapping[str, Any]) -> float | None:
    """EMA pseudo-Dice of the best epoch; None where there is none that is a number."""
    try:
        score = float(facts["_best_ema"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return score if 0 <= score <= 1 else None


def debug_of(folder: RunFolder) -> dict[str, Any]:
    """nnU-Net's notes of its settings, as texts; empty where there are none."""
    path = folder.root / "debug.json"
    if not path.is_file():
        log.warning("%s is not there: nnU-Net's usual schedule is noted, and no versions", path)
        return {}
    content = read_json(path, "nnU-Net's debug.json")
    if not isinstance(content, dict):
        raise DataError(f"import: {path} must hold an object, got {shown(content)}. Restore the file, or remove it.")
    return content


def versions_in(debug: Mapping[str, Any]) -> dict[str, str]:
    """What its notes say of the software and hardware, by name."""
    return {ours: str(debug[theirs])[:100] for ours, theirs in _VERSIONS.items() if debug.get(theirs) not in (None, "None")}


def has_share_of_rank_0(debug: Mapping[str, Any], trainer: str) -> bool:
    """True where nnU-Net has replaced the share of foreground samples by rank 0's own before it noted it. Pure.

    With several GPUs it does so in `_set_batch_size_and_oversample`, often by 0; its trainers that draw leave the share as it is.
    """
    return str(debug.get("is_ddp")) == "True" and TRAINERS.get(trainer, TrainerSettings()).oversampling == "last"


def schedule_of(debug: Mapping[str, Any], epochs: int, trainer: str, folder: RunFolder) -> Schedule:
    """So many epochs by the other settings in its notes, each nnU-Net's usual one where they lack it. Raises DataError."""
    known = {ours: debug[theirs] for ours, theirs in _SETTINGS.items() if theirs in debug}
    if has_share_of_rank_0(debug, trainer) and known.pop("foreground_oversampling", None) is not None:
        usual = Schedule().foreground_oversampling
        log.warning("%s was trained on several GPUs and notes only rank 0's share of foreground: %g is taken", folder.root, usual)
    try:
        return Schedule.model_validate({"epochs": epochs, **known})
    except ValidationError as err:
        first = err.errors()[0]
        raise DataError(
            f"import: {folder.root / 'debug.json'} gives {_SETTINGS[str(first['loc'][0])]} as {shown(first['input'])}: {first['msg']}. "
            "Restore the file, or remove it."
        ) from err


def _manifest(folder: RunFolder, name: CheckpointName, epochs: int, ema: float | None) -> Manifest:
    file = folder.checkpoint(name)
    with reading(file):
        return Manifest(
            checkpoint=name,
            file=file.name,
            epoch=epochs - 1,
            fencing_token=1,
            ema_pseudo_dice=ema,
            sha256=sha256_of(file),
            size_bytes=file.stat().st_size,
        )
