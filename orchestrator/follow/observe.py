"""What a campaign sees of one run: reads its folder and the list of jobs. Decides nothing (`next_step.py`), shows nothing (`render.py`)."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from orchestrator.follow.first_stage import FirstStageRun
from orchestrator.follow.next_step import Facts, is_trained
from orchestrator.follow.render import Reading, waits_for_storage, workers_failed, workers_silent
from orchestrator.run.activity import cases_done, owner_of
from orchestrator.run.clock import Clock
from orchestrator.run.failure import newest_failure
from orchestrator.run.heartbeat import PROBE_AFTER_S, SILENT_S, ChangeWatch
from orchestrator.run.job_record import JobRecord
from orchestrator.run.outcome import read_outcome
from orchestrator.run.progress import begun_or_taken_unix, full_dice
from orchestrator.run.status import is_removed
from orchestrator.run.undelivered import undelivered_text
from orchestrator.tracking.end_state import final_state
from trainers.contract.cascade import first_stage_folder, previous_predictions, read_record
from trainers.contract.commits import CommitReader, Committed, epochs_of
from trainers.contract.fencing import count_drivers, newest_token
from trainers.contract.records import Heartbeat, read_heartbeat
from trainers.contract.requests import PauseRequest, end_pause, read_pause_request, read_stop_request, withdraw_pause
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec, made_by
from trainers.contract.states import RunState
from trainers.contract.storage_notice import StorageWait, storage_wait_seen
from trainers.errors import DataError, StorageError
from trainers.storage.files import check_takes


@dataclass
class Observer:
    """Reads one run at each look. It remembers what need not be read again, and what a later look could not see any more."""

    spec: RunSpec
    earlier: frozenset[str] = frozenset()
    """Jobs that had ended, or were ending, when the campaign began: they do not count as its failures."""
    continues_after_stop: bool = False
    """Submitted again while a job still ends on an earlier stop request: that end is not this campaign's."""
    validates_again: bool = False
    """Its validation was asked for while an earlier one still ended: that end is not this campaign's."""
    is_trained: bool = False
    """Its training was seen to be done: whatever becomes of its folder, it is not trained again by this campaign."""
    clock: Clock = field(default=Clock(), repr=False)
    pause: PauseRequest | None = None
    """Its campaign asks it to pause, or has paused it."""
    is_paused: bool = False
    """As `Facts` has it."""
    reassigned_to: str = ""
    """The other run that has the folder now; nothing may be written there then."""
    _removed_since_s: float | None = field(default=None, repr=False)
    """Since when the folder of a trained run is seen to be removed, by the monotonic clock."""
    _spec_mark: tuple[int, int] = field(default=(0, 0), repr=False)
    _commits: CommitReader = field(init=False, repr=False)
    _heard: ChangeWatch = field(default=ChangeWatch(), repr=False)
    """The last heartbeat."""
    _storage_wait: StorageWait | None = field(default=None, repr=False)
    """Of its living job."""
    _probed_s: float = field(default=-math.inf, repr=False)
    """When this campaign last tried whether the disk takes a file, by the monotonic clock."""
    _validated_token: int = field(default=0, repr=False)
    """Fencing token of the training that is being validated."""
    _cases: frozenset[tuple[str, int]] | None = field(default=None, repr=False)
    """Results of cases, with the times of their files, when a validation job was last seen to have ended, or first seen to live."""
    _has_validated: dict[str, bool] = field(default_factory=dict, repr=False)
    """By validation job that has ended: whether it finished a case."""
    _drivers: tuple[int, int] = field(default=(0, 0), repr=False)
    """Newest fencing token, and how many drivers had acquired one by then."""

    def __post_init__(self) -> None:
        self._commits = CommitReader(self.folder)

    @property
    def folder(self) -> RunFolder:
        """The run's folder."""
        return RunFolder(self.spec.run_folder)

    def refresh_spec(self) -> None:
        """Follow what run.json holds now: another campaign may have given the run other workers while no job of it lived, or may have
        reassigned the folder to another run."""
        with contextlib.suppress(OSError, DataError, StorageError):  # a folder that has gone is the affair of its jobs
            stat = self.folder.spec_file.stat()
            mark = (stat.st_ino, stat.st_mtime_ns)
            if mark != self._spec_mark:
                present = self.folder.spec()
                self.reassigned_to = present.run_key if present.run_key != self.spec.run_key else ""
                self.spec, self._spec_mark = self.spec if self.reassigned_to else present, mark

    def facts(self, jobs: Sequence[JobRecord]) -> Facts:
        """What `next_step` decides by. `jobs` were listed before this call: whatever a job wrote before it ended is then visible."""
        here = (str(self.folder.root), self.spec.run_key)
        own = tuple(job for job in jobs if (job.run_folder, job.run_key) == here and job.kind in ("train", "validate"))
        if self.reassigned_to:
            return Facts(jobs=own, reassigned_to=self.reassigned_to)
        committed = self.committed()
        outcome, stop = read_outcome(self.folder), read_stop_request(self.folder)
        self.pause = read_pause_request(self.folder) if self.spec.halving is not None else None
        facts = Facts(
            jobs=own,
            outcome=outcome,
            stop=None if stop is not None and outcome is not None and is_trained(outcome) and not stop.is_for_validation else stop,
            pause=self.pause,
            earlier=self.earlier,
            committed_token=committed.fencing_token if committed is not None else 0,
            has_validated=self._jobs_that_validated(own),
        )
        facts = self._past_earlier_ends(facts)
        self.is_paused = facts.is_paused
        self.is_trained = self.is_trained or (facts.outcome is not None and is_trained(facts.outcome))
        if not any(job.is_live for job in own):
            if (removed_s := self._removed_for_s()) is not None:
                return replace(facts, removed_s=removed_s)
            self._check_training_is_there()
        if facts.is_superseded:
            facts = replace(facts, owner=str(owner_of(self.folder) or "another cluster"))
        validation, training = facts.live("validate"), facts.live("train")
        self._validated_token = validation.job_number if validation else 0
        if training is not None:
            return self._with_workers(facts, training)
        self._storage_wait = storage_wait_seen(self.folder, self._validated_token) if validation else None
        return replace(facts, trouble=waits_for_storage(self._storage_wait) if self._storage_wait else "")

    def _removed_for_s(self) -> float | None:
        """For how long the folder of a run that was trained is seen to be removed; None: it is not. Raises OSError."""
        if not self._lacks_training() or not is_removed(self.folder.root):
            self._removed_since_s = None
            return None
        now_s = self.clock.monotonic()
        self._removed_since_s = now_s if self._removed_since_s is None else self._removed_since_s
        return now_s - self._removed_since_s

    def _lacks_training(self) -> bool:
        """Whether the end of a training that was done is not to be seen any more: its folder was moved, or its share is away."""
        return self.is_trained and not self.folder.outcome_file.is_file()

    def _check_training_is_there(self) -> None:
        """Raise StorageError where a training that was done is not to be seen: nothing begins anew for it."""
        if self._lacks_training():
            is_gone = self._removed_since_s is not None
            cure = "within an hour of its removal; after that the run ends" if is_gone else "or mount its share"
            raise StorageError(
                f"storage: {self.folder.outcome_file} is not there, and the run was trained: it is validated when its folder is back, and "
                f"not trained again. Bring the folder back, {cure}."
            )

    def _past_earlier_ends(self, facts: Facts) -> Facts:
        """Without the end of a job that had been asked to stop, or that validated as asked earlier, before the run was submitted again."""
        if facts.stop is not None:
            self.take_up()  # somebody wants it stopped after all
        outcome = facts.outcome
        if outcome is None:
            return facts
        has_validated = outcome.job == "validation"
        is_earlier = (self.continues_after_stop and outcome.state == "STOPPED") or (self.validates_again and has_validated)
        if not is_earlier:
            return facts
        return replace(facts, outcome=outcome.model_copy(update={"state": "TRAINED"}) if has_validated else None)

    @property
    def ignores_an_end(self) -> bool:
        """The run's outcome may be one that this campaign does not go by."""
        return self.continues_after_stop or self.validates_again

    def take_up(self) -> None:
        """From now on every end of a job is this campaign's."""
        self.continues_after_stop = self.validates_again = False

    def end_pause(self) -> None:
        """It goes on. Raises StorageError or OSError."""
        end_pause(self.folder)
        self.pause = None

    def withdraw_pause(self) -> None:
        """Nobody needs its workers any more. Raises OSError."""
        withdraw_pause(self.folder)
        self.pause = None

    def _with_workers(self, facts: Facts, job: JobRecord) -> Facts:
        """What the folder holds of the workers of a living training job. Fencing tokens decide, never time stamps."""
        heartbeat, failure = read_heartbeat(self.folder), newest_failure(self.folder)
        alive, failed = heartbeat.fencing_token, failure.fencing_token if failure is not None else 0
        broken = [one for one in facts.ended("train") if one.state != "SUCCEEDED"]  # one that succeeded was paused
        is_first = not broken and max(alive, failed) < job.job_number
        is_fresh = is_first or (alive >= max(newest_token(self.folder), job.job_number) and failed < alive)
        self._heard = self._heard.seen(heartbeat, self.clock)
        self._storage_wait = self._wait_for_storage(max(newest_token(self.folder), job.job_number))
        if self._storage_wait is not None:
            trouble = waits_for_storage(self._storage_wait)
        elif not is_fresh:
            trouble = workers_failed(failure) if failure is not None and failed >= job.job_number else ""
        else:
            trouble = self._silence(heartbeat) if alive >= job.job_number else ""
        return replace(facts, is_progress_fresh=is_fresh, has_begun=alive >= job.job_number, trouble=trouble)

    def _silence(self, heartbeat: Heartbeat) -> str:
        """A sentence once the workers have sent no heartbeat for long."""
        return workers_silent(self._heard.since_unix, heartbeat) if self._heard.unchanged_s(self.clock) >= SILENT_S else ""

    def _wait_for_storage(self, fencing_token: int) -> StorageWait | None:
        """What the workers say that they wait for, or where they say nothing for long, what the disk answers to this process."""
        if (wait := storage_wait_seen(self.folder, fencing_token)) is not None:
            return wait
        now_s = self.clock.monotonic()
        if self._heard.unchanged_s(self.clock) < PROBE_AFTER_S:
            return None
        if now_s - self._probed_s < PROBE_AFTER_S:
            return self._storage_wait
        self._probed_s = now_s
        try:
            check_takes(self.folder.own, size_bytes=1)
        except StorageError as err:
            return StorageWait(fencing_token=fencing_token, since_unix=self._heard.since_unix, because=str(err))
        return None

    def _jobs_that_validated(self, own: Sequence[JobRecord]) -> frozenset[str]:
        """Which validation jobs that have ended finished a case, as far as it was seen."""
        validations = [job for job in own if job.kind == "validate" and job.submission_id not in self.earlier]
        ended = [job.submission_id for job in validations if not job.is_live and job.submission_id not in self._has_validated]
        if validations and (ended or self._cases is None):
            cases = frozenset((str(path), path.stat().st_mtime_ns) for path in self.folder.own.glob("cases/*/*.json"))
            for submission_id in ended:
                self._has_validated[submission_id] = self._cases is not None and bool(cases - self._cases)
            self._cases = cases
        return frozenset(submission_id for submission_id, is_so in self._has_validated.items() if is_so)

    def next_job_number(self, jobs: Sequence[JobRecord]) -> int:
        """A number for the next training job, above those of its jobs and every fencing token: the same for everyone who looks now."""
        submitted = [job.job_number for job in jobs if job.run_key == self.spec.run_key and job.kind == "train"]
        return max([newest_token(self.folder), *submitted]) + 1

    def reading(self, state: RunState) -> Reading:
        """What the status of a run in `state` takes from its folder, read now. Raises StorageError or OSError."""
        if not state.is_final and not self.folder.spec_file.is_file():
            self._check_training_is_there()
        committed = None if self.reassigned_to else self.committed()
        has_all_epochs = committed is not None and committed.epochs_done >= epochs_of(self.spec, committed)
        is_scored = (has_all_epochs or state.is_final) and not self.reassigned_to
        return Reading(
            committed=committed,
            begun_unix=0.0 if self.reassigned_to else begun_or_taken_unix(self.folder, committed),
            heartbeat=read_heartbeat(self.folder) if state in (RunState.RUNNING, RunState.RECOVERING) else Heartbeat(),
            num_drivers=self._count_drivers(),
            validation=cases_done(self.folder, self._validated_token) if state is RunState.VALIDATING else None,
            full_dice=full_dice(self.folder, self.spec) if is_scored else {},
            undelivered="" if self.reassigned_to else undelivered_text(self.folder, has_ended=state.is_final),
            is_waiting=self._storage_wait is not None,
        )

    def committed(self) -> Committed | None:
        """The newest commit."""
        return self._commits.newest()

    def _count_drivers(self) -> int:
        """How many drivers the run has had; the tokens' files are read again only when there is a new one."""
        newest = newest_token(self.folder)
        if newest != self._drivers[0]:
            self._drivers = (newest, count_drivers(self.folder))
        return self._drivers[1]


def ended_without(spec: RunSpec) -> dict[str, FirstStageRun]:
    """The runs, by run key, that ended without a segmentation that a run of a second stage needs, as their folders show it.

    Raises StorageError or OSError.
    """
    stage = spec.previous_stage
    if stage is None:
        return {}
    place = previous_predictions(spec, stage.configuration)
    lacking = {source for case, source in stage.sources.items() if read_record(place, case) is None}
    found = {}
    for path in sorted(first_stage_folder(spec, stage.configuration).glob("fold_*")) if lacking else ():
        with contextlib.suppress(DataError):  # no run, or a broken one: what is lacking is named when its job begins
            run, outcome = RunFolder(path).spec(), read_outcome(RunFolder(path))
            end = final_state(outcome)
            if outcome is not None and end is not None and end is not RunState.SUCCEEDED and made_by(run.run_key) in lacking:
                found[run.run_key] = FirstStageRun(run.model, run.address, end, outcome.message)
    return found
