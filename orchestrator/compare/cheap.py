"""The number that training shows, EMA pseudo-Dice of patches, beside the Dice of whole cases that a full validation finds."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import WeightsName
from trainers.contract.summary import nan_mean


class CheapAndFull(NamedTuple):
    """Of the weights of one checkpoint of one fold; NaN where it is not known."""

    ema_pseudo_dice: float
    dice: float
    """Mean over the fold's cases of their mean Dice."""


def cheap_and_full(folder: RunFolder, name: WeightsName) -> CheapAndFull | None:
    """As the run folder records it of a checkpoint; None where that was not validated, or its record is damaged."""
    try:
        return _scores(_content(folder.extended_summary(name)))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None


def _content(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _scores(content: dict[str, Any]) -> CheapAndFull:
    above = content["minus_ema_pseudo_dice"]
    ema = math.nan if above is None else float(content["dice_mean"]) - float(above)
    return CheapAndFull(ema, nan_mean(float(case["dice_mean"]) for case in content["cases"]))
