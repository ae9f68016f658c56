"""Trainers by the names of nnU-Net's classes: what each name sets, and why the others of nnU-Net 2.8.1 are refused.

nnU-Net derives a class to change a number; here a name stands for its numbers (`TRAINERS`), from which data, network and experiment take
what they need. `docs/trainers.md` is this table for users.
"""

from dataclasses import dataclass
from typing import Literal

from trainers.contract.names import nearest
from trainers.errors import ConfigError

Recipe = Literal["default", "da5", "da5_classic", "no_augmentation"]
Mirroring = Literal["all", "01", "none"]
Nearest = Literal["nothing", "labels", "all"]
Rate = Literal["poly", "cosine", "warmup"]
Oversampling = Literal["last", "drawn", "drawn_as_often"]
Loss = Literal["dice_ce", "dice_ce_no_smooth", "dice", "ce"]

RECIPE_VERSION = 1
"""Raised whenever a recipe or the sampling draws other numbers for the same seed: part of every run key."""
ROUNDING_VERSION = 3
"""Raised whenever the same draws give samples, or steps on a CPU, with other last bits, as other kernels do. Every state notes it, and a
run that goes on with another one logs that. As another version of torch it is no part of the run key: no run is orphaned. 2: augmentation
compiled by numba. 3: small 3D convolutions of a single sample by oneDNN."""


@dataclass(frozen=True)
class TrainerSettings:
    """What the name of a trainer sets; the defaults are nnUNetTrainer's."""

    recipe: Recipe = "default"
    """The augmentation recipe."""
    epochs: int | None = None
    """Epochs of a trainer whose name says how many; None: those of the experiment."""
    mirroring: Mirroring = "all"
    """Spatial axes that are flipped, in augmentation as in prediction; `01`: the first two of 3D, the first of 2D."""
    nearest: Nearest = "nothing"
    """What rotation and scaling take from the nearest voxel instead of interpolating: nothing, the labels, or the image too."""
    dummy_2d: bool = True
    """Rotate and scale within slices only where they are much thicker than their pixels."""
    loss: Loss = "dice_ce"
    """Dice and cross entropy, the same with nothing added to the Dice's numerator and denominator, or one of the two alone."""
    deep_supervision: bool = True
    """Train every output but the coarsest; False: the finest alone."""
    rate: Rate = "poly"
    """Curve of the learning rate: nnU-Net's polynomial, half a cosine, or 50 epochs of linear increase before the polynomial."""
    oversampling: Oversampling = "last"
    """Which samples are centred on foreground: the last of each global batch; each by a draw with the probability
    `foreground_oversampling`; or by a draw with the share that the last are of a batch."""
    foreground_oversampling: float | None = None
    """That probability of a trainer whose name says it; None: that of the experiment."""

    def mirror_axes(self, dimensions: int) -> tuple[int, ...]:
        """Spatial axes that are flipped, of a patch of so many; none where nothing is mirrored."""
        count = {"all": dimensions, "01": dimensions - 1, "none": 0}[self.mirroring]
        return tuple(range(count))

    @property
    def schedule(self) -> dict[str, float]:
        """Fields of the schedule that the name sets, which an experiment cannot set otherwise."""
        named = {"epochs": self.epochs, "foreground_oversampling": self.foreground_oversampling}
        return {field: value for field, value in named.items() if value is not None}

    def unfit(self, *, has_regions: bool, has_ignore_label: bool) -> str:
        """What of a dataset's labels the loss is not made for, in nnU-Net as here; empty: nothing."""
        if self.loss == "dice" and has_ignore_label:
            return "an ignore label"
        return "regions" if self.loss == "ce" and has_regions else ""


TRAINERS: dict[str, TrainerSettings] = {
    "nnUNetTrainer": TrainerSettings(),
    "nnUNetTrainerDA5": TrainerSettings(recipe="da5"),
    "nnUNetTrainerDA5_classic": TrainerSettings(recipe="da5_classic"),  # not nnU-Net's name: its DA5 up to 2.6.4
    "nnUNetTrainer_1epoch": TrainerSettings(epochs=1),
    **{f"nnUNetTrainer_{n}epochs": TrainerSettings(epochs=n) for n in (5, 10, 20, 50, 100, 250, 500, 750, 2000, 4000, 8000)},
    "nnUNetTrainerDA5_10epochs": TrainerSettings(recipe="da5", epochs=10),
    "nnUNetTrainerNoMirroring": TrainerSettings(mirroring="none"),
    **{f"nnUNetTrainer_{n}epochs_NoMirroring": TrainerSettings(epochs=n, mirroring="none") for n in (250, 2000, 4000, 8000)},
    "nnUNetTrainer_onlyMirror01": TrainerSettings(mirroring="01"),
    "nnUNetTrainer_onlyMirror01_1500ep": TrainerSettings(epochs=1500, mirroring="01"),
    "nnUNetTrainer_onlyMirror01_DA5": TrainerSettings(recipe="da5", mirroring="01"),
    "nnUNetTrainerNoDA": TrainerSettings(recipe="no_augmentation", mirroring="none"),
    "nnUNetTrainer_noDummy2DDA": TrainerSettings(dummy_2d=False),
    "nnUNetTrainer_DASegOrd0": TrainerSettings(nearest="labels"),
    "nnUNetTrainer_DASegOrd0_NoMirroring": TrainerSettings(nearest="labels", mirroring="none"),
    "nnUNetTrainer_onlyMirror01_DASegOrd0": TrainerSettings(nearest="labels", mirroring="01"),
    "nnUNetTrainerDA5Segord0": TrainerSettings(recipe="da5", nearest="labels"),
    "nnUNetTrainerDA5ord0": TrainerSettings(recipe="da5", nearest="all"),
    "nnUNetTrainerDiceLoss": TrainerSettings(loss="dice"),
    "nnUNetTrainerDiceCELoss_noSmooth": TrainerSettings(loss="dice_ce_no_smooth"),
    "nnUNetTrainerCELoss": TrainerSettings(loss="ce"),
    "nnUNetTrainerCELoss_5epochs": TrainerSettings(epochs=5, loss="ce"),
    "nnUNetTrainerNoDeepSupervision": TrainerSettings(deep_supervision=False),
    "nnUNetTrainerCosAnneal": TrainerSettings(rate="cosine"),
    "nnUNetTrainer_warmup": TrainerSettings(rate="warmup"),
    "nnUNetTrainer_probabilisticOversampling": TrainerSettings(oversampling="drawn_as_often"),
    "nnUNetTrainer_probabilisticOversampling_033": TrainerSettings(oversampling="drawn", foreground_oversampling=0.33),
    "nnUNetTrainer_probabilisticOversampling_010": TrainerSettings(oversampling="drawn", foreground_oversampling=0.1),
}
"""Trainer name -> its settings. All but `nnUNetTrainerDA5_classic` are nnU-Net's own names and mean what they mean there."""

