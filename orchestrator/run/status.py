"""What a user sees of a run."""

import math
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.run.names import Names, resolve_all, resolve_one
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import WeightsName
from trainers.contract.states import RunState

PLACE = "on this cluster"
TRAINING_CASES = "training cases"
"""Of which fold `all` has its full Dice: it is trained on every case that it validates."""


class CasesDone(BaseModel):
    """How far the full validation of one checkpoint is."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    checkpoint: WeightsName
    done: int
    cases: int


class RunStatus(BaseModel):
    """Where one run stands. As JSON it is what the campaign prints and what scripts read; what a newer campaign adds is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants", populate_by_name=True, serialize_by_alias=True)

    run_key: str
    address: str
    """Dataset number/configuration/trainer/fold, as `RunSpec.address` writes it."""
    campaign: str
    state: RunState = RunState.QUEUED
    num_drivers: int = Field(0, alias="attempt")
    """How often a training job of the run was started."""
    epochs_done: int = 0
    epochs: int
    """Those of its schedule, or fewer once an early end that was asked for has taken effect."""
    early_end: str = Field("", exclude_if=lambda text: not text)
    """Of a run that ends early, as somebody asked: after how many epochs of how many, and how the learning rate goes."""
    phase: str = ""
    """`train` or `val` while an epoch runs."""
    fraction_of_epoch: float = 0.0
    ema_pseudo_dice: float | None = None
    """Of the last epoch; pseudo-Dice is counted on patches and is no Dice of whole cases."""
    best_ema_pseudo_dice: float | None = None
    epoch_s: float | None = None
    """Median of the last epochs, in seconds."""
    limited_by: str = Field("", exclude_if=lambda text: not text)
    """What limited the last epochs, by `trainers/contract/bottleneck.py`; empty where it was not measured."""
    limit_advice: str = Field("", exclude_if=lambda text: not text)
    """What to change so that the steps do not wait for data; empty where they do not."""
    seconds_left: float | None = None
    """Of the training, without its validation."""
    reason: str = ""
    """Why the run waits, or how it failed and what to do."""
    since_unix: float = 0.0
    """When it came into this state."""
    mlflow_run_id: str = ""
    mlflow_url: str = ""
    validation: CasesDone | None = None
    """While the full validation runs."""
    full_dice: dict[str, float] = {}
    """Mean foreground Dice over whole cases per checkpoint (`best`, `final`), once validated."""
    own_code: str = Field("", exclude_if=lambda text: not text)
    """The user's code that it is trained by, with the SHA-256 of its files; empty where there is none, and until the run has begun."""
    begun_unix: float = Field(0.0, exclude_if=lambda unix: not unix)
    """When its first epoch began; before that has ended, when it was taken up; 0 where it ended without one."""
    full_dice_of: str = Field("", exclude_if=lambda text: not text)
    """`training cases` where the full Dice is of these, so of fold `all`; else empty."""
    run_folder: Path
    is_claimed: bool = Field(True, exclude=True)
    """False for a run whose campaign could not begin: it never took possession of the folder. Known where it is shown alone."""

    @property
    def model(self) -> str:
        """The model that the run is a fold of: its address without the fold."""
        return self.address.rpartition("/")[0]

    @property
    def fold(self) -> str:
        """`0`, or `all`."""
        return self.address.rpartition("/")[2]

    @property
    def full_dice_texts(self) -> list[str]:
        """`full Dice of final 0.912` for each checkpoint, for users."""
        of = f" (of its {TRAINING_CASES})" if self.fold == "all" else ""
        return [f"full Dice of {name} {'-' if math.isnan(dice) else f'{dice:.3f}'}{of}" for name, dice in sorted(self.full_dice.items())]

    @property
    def names(self) -> Names:
        """By what a user may name it."""
        return Names(self.run_key, self.address, self.mlflow_run_id, str(self.run_folder))


def match(wanted: str, statuses: Sequence[RunStatus], *, left: Sequence[str] = ()) -> RunStatus:
    """The one run called `wanted` (see `resolve`). Raises ConfigError with the candidates for none or several."""
    return statuses[resolve_one(wanted, [status.names for status in statuses], PLACE, left=left)]


def match_all(wanted: Sequence[str], statuses: Sequence[RunStatus], *, hints: bool = True, left: Sequence[str] = ()) -> list[RunStatus]:
    """The runs that any of `wanted` means, each once. Raises ConfigError for a name that means none; with a suggestion if it `hints`,
    and with the run folders that are `left`."""
    return [statuses[i] for i in resolve_all(wanted, [status.names for status in statuses], PLACE, hints=hints, left=left)]


def without_removed(statuses: Sequence[RunStatus]) -> list[RunStatus]:
    """Without the runs that have ended and whose folders were removed since; one that failed stays, with that as a part of its reason.

    A folder is taken for removed where that of its dataset is there: else the disk may merely be away.
    """
    found = []
    for status in statuses:
        if not (status.is_claimed and status.state.is_final and is_removed(status.run_folder)):
            found.append(status)
        elif status.state.is_failure:
            found.append(status.model_copy(update={"reason": f"its run folder was removed since. {status.reason}".rstrip()}))
    return found


def is_removed(run_folder: Path) -> bool:
    """True where what was noted of a run is seen to be missing, and the disk that held it is there: one behind a link may be away."""
    if len(run_folder.parents) < 2 or not run_folder.parents[1].name.startswith("Dataset") or not run_folder.parents[1].is_dir():
        return False
    try:
        RunFolder(run_folder).spec_file.stat()
    except OSError as err:
        return isinstance(err, FileNotFoundError) and not (run_folder.is_symlink() or run_folder.parent.is_symlink())
    return False


def cannot_finish(status: RunStatus) -> str:
    """Why a run that lives is not asked to end early as a trained run, for users; empty where it is. Pure."""
    if status.state is RunState.VALIDATING:
        return "is trained already and is being validated"
    if status.state is RunState.QUEUED and status.epochs_done == 0:
        return "has trained no epoch yet; `nnfleet stop` takes it out of the queue"
    return ""


def unlike_ends(statuses: Sequence[RunStatus], asked: Sequence[RunStatus], anneal_epochs: int) -> list[str]:
    """A warning for each model of whose folds those `asked` to end early now would end after other numbers of epochs than the rest.

    Of the fold that ends first and the one that ends last; a fold that was stopped or has failed has no end yet. Pure.
    """
    keys = {status.run_key for status in asked}
    ends: dict[str, dict[str, int]] = {status.model: {} for status in asked}
    for status in statuses:
        if status.model not in ends or (status.state.is_final and status.state is not RunState.SUCCEEDED):
            continue
        early = min(status.epochs, status.epochs_done + 1 + anneal_epochs)
        ends[status.model][str(status.run_folder)] = early if status.run_key in keys else status.epochs
    return [
        f"The folds of {model} end after unlike numbers of epochs ({min(found.values())} to {max(found.values())}): their model can then "
        "neither be exported nor compared; folds that are asked one by one, each at the same epoch, end alike."
        for model, found in ends.items()
        if len(set(found.values())) > 1
    ]
