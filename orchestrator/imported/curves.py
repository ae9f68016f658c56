"""The epochs of a training of nnU-Net's, out of the lists in its checkpoint or the text of its log. Pure.

Source of both: nnunetv2/training/logging/nnunet_logger.py and the calls of `print_to_log_file` in nnunetv2/training/nnUNetTrainer.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from trainers.contract.commits import EpochRow
from trainers.contract.names import shown
from trainers.contract.summary import nan_mean

MAX_EPOCHS = 100_000
EMA_DECAY = 0.9
_KEYS = ("mean_fg_dice", "ema_fg_dice", "train_losses", "val_losses", "lrs", "epoch_start_timestamps", "epoch_end_timestamps")
_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d{1,6})?): ?(.*)", re.ASCII)
_NUMBER = re.compile(r"nan|-?\d+(?:\.\d*)?(?:e[+-]?\d+)?")


@dataclass
class _Epoch:
    """What is known of one epoch."""

    train_loss: float = math.nan
    val_loss: float = math.nan
    dice: tuple[float, ...] = ()
    mean: float = math.nan
    ema: float = math.nan
    learning_rate: float = math.nan
    started_unix: float = math.nan
    ended_unix: float = math.nan


@dataclass
class _Reading:
    """A log while it is read."""

    done: dict[int, _Epoch] = field(default_factory=dict)
    epoch: int = -1
    now: _Epoch = field(default_factory=_Epoch)


def history_of_checkpoint(lists: Any) -> tuple[EpochRow, ...]:
    """The epochs in a checkpoint's `logging`. Raises ValueError for what cannot be it."""
    if not isinstance(lists, Mapping):
        raise ValueError(f"its logging is {shown(lists)}, no lists")
    columns = [_numbers(lists, key) for key in _KEYS]
    classes = lists.get("dice_per_class_or_region")
    if not isinstance(classes, list | tuple) or not all(isinstance(values, list | tuple) for values in classes):
        raise ValueError(f"its dice_per_class_or_region is {shown(classes)}, no list of lists")
    count = min(len(classes), *map(len, columns))
    if count > MAX_EPOCHS:
        raise ValueError(f"it lists {count} epochs, more than {MAX_EPOCHS}")
    rows = zip(*columns, classes, strict=False)
    epochs = [
        _Epoch(train, val, tuple(map(_number, dice)), mean, ema, rate, start, end) for mean, ema, train, val, rate, start, end, dice in rows
    ]
    return tuple(_row(number, epoch) for number, epoch in enumerate(epochs))


def history_of_logs(texts: Sequence[str]) -> tuple[EpochRow, ...]:
    """The epochs in the texts of training logs, of which a later one continues an earlier one; as far as none is missing."""
    reading = _Reading()
    for text in sorted(texts):  # they begin alike, and each line with its time
        reading.epoch = -1
        for line in text.splitlines():
            if found := _LINE.match(line):
                _read(reading, found[1], found[2].strip())
    rows: list[EpochRow] = []
    ema = math.nan
    while (epoch := reading.done.get(len(rows))) is not None:
        epoch.ema = EMA_DECAY * ema + (1 - EMA_DECAY) * epoch.mean if rows else epoch.mean
        ema = epoch.ema
        rows.append(_row(len(rows), epoch))
    return tuple(rows)


def _read(reading: _Reading, time: str, text: str) -> None:
    """One line of a log; the one with the epoch's time is its last."""
    if begun := re.fullmatch(r"Epoch (\d{1,6})", text):
        reading.epoch, reading.now = int(begun[1]), _Epoch()
    elif text.startswith("Current learning rate:"):
        reading.now.learning_rate = _first(text.partition(":")[2])
    elif text.startswith("train_loss "):
        reading.now.train_loss = _first(text.removeprefix("train_loss "))
    elif text.startswith("val_loss "):
        reading.now.val_loss = _first(text.removeprefix("val_loss "))
    elif text.startswith("Pseudo dice "):
        values = re.sub(r"np\.float\d+", "", text.removeprefix("Pseudo dice "))
        reading.now.dice = tuple(map(float, _NUMBER.findall(values)))
        reading.now.mean = nan_mean(reading.now.dice)
    elif text.startswith("Epoch time:") and reading.epoch >= 0:
        reading.now.ended_unix = datetime.fromisoformat(time).timestamp()
        reading.now.started_unix = reading.now.ended_unix - _first(text.partition(":")[2])
        reading.done[reading.epoch] = reading.now


def _first(text: str) -> float:
    found = _NUMBER.search(text)
    return float(found[0]) if found else math.nan


def _numbers(lists: Mapping[str, Any], key: str) -> list[float]:
    values = lists.get(key)
    if not isinstance(values, list | tuple):
        raise ValueError(f"its {key} is {shown(values)}, no list")
    return list(map(_number, values))


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as err:
        raise ValueError(f"it lists {shown(value)} where an epoch has a number") from err


def _row(number: int, epoch: _Epoch) -> EpochRow:
    return EpochRow(
        epoch=number,
        fencing_token=1,
        started_unix=epoch.started_unix,
        ended_unix=epoch.ended_unix,
        train_loss=epoch.train_loss,
        val_loss=epoch.val_loss,
        pseudo_dice=epoch.dice,
        pseudo_dice_mean=epoch.mean,
        ema_pseudo_dice=None if math.isnan(epoch.ema) else epoch.ema,
        learning_rate=epoch.learning_rate,
        world_size=0,
        epoch_s=epoch.ended_unix - epoch.started_unix,
        train_s=math.nan,
        val_s=math.nan,
        wait_data_s=math.nan,
        save_s=math.nan,
        samples_per_s=math.nan,
        gpu_memory_gib=math.nan,
    )
