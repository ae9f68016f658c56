"""Names that nnU-Net's users know: trainers, datasets, folds; and the nearest name when one is misspelt."""

import difflib
from collections.abc import Iterable
from typing import Literal

from trainers.spec.errors import ConfigError

Recipe = Literal["default", "da5", "da5_classic"]
Fold = int | Literal["all"]

TRAINERS: dict[str, Recipe] = {
    "nnUNetTrainer": "default",
    "nnUNetTrainerDA5": "da5",
    "nnUNetTrainerDA5_classic": "da5_classic",
}
"""Trainer name -> augmentation recipe. The first two are nnU-Net's own names; the third is DA5 as nnU-Net had it up to 2.6.4."""

RECIPE_VERSION = 1
"""Raised whenever a recipe or the sampling draws other numbers for the same seed: part of every run key."""


def nearest(word: str, words: Iterable[str]) -> str:
    """A hint for an error text: ' Did you mean ...?' with the nearest known name, or '' when none is near."""
    by_lower = {known.lower(): known for known in words}
    found = difflib.get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.5)
    return f" Did you mean {by_lower[found[0]]!r}?" if found else ""


def canonical_trainer(name: str) -> str:
    """nnU-Net's trainer name for a name or short form (`default`, `da5`, `da5_classic`). Raises ConfigError for an unknown one."""
    if name in TRAINERS:
        return name
    for trainer, recipe in TRAINERS.items():
        if name == recipe:
            return trainer
    known = [*TRAINERS, *TRAINERS.values()]
    raise ConfigError(
        f"trainers: {name!r} is not a trainer of nnfleet.{nearest(name, known)} Known: {', '.join(TRAINERS)} "
        f"(short: {', '.join(TRAINERS.values())})."
    )


def checkpoint_trainer_name(trainer: str) -> str:
    """The trainer name that goes into a checkpoint: one that nnU-Net's own predictor finds and that builds the same network."""
    return "nnUNetTrainerDA5" if trainer == "nnUNetTrainerDA5_classic" else trainer
