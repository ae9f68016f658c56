"""One run of a campaign: what is read from its folder and from the list of jobs, and what is told of it."""

import contextlib
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.campaign.next_step import Facts
from orchestrator.run.activity import cases_done, owner_of
from orchestrator.run.clock import Clock
from orchestrator.run.failure import Failure, newest_failure
from orchestrator.run.heartbeat import SILENT_S, ChangeWatch
from orchestrator.run.job_record import JobRecord
from orchestrator.run.outcome import read_outcome
from orchestrator.run.status import RunStatus
from orchestrator.tracking.binding import TrackedRun
from trainers.contract.commits import Committed, newest_commit_file, newest_committed
from trainers.contract.errors import DataError, StorageError
from trainers.contract.fencing import count_drivers, newest_token
from trainers.contract.records import Heartbeat, read_heartbeat
from trainers.contract.requests import read_stop_request
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.contract.states import RunState

EPOCHS_FOR_SPEED = 9
FINEST_FRACTION = 0.1
"""Steps in which the progress within an epoch is told."""


@dataclass
class RunWatch:
    """A run with the state that this campaign last gave it."""

    spec: RunSpec
    campaign: str
    earlier: frozenset[str] = frozenset()
    """Jobs that had ended, or were ending, when the campaign began: they do not count as its failures."""
    tracked: TrackedRun = field(default_factory=TrackedRun)
    state: RunState = RunState.QUEUED
    reason: str = ""
    changed_unix: float = 0.0
    resumes: bool = False
    """Submitted again while a job still ends on an earlier wish to stop: that end is not this campaign's."""
    reassigned_to: str = ""
    """The other run that has the folder now; nothing may be written there then."""
    clock: Clock = field(default=Clock(), repr=False)
    _heard: ChangeWatch = field(default=ChangeWatch(), repr=False)
    """The last heartbeat."""
    _validated_token: int = field(default=0, repr=False)
    """The attempt that is being validated."""
    _cases: frozenset[tuple[str, int]] | None = field(default=None, repr=False)
    """Results of cases, with the times of their files, when a validation job was last seen to have ended, or first seen to live."""
    _has_validated: dict[str, bool] = field(default_factory=dict, repr=False)
    """By validation job that has ended: whether it finished a case."""
    _spec_mark: tuple[int, int] = field(default=(0, 0), repr=False)
    _drivers: tuple[int, int] = field(default=(0, 0), repr=False)
    """Newest attempt, and how many drivers had claimed one by then."""
    _end: RunStatus | None = field(default=None, repr=False)
    """What was told of a run that has ended: its folder is not read again."""
    _seen: tuple[Path | None, Committed | None] = field(default=(None, None), repr=False)

    @property
    def folder(self) -> RunFolder:
        """The run's folder."""
        return RunFolder(self.spec.run_folder)

    def facts(self, jobs: Sequence[JobRecord]) -> Facts:
        """What `next_step` decides by. `jobs` were listed before this call: whatever a job wrote before it ended is then visible."""
        here = (str(self.folder.root), self.spec.run_key)
        own = tuple(job for job in jobs if (job.run_folder, job.run_key) == here and job.kind in ("train", "validate"))
        if self.reassigned_to:
            return Facts(jobs=own, reassigned_to=self.reassigned_to)
        committed = self._committed()
        facts = Facts(
            jobs=own,
            outcome=read_outcome(self.folder),
            stop=read_stop_request(self.folder),
            earlier=self.earlier,
            committed_token=committed.fencing_token if committed is not None else 0,
            has_validated=self._validating(own),
        )
        if self.resumes and facts.stop is not None:
            self.resumes = False  # somebody wants it stopped after all
        if self.resumes and facts.outcome is not None and facts.outcome.state == "STOPPED":
            is_trained = facts.outcome.job == "validation"
            facts = replace(facts, outcome=facts.outcome.model_copy(update={"state": "TRAINED"}) if is_trained else None)
        if facts.is_superseded:
            facts = replace(facts, owner=str(owner_of(self.folder) or "another cluster"))
        validation = facts.live("validate")
        self._validated_token = validation.job_number if validation else 0
        job = facts.live("train")
        return facts if job is None else self._with_heartbeat(facts, job)

    def _with_heartbeat(self, facts: Facts, job: JobRecord) -> Facts:
        """What the folder tells of the workers of a living training job. Numbers of attempts decide, never time stamps."""
        heartbeat, failure = read_heartbeat(self.folder), newest_failure(self.folder)
        lives, failed = heartbeat.fencing_token, failure.fencing_token if failure is not None else 0
        is_first = not facts.ended("train") and max(lives, failed) < job.job_number
        is_fresh = is_first or (lives >= max(newest_token(self.folder), job.job_number) and failed < lives)
        if not is_fresh:
            trouble = _failed(failure) if failure is not None and failed >= job.job_number else ""
        else:
            trouble = self._silence(heartbeat) if lives >= job.job_number else ""
        return replace(facts, is_progress_fresh=is_fresh, has_begun=lives >= job.job_number, trouble=trouble)

    def _silence(self, heartbeat: Heartbeat) -> str:
        """A sentence once the workers have sent no heartbeat for long."""
        self._heard = self._heard.seen(heartbeat, self.clock)
        if self._heard.unchanged_s(self.clock) < SILENT_S:
            return ""
        since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self._heard.since_unix))
        return f"its workers have sent no heartbeat since {since} (epoch {heartbeat.epoch}, {heartbeat.phase})."

    def _validating(self, own: Sequence[JobRecord]) -> frozenset[str]:
        """Which validation jobs that have ended finished a case, as far as it was seen."""
        validations = [job for job in own if job.kind == "validate" and job.submission_id not in self.earlier]
        ended = [job.submission_id for job in validations if not job.is_live and job.submission_id not in self._has_validated]
        if validations and (ended or self._cases is None):
            cases = frozenset((str(path), path.stat().st_mtime_ns) for path in self.folder.own.glob("cases/*/*.json"))
            for submission_id in ended:
                self._has_validated[submission_id] = self._cases is not None and bool(cases - self._cases)
            self._cases = cases
        return frozenset(submission_id for submission_id, is_so in self._has_validated.items() if is_so)

    def refresh_spec(self) -> None:
        """Follow what run.json says now: another campaign may have taken over other workers while no job of the run lived, or have made
        the folder another run's after somebody moved this one's away."""
        with contextlib.suppress(OSError, DataError, StorageError):  # a folder that has gone is the affair of its jobs
            stat = self.folder.spec_file.stat()
            mark = (stat.st_ino, stat.st_mtime_ns)
            if mark != self._spec_mark:
                present = self.folder.spec()
                self.reassigned_to = present.run_key if present.run_key != self.spec.run_key else ""
                self.spec, self._spec_mark = self.spec if self.reassigned_to else present, mark

    def next_job_number(self, jobs: Sequence[JobRecord]) -> int:
        """A number for the next training job that no job and no attempt of this run has had: the same for everyone who looks now."""
        submitted = [job.job_number for job in jobs if job.run_key == self.spec.run_key and job.kind == "train"]
        return max([newest_token(self.folder), *submitted]) + 1

    def enter(self, state: RunState, reason: str = "") -> bool:
        """Take note of a state; True if it is a new one."""
        is_new = state is not self.state or not self.changed_unix
        if is_new:
            self.changed_unix = self.clock.unix()
        self.state, self.reason = state, reason
        return is_new

    def status(self) -> RunStatus:
        """The run as users see it, read from its folder now; of one that has ended, read when it ended. Raises StorageError or OSError."""
        if self._end is not None:
            return self._end
        told = self._read_status()
        self._end = told if self.state.is_final else None
        return told

    def _read_status(self) -> RunStatus:
        committed = None if self.reassigned_to else self._committed()
        heartbeat = read_heartbeat(self.folder) if self.state in (RunState.RUNNING, RunState.RECOVERING) else Heartbeat()
        done = committed.epochs_done if committed else 0
        phase, fraction = _within_epoch(heartbeat, self.spec, done)
        rows = committed.history[-EPOCHS_FOR_SPEED:] if committed else ()
        epoch_s = round(statistics.median(row.epoch_s for row in rows), 3) if rows else None
        is_scored = (done >= self.spec.schedule.epochs or self.state.is_final) and not self.reassigned_to
        left = None if epoch_s is None else max(0.0, (self.spec.schedule.epochs - done - fraction) * epoch_s)
        return RunStatus(
            run_key=self.spec.run_key,
            address=self.spec.address,
            campaign=self.campaign,
            state=self.state,
            num_drivers=self._count_drivers(),
            epochs_done=done,
            epochs=self.spec.schedule.epochs,
            phase=phase,
            fraction_of_epoch=fraction,
            ema_pseudo_dice=committed.best_policy.ema if committed else None,
            best_ema_pseudo_dice=committed.best_policy.score if committed else None,
            epoch_s=epoch_s,
            seconds_left=None if left is None or self.state.is_final else round(left, 1),
            reason=self.reason,
            since_unix=round(self.changed_unix, 3),
            mlflow_run_id=self.tracked.run_id,
            mlflow_url=self.tracked.url,
            validation=cases_done(self.folder, self._validated_token) if self.state is RunState.VALIDATING else None,
            full_dice=full_dice(self.folder, self.spec) if is_scored else {},
            run_folder=self.folder.root,
        )

    def _count_drivers(self) -> int:
        """How many drivers the run has had; the claims are read again only when there is a new one."""
        newest = newest_token(self.folder)
        if newest != self._drivers[0]:
            self._drivers = (newest, count_drivers(self.folder))
        return self._drivers[1]

    def _committed(self) -> Committed | None:
        """The newest commit; a history of a thousand epochs is parsed only when there is a new one."""
        newest = newest_commit_file(self.folder)
        if newest != self._seen[0]:
            self._seen = (newest, newest_committed(self.folder))
        return self._seen[1]


