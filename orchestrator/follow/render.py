"""How a run is shown to users: its status as one value, the sentences about its workers, and which changes are worth an event. Pure."""

import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.run.failure import Failure
from orchestrator.run.status import TRAINING_CASES, CasesDone, RunStatus
from trainers.contract.bottleneck import limit_of
from trainers.contract.commits import RECENT_EPOCHS, Committed, early_end_of, epochs_of
from trainers.contract.records import Heartbeat
from trainers.contract.run_spec import RunSpec
from trainers.contract.storage_notice import StorageWait

FINEST_FRACTION = 0.1
"""Steps in which the progress within an epoch is shown."""
MIN_REPORT_INTERVAL_S = 5.0
"""Least time between two events of a run that only show how far it is within an epoch."""


@dataclass(frozen=True)
class Reading:
    """What a status takes from the run's folder."""

    committed: Committed | None = None
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    begun_unix: float = 0.0
    """As `begun_or_taken_unix`."""
    num_drivers: int = 0
    validation: CasesDone | None = None
    full_dice: Mapping[str, float] = field(default_factory=dict)
    undelivered: str = ""
    """What MLflow does not take at present, and why."""
    is_waiting: bool = False
    """A job of it waits for its disk."""


def with_reading(status: RunStatus, spec: RunSpec, reading: Reading) -> RunStatus:
    """`status`, which knows what the campaign knows of the run, with what its folder holds."""
    committed = reading.committed
    done = committed.epochs_done if committed else 0
    phase, fraction = within_epoch(reading.heartbeat, spec, done)
    rows = committed.history[-RECENT_EPOCHS:] if committed else ()
    epoch_s = round(statistics.median(row.epoch_s for row in rows), 3) if rows else None
    limit = limit_of(rows, spec.loader.placement)
    begun, epochs = spec.continued.text if spec.continued else spec.inexactness, epochs_of(spec, committed)
    early = early_end_of(spec, committed)
    early_sentence = f"{'Ends' if done < epochs else 'Ended'} early, as asked: {early}." if early else ""
    left_s = None if epoch_s is None else max(0.0, (epochs - done - fraction) * epoch_s)
    read: dict[str, Any] = {
        "num_drivers": reading.num_drivers,
        "epochs_done": done,
        "epochs": epochs,
        "early_end": early,
        "phase": phase,
        "fraction_of_epoch": fraction,
        "ema_pseudo_dice": committed.best_policy.ema if committed else None,
        "best_ema_pseudo_dice": committed.best_policy.score if committed else None,
        "epoch_s": epoch_s,
        "limited_by": limit.name if limit else "",
        "limit_advice": limit.advice if limit else "",
        "seconds_left": None if left_s is None or status.state.is_final or reading.is_waiting else round(left_s, 1),
        "validation": reading.validation,
        "full_dice": dict(reading.full_dice),
        "own_code": spec.own.text,
        "begun_unix": reading.begun_unix,
        "full_dice_of": TRAINING_CASES if spec.fold == "all" and reading.full_dice else "",
        "reason": " ".join(part for part in (begun, early_sentence, status.reason, reading.undelivered) if part),
    }
    return status.model_copy(update=read)


def within_epoch(heartbeat: Heartbeat, spec: RunSpec, done: int) -> tuple[str, float]:
    """Phase and share of the epoch in flight; nothing when the last heartbeat is of an epoch that is done."""
    if heartbeat.epoch != done:
        return "", 0.0
    schedule, phase = spec.schedule, heartbeat.phase
    iterations = heartbeat.iteration + (schedule.train_iterations if phase == "val" else 0)
    whole = schedule.train_iterations + schedule.val_iterations
    steps = int(min(1.0, iterations / whole) / FINEST_FRACTION + 1e-9)
    return phase, round(steps * FINEST_FRACTION, 3)


def workers_failed(failure: Failure) -> str:
    """The newest failed start of the workers, in a sentence."""
    message = failure.message.split("\n", 1)[0][:300]
    return f"its workers failed in {failure.where} ({failure.kind}: {message}); restarts them once resources for all are free."


def workers_silent(since_unix: float, heartbeat: Heartbeat) -> str:
    """That the workers have sent no heartbeat for long, in a sentence."""
    since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(since_unix))
    return f"no heartbeat from its workers since {since} (epoch {heartbeat.epoch}, {heartbeat.phase})."


def waits_for_storage(wait: StorageWait) -> str:
    """That a job waits for its disk, in a sentence or two."""
    since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(wait.since_unix))
    return f"waits since {since}. {wait.because}"


def changes(before: RunStatus | None, now: RunStatus) -> dict[str, Any]:
    """The run's key and the fields that are new: what a log of a thousand epochs can bear. `CampaignLog` puts them together again."""
    fields = json.loads(now.model_dump_json())
    known = {} if before is None else json.loads(before.model_dump_json())
    emptied = {key: RunStatus.model_fields[key].default for key in known if key not in fields}  # which are left out while they are empty
    new = {key: value for key, value in fields.items() if key == "run_key" or key not in known or known[key] != value}
    return new | emptied


def is_news(reported: RunStatus | None, now: RunStatus, since_reported_s: float) -> bool:
    """Whether a status is worth an event: any change, but progress within an epoch or a validation only every few seconds."""
    if reported is None or since_reported_s >= MIN_REPORT_INTERVAL_S:
        return reported != now
    progress = {"phase": "", "fraction_of_epoch": 0.0, "seconds_left": None, "validation": None}
    return reported.model_copy(update=progress) != now.model_copy(update=progress)
