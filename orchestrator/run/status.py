"""What a user sees of a run, and how a user names one."""

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from trainers.contract.errors import ConfigError
from trainers.contract.names import canonical_trainer, nearest
from trainers.contract.run_spec import CheckpointName
from trainers.contract.states import RunState


class CasesDone(BaseModel):
    """How far the full validation of one checkpoint is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: CheckpointName
    done: int
    cases: int


class RunStatus(BaseModel):
    """Where one run stands. As JSON it is what the campaign prints and what scripts read."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants", populate_by_name=True, serialize_by_alias=True)

    run_key: str
    address: str
    """Dataset number/configuration/trainer/fold."""
    campaign: str
    state: RunState = RunState.QUEUED
    num_drivers: int = Field(0, alias="attempt")
    """How often a training job of the run was started."""
    epochs_done: int = 0
    epochs: int
    phase: str = ""
    """`train` or `val` while an epoch runs."""
    fraction_of_epoch: float = 0.0
    ema_pseudo_dice: float | None = None
    """Of the last epoch; pseudo-Dice is counted on patches and is no Dice of whole cases."""
    best_ema_pseudo_dice: float | None = None
    epoch_s: float | None = None
    """Median of the last epochs, in seconds."""
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
    run_folder: Path


class Names(NamedTuple):
    """What a run is called."""

    run_key: str
    address: str
    mlflow_run_id: str


def meant(wanted: str, names: Sequence[Names]) -> list[int]:
    """Which of the runs may be called `wanted`, as indices: those of this run key or MLflow run id, else of this address, else those whose
    key or id begins so. Raises ConfigError for an empty name, which would mean every run.
    """
    if not wanted.strip(" /"):
        raise ConfigError("run: its name is empty. Name the run by its run key, a beginning of it, its address or its MLflow run id.")
    address = canonical_address(wanted)
    return (
        [i for i, name in enumerate(names) if wanted in (name.run_key, name.mlflow_run_id)]
        or [i for i, name in enumerate(names) if name.address == address]
        or [i for i, name in enumerate(names) if name.run_key.startswith(wanted) or name.mlflow_run_id.startswith(wanted)]
    )


def canonical_address(text: str) -> str:
    """An address as `RunSpec.address` writes it, from what people write: `017/...`, `Dataset017_X/...`, `da5` for the trainer, `fold_0`."""
    parts = text.strip(" /").split("/")
    if len(parts) != 4:
        return text.strip(" /")
    dataset, configuration, trainer, fold = parts
    number = re.fullmatch(r"(?:Dataset)?(\d+)(?:_.*)?", dataset)
    with contextlib.suppress(ConfigError):
        trainer = canonical_trainer(trainer)
    return "/".join([str(int(number[1])) if number else dataset, configuration, trainer, fold.removeprefix("fold_")])


def match(wanted: str, statuses: Sequence[RunStatus]) -> RunStatus:
    """The one run called `wanted` (see `meant`).

    Raises ConfigError with the candidates when none or several are meant.
    """
    found = [statuses[i] for i in meant(wanted, [Names(s.run_key, s.address, s.mlflow_run_id) for s in statuses])]
    keys = list(dict.fromkeys(s.run_key for s in found))
    if len(keys) == 1:
        return found[-1]
    if keys:
        raise ConfigError(f"run: {wanted!r} may be any of {', '.join(keys)}. Name it by its run key.")
    known = list(dict.fromkeys(s.run_key for s in statuses))
    listed = ", ".join(f"{s.address} ({s.run_key})" for s in statuses[:20]) or "none"
    hint = nearest(wanted, [*known, *(s.address for s in statuses)])
    raise ConfigError(f"run: there is no run {wanted!r} on this cluster.{hint} Known: {listed}.")