SHORT = {"default": "nnUNetTrainer", "da5": "nnUNetTrainerDA5", "da5_classic": "nnUNetTrainerDA5_classic"}
"""Short form -> trainer name."""

_ADAMW = "it trains with AdamW (amsgrad), and nnfleet trains with SGD alone"
_ADAM = "it trains with Adam, and nnfleet trains with SGD alone"
_ADAN = "it trains with Adan of the package adan_pytorch, and nnfleet trains with SGD alone"
_PRIMUS = "it trains a network of its own, Primus, with AdamW, and nnfleet trains the network of the plans with SGD"
_LOSS = "it trains on the tenth of the voxels with the greatest cross entropy, which nnfleet does not select"

REFUSED: dict[str, str] = {
    "nnUNetTrainerAdam": _ADAMW,
    "nnUNetTrainerAdam1en3": _ADAMW,
    "nnUNetTrainerAdam3en4": _ADAMW,
    "nnUNetTrainerVanillaAdam": _ADAM,
    "nnUNetTrainerVanillaAdam1en3": _ADAM,
    "nnUNetTrainerVanillaAdam3en4": _ADAM,
    "nnUNetTrainerAdan": _ADAN,
    "nnUNetTrainerAdan1en1": _ADAN,
    "nnUNetTrainerAdan1en3": _ADAN,
    "nnUNetTrainerAdan3en4": _ADAN,
    "nnUNetTrainerAdanCosAnneal": _ADAN,
    "nnUNetTrainerBN": "it replaces the plans' normalisation by batch normalisation; make plans with that `norm_op` and name nnUNetTrainer",
    "nnUNetTrainerBenchmark_5epochs": "it measures the speed of nnU-Net itself and keeps no checkpoint",
    "nnUNetTrainerBenchmark_5epochs_noDataLoading": "it measures the speed of nnU-Net itself on random numbers and keeps no checkpoint",
    "nnUNet_Trainer_BS8": "it sets a batch of 8; set `batch_size: 8` and name nnUNetTrainer",
    **dict.fromkeys(
        (
            "AbstractPrimus",
            *(f"nnUNet_Primus_{size}_Trainer" for size in "SBML"),
            "nnUNet_Primus_M_Trainer_BS8",
            "nnUNet_Primus_M_Trainer_BS8_2e4",
            *(f"nnUNet_PrimusV{version}{size}_Trainer" for version in (2, 3) for size in "SBML"),
            *(f"_Primus_{size}_BS1" for size in ("S_96", "B_96", "M_96", "L_48")),
        ),
        _PRIMUS,
    ),
    **dict.fromkeys(
        (
            "nnUNetTrainerTopk10Loss",
            "nnUNetTrainerTopk10LossLS01",
            "nnUNetTrainerDiceTopK10Loss",
        ),
        _LOSS,
    ),
}
"""Every other trainer class of nnU-Net 2.8.1 -> why it is refused: nothing of nnfleet would train what it trains."""


def canonical_trainer(name: str) -> str:
    """nnU-Net's trainer name for a name or short form (`default`, `da5`, `da5_classic`). Raises ConfigError for an unknown one."""
    if name in TRAINERS:
        return name
    if name in SHORT:
        return SHORT[name]
    if name in REFUSED:
        raise ConfigError(
            f"trainers: nnfleet does not train {name} of nnU-Net: {REFUSED[name]}. Name another trainer, or have its "
            "own loop train it, as a class that a file of yours imports (docs/trainers.md, 'A trainer of your own')."
        )
    raise ConfigError(
        f"trainers: {name!r} is not a trainer of nnfleet.{nearest(name, [*TRAINERS, *SHORT])} Known: {', '.join(SHORT.values())} "
        f"(short: {', '.join(SHORT)}) and {len(TRAINERS) - len(SHORT)} variants of nnU-Net's (docs/trainers.md). "
        "For a number of epochs that none of them has, set `epochs`; a class of your own is named as `module:Class`."
    )


def checkpoint_trainer_name(trainer: str) -> str:
    """The trainer name that goes into a checkpoint: one that nnU-Net's own predictor finds and that builds the same network."""
    return "nnUNetTrainerDA5" if trainer == "nnUNetTrainerDA5_classic" else trainer