def _failed(failure: Failure) -> str:
    """The newest failed start, in a sentence."""
    message = failure.message.split("\n", 1)[0][:300]
    where = f"epoch {failure.epochs_done}" + (f", iteration {failure.iteration}" if failure.iteration else "")
    return f"its workers were lost in {where} ({failure.kind}: {message}); waits until all of them have a place and begin again."


def full_dice(folder: RunFolder, spec: RunSpec) -> dict[str, float]:
    """Mean foreground Dice over whole cases of each checkpoint that was validated (nan-mean over cases, then over classes)."""
    found: dict[str, float] = {}
    for name in spec.validation.checkpoints:
        try:
            found[name] = float(json.loads((folder.own / f"validation_{name}.json").read_text())["dice_mean"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _within_epoch(heartbeat: Heartbeat, spec: RunSpec, done: int) -> tuple[str, float]:
    """Phase and share of the epoch in flight; nothing when the last heartbeat is of an epoch that is done."""
    if heartbeat.epoch != done:
        return "", 0.0
    schedule, phase = spec.schedule, heartbeat.phase
    iterations = heartbeat.iteration + (schedule.train_iterations if phase == "val" else 0)
    whole = schedule.train_iterations + schedule.val_iterations
    steps = int(min(1.0, iterations / whole) / FINEST_FRACTION + 1e-9)
    return phase, round(steps * FINEST_FRACTION, 3)
