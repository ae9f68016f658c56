"""What a trainer of the user's, a subclass of nnU-Net's, cannot have beside it in an experiment. Its loop is nnU-Net's: it reads what that
reads, and what only our own loop does is refused rather than left out."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from trainers.contract.run_spec import OWN_TRAINER_SCHEDULE, Schedule

if TYPE_CHECKING:
    from orchestrator.experiment.model import Experiment

_APART = "Write other trainers into an experiment of their own."


def fault_beside(name: str, experiment: "Experiment", swept: Collection[str]) -> str:
    """Why the user's trainer `name` cannot train by an experiment, of whose schedule these fields are swept; '' when it can. Pure."""
    named = {*experiment.model_fields_set, *swept}
    if "epochs" not in named:
        return f"trainers: {name} trains for as many epochs as the experiment names; set `epochs`"
    keys = [*_keys_of_own_loop(experiment), *(key for key in Schedule.model_fields if key in named and key not in OWN_TRAINER_SCHEDULE)]
    if not keys:
        return ""
    return f"{keys[0]}: {name} trains by its own loop, {_reason(keys[0])}; remove `{keys[0]}`. {_APART}"


def _keys_of_own_loop(experiment: "Experiment") -> list[str]:
    """Keys that the experiment has and that mean something in our own loop alone."""
    workers, loader = experiment.workers, experiment.loader
    found: dict[str, bool] = {
        **dict.fromkeys(map(str, experiment.own_sources), True),
        "workers.max": workers.is_elastic,
        "workers.count": workers.most > 1,
        "pretrained_weights": experiment.pretrained_weights is not None,
        "loader.placement": loader.placement != "local",
        "loader.most": loader.most is not None,
        "checkpoint.every_minutes": experiment.checkpoint.every_minutes is not None,
        "deterministic": experiment.deterministic,
    }
    return [key for key, is_there in found.items() if is_there]


def _reason(key: str) -> str:
    reasons = {
        "workers.max": "with one worker",
        "workers.count": "with one worker",
        "pretrained_weights": "which begins with the weights that the class itself gives its network",
        "loader.placement": "whose loaders are processes beside its worker",
        "loader.most": "with a fixed number of loader processes, `loader.actors`",
        "checkpoint.every_minutes": "which is saved at the end of its epochs",
        "deterministic": "whose samples no seed repeats",
    }
    parts = "which has network, loss and augmentation of the class"
    return reasons.get(key, parts if key in ("network", "loss", "recipe") else "whose class sets it itself")
