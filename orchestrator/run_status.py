"""What a user sees of a run, and how a user names one."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from trainers.spec.errors import ConfigError
from trainers.spec.names import nearest
from trainers.spec.states import RunState


class RunStatus(BaseModel):
    """Where one run stands. As JSON it is what the campaign prints and what scripts read."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    run_key: str
    address: str
    """Dataset number/configuration/trainer/fold."""
    campaign: str
    state: RunState = RunState.QUEUED
    attempt: int = 0
    """Newest attempt that was claimed."""
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
    full_dice: dict[str, float] = {}
    """Mean foreground Dice over whole cases per checkpoint (`best`, `final`), once validated."""
    run_folder: Path


def match(wanted: str, statuses: Sequence[RunStatus]) -> RunStatus:
    """The one run called `wanted`: its run key, a beginning of it that no other run shares, its address, or its MLflow run id.

    Raises ConfigError with the candidates when none or several are meant.
    """
    exact = [s for s in statuses if wanted in (s.run_key, s.mlflow_run_id)]
    address = wanted.strip("/")
    found = exact or [s for s in statuses if s.address == address] or [s for s in statuses if s.run_key.startswith(wanted)]
    keys = list(dict.fromkeys(s.run_key for s in found))
    if len(keys) == 1:
        return found[-1]
    if keys:
        raise ConfigError(f"run: {wanted!r} may be any of {', '.join(keys)}. Name it by its run key.")
    known = list(dict.fromkeys(s.run_key for s in statuses))
    listed = ", ".join(f"{s.address} ({s.run_key})" for s in statuses[:20]) or "none"
    hint = nearest(wanted, [*known, *(s.address for s in statuses)])
    raise ConfigError(f"run: there is no run {wanted!r} on this cluster.{hint} Known: {listed}.")
