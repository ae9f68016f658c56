"""What a laptop knows of campaigns and their runs: the job server's list, and what campaigns report in their logs."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from orchestrator.campaign.events import CampaignLog, ComparisonMade
from orchestrator.campaign.handed import awaited_runs, current, handed_statuses, stage_of
from orchestrator.cluster.submissions import Stage
from orchestrator.errors import ClusterError, ConfigError, NnfleetError
from orchestrator.experiment.plan import PlanReport
from orchestrator.follow.next_step import death
from orchestrator.run.events import EVENT_PREFIX, AnyEvent, events_in
from orchestrator.run.job_record import HandedRun, JobRecord
from orchestrator.run.status import RunStatus
from orchestrator.tracking.address import masked

if TYPE_CHECKING:
    from pydantic import TypeAdapter

LOG_CHARACTERS_PER_S = 2e6
"""A long log is asked for less often: Ray gives it as a whole each time."""
MAX_SILENCE_S = 60.0
"""How long a cluster may not answer, or a stopped job may take to end, before it is given up."""
STORES_S = 5.0
"""How long a campaign that is withdrawn is looked for: the job server may be storing it at this moment."""
PLAN_FOLLOWS_S = 10.0
"""A campaign reports its runs just before its plan; one that has reported no plan so long after is of another version."""
TAIL = 2000
"""Characters of a dead job's message that an error shows."""


class JobServer(Protocol):
    """What is asked of a cluster here; `orchestrator.cluster.jobs.Jobs` is it."""

    address: str

    def records(self) -> list[JobRecord]: ...
    def find(self, submission_id: str) -> JobRecord: ...
    def logs(self, submission_id: str) -> str: ...
    def stop(self, submission_id: str) -> None: ...


class Follower:
    """Follows the campaigns of one cluster over one connection. Every method raises ClusterError when the cluster does not answer."""

    def __init__(self, jobs: JobServer, *, poll_s: float = 1.0, first_poll_s: float = 0.3) -> None:
        """`first_poll_s`: pause while something is expected at any moment; `poll_s`: while it may take hours."""
        self._jobs = jobs
        self._poll_s = poll_s
        self._first_poll_s = first_poll_s
        self._logs: dict[str, CampaignLog] = {}
        self._complete: set[str] = set()
        """Campaigns that have ended and whose log was read since."""
        self._seen: list[JobRecord] | None = None
        """What `statuses` saw last."""
        self._test_sets: set[str] = set()
        """Jobs of test sets that were alive at a look."""

    def statuses(self, campaign: str | None = None) -> list[RunStatus]:
        """One status of each run, or of those of one campaign: from a living campaign that still follows it, else the newest.

        They stand in the order in which campaigns took them up last: of several runs in one folder the last one owns it. Those
        of campaigns that could not begin come first, as they own nothing. Raises ConfigError for an unknown campaign.
        """
        records = self._seen = self._jobs.records()
        if campaign is not None and not any(job.campaign == campaign for job in records):
            raise ConfigError(
                f"campaign: there is no campaign {campaign!r} on {self._jobs.address}. `nnfleet status` shows those that are."
            )
        ranks: dict[str, tuple[bool, int, float]] = {}
        newest: dict[str, RunStatus] = {}
        for job in records:
            if job.kind != "campaign" or campaign not in (None, job.campaign):
                continue
            followed = {key for key, rank in ranks.items() if rank[0]}
            for key, status in self._shown(job, newest, followed).items():
                rank = (job.is_live and not status.state.is_final, status.num_drivers, status.since_unix)  # clocks jump, drivers only grow
                before = newest.pop(key, None)
                if before is None or rank >= ranks[key]:
                    ranks[key] = rank
                    is_told = job.is_live or status.state.is_final or not self._log_of(job).statuses
                    before = status if is_told else _without_campaign(status, job)
                newest[key] = before
        return sorted(current(newest.values(), records), key=lambda status: status.is_claimed)

    def first_plan(self, submission_id: str, on_wait: Callable[[str], None] | None = None) -> PlanReport:
        """The plan that a campaign reports once it owns its runs. Raises the campaign's own error."""
        plan = self.first_report(submission_id, on_wait, PLAN_FOLLOWS_S).plan
        if plan is None:
            raise NnfleetError(f"campaign: {submission_id} runs another version of nnfleet than this one. Update the older of the two.")
        return plan

    def first_report(self, submission_id: str, on_wait: Callable[[str], None] | None = None, plan_s: float = 0.0) -> CampaignLog:
        """A campaign's log as soon as it holds a plan, or for `plan_s` seconds a state. `on_wait` gets each reason why that takes long.

        Raises the campaign's own error, or ClusterError when it dies before.
        """
        log, reason, state_seen_s = CampaignLog(), "", 0.0
        while True:
            job = self._jobs.find(submission_id)
            log.update(self._jobs.logs(submission_id))
            if on_wait is not None and log.waits != reason:
                reason = log.waits
                on_wait(reason)
            if log.error is not None:
                raise log.error
            if log.statuses:
                state_seen_s = state_seen_s or time.monotonic()
            if log.plan is not None or (state_seen_s and time.monotonic() - state_seen_s >= plan_s):
                return log
            if not job.is_live:
                raise _death_of(job)
            time.sleep(self._first_poll_s)

    def wait(self, campaign_id: str, on_status: Callable[[list[RunStatus]], None] | None = None) -> list[RunStatus]:
        """Return when every run of a campaign has ended; `on_status` gets each new list of states. A cluster may be away for a minute.

        Raises the campaign's own error, or ClusterError when it died.
        """
        submission_id, log = f"campaign-{campaign_id}", CampaignLog()
        shown: list[RunStatus] = []
        silent_since: float | None = None
        while True:
            try:
                job, text = self._jobs.find(submission_id), self._jobs.logs(submission_id)
                silent_since = None
            except ClusterError:
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > MAX_SILENCE_S:
                    raise
                time.sleep(self._poll_s)
                continue
            log.update(text)
            current = list(_runs_of(job, log).values())
            if on_status is not None and current != shown:
                on_status(current)
                shown = current
            if log.error is not None:
                raise log.error
            if log.exit_code is not None:
                return current
            if not job.is_live:
                raise _death_of(job)
            has_ended = bool(current) and all(status.state.is_final for status in current)  # the campaign itself ends in a moment
            time.sleep((self._first_poll_s if has_ended else self._poll_s) + len(text) / LOG_CHARACTERS_PER_S)

    def jobs_of(self, run_key: str) -> list[JobRecord]:
        """The training and validation jobs of a run, oldest first."""
        return [job for job in self._jobs.records() if job.run_key == run_key and job.kind in ("train", "validate")]

    def logs(
        self, run_key: str, campaign: str, *, follow: bool = False, earlier: bool = False, but_training: bool = False
    ) -> Iterator[str]:
        """Text, in whole lines, of a run's newest training job (else of its first job) and of what came after it; see `api.logs`."""
        printed: dict[str, int] = {}
        first = ""
        while True:
            own = self.jobs_of(run_key)
            trainings = [job.submission_id for job in own if job.kind == "train"]
            first = first or (trainings[-1] if trainings and not earlier else "")
            begin = next((i for i, job in enumerate(own) if job.submission_id == first), 0)
            for job in own[begin:]:
                if but_training and job.kind == "train":
                    continue
                text = self._jobs.logs(job.submission_id)
                end = text.rfind("\n") + 1 if follow and job.is_live else len(text)
                if end > (start := printed.get(job.submission_id, 0)):
                    printed[job.submission_id] = end
                    if earlier and not start:
                        yield f"--- {job.submission_id} ({job.state})\n"
                    yield text[start:end]
            if not follow or (not any(job.is_live for job in own) and not self._goes_on(run_key, campaign)):
                return
            time.sleep(self._poll_s)

    def printed(self, submission_id: str, *, follow: bool = False) -> Iterator[str]:
        """What a job has printed, in whole lines; with `follow` as it grows, until it has ended."""
        shown = 0
        while True:
            is_live = self._jobs.find(submission_id).is_live
            text = self._jobs.logs(submission_id)
            end = text.rfind("\n") + 1 if is_live else len(text)
            if end > shown:
                yield text[shown:end]
                shown = end
            if not (follow and is_live):
                return
            time.sleep(self._poll_s)

    def test_sets(self) -> list[JobRecord]:
        """The jobs of test sets that are alive, or were at an earlier look of this follower, as `statuses` saw them last."""
        records = self._jobs.records() if self._seen is None else self._seen
        tests = [job for job in records if job.kind == "test"]
        self._test_sets |= {job.submission_id for job in tests if job.is_live}
        return [job for job in tests if job.submission_id in self._test_sets]

    def comparisons(self) -> list[ComparisonMade]:
        """The newest comparison of each set of models, of the campaigns whose logs `statuses` has read."""
        logs = [self._logs[job.submission_id] for job in self._seen or [] if job.submission_id in self._logs]
        return list({frozenset(made.models): made for log in logs for made in log.comparisons}.values())

    def ending(self, statuses: Iterable[RunStatus]) -> set[str]:
        """Campaigns that lived as `statuses` looked last, though all their runs have ended: they deliver, or compare the models."""
        at_work = {status.campaign for status in statuses if not status.state.is_final}
        return {job.campaign for job in self._seen or [] if job.is_live and job.kind == "campaign"} - at_work

    def has_reported(self, campaign: str) -> bool:
        """True when the campaign owned its runs as `statuses` looked last."""
        return bool(self._logs.setdefault(f"campaign-{campaign}", CampaignLog()).statuses)

    def campaigns(self) -> dict[str, Stage]:
        """The campaigns that `statuses` saw last, and how far each has come."""
        jobs = [job for job in self._seen or [] if job.kind == "campaign"]
        return {job.campaign: stage_of(job, self._logs.get(job.submission_id, CampaignLog())) for job in jobs}

    def awaiting(self, run_keys: Collection[str]) -> dict[str, list[HandedRun]]:
        """The living campaigns that await any of these runs, whose data are being preprocessed, as `statuses` looked last; with all runs
        that each awaits."""
        living = [job for job in self._seen or [] if job.kind == "campaign" and job.is_live]
        found = {job.campaign: awaited_runs(job, self._log_of(job)) for job in living}
        return {campaign: runs for campaign, runs in found.items() if any(run.run_key in run_keys for run in runs)}

    def finish(self, submission_id: str) -> None:
        """Wait for a control job. Raises ClusterError with its message when it fails."""
        while (job := self._jobs.find(submission_id)).is_live:
            time.sleep(self._first_poll_s)
        if job.state != "SUCCEEDED":
            raise ClusterError(f"control: {submission_id} failed. {job.message[-TAIL:]}")

    def ended(
        self, submission_id: str, kinds: "TypeAdapter[AnyEvent]", on_event: Callable[[AnyEvent], None] | None = None
    ) -> tuple[list[AnyEvent], ClusterError | None]:
        """Wait for a control job; the events that it has left, and how it failed, if it did. `on_event` gets those of a living one."""
        failure: ClusterError | None = None
        if on_event is not None:
            self._watch(submission_id, kinds, on_event)
        try:
            self.finish(submission_id)
        except ClusterError as err:
            failure = err
        return list(events_in(self._jobs.logs(submission_id), kinds)), failure

    def _watch(self, submission_id: str, kinds: "TypeAdapter[AnyEvent]", on_event: Callable[[AnyEvent], None]) -> None:
        """Report each event of a job while it lives."""
        shown = 0
        while self._jobs.find(submission_id).is_live:
            text = self._jobs.logs(submission_id)
            events = list(events_in(text[: text.rfind("\n") + 1], kinds))
            for event in events[shown:]:
                on_event(event)
            shown = len(events)
            time.sleep(self._poll_s + len(text) / LOG_CHARACTERS_PER_S)

    def withdraw(self, campaign_id: str) -> list[str]:
        """End a campaign, then every job that it has started; returns the submission ids of those that were alive.

        One that the job server does not list is looked for again, for STORES_S.
        """
        ended: list[str] = []
        stored_by = time.monotonic() + STORES_S
        while time.monotonic() < stored_by and not any(job.submission_id == f"campaign-{campaign_id}" for job in self._jobs.records()):
            time.sleep(self._first_poll_s)
        for kinds in (("campaign",), ("train", "validate", "preprocess")):  # the campaign first, else it would start again what has ended
            own = [job for job in self._jobs.records() if job.campaign == campaign_id and job.kind in kinds]
            living = [job.submission_id for job in own if job.is_live]
            for submission_id in living:
                self._jobs.stop(submission_id)
            deadline = time.monotonic() + MAX_SILENCE_S
            while any(self._jobs.find(submission_id).is_live for submission_id in living) and time.monotonic() < deadline:
                time.sleep(self._first_poll_s)
            ended += living
        return ended

    def _log_of(self, job: JobRecord) -> CampaignLog:
        """A campaign's log; that of one that has ended is read once."""
        log = self._logs.setdefault(job.submission_id, CampaignLog())
        if job.submission_id not in self._complete:
            log.update(self._jobs.logs(job.submission_id))
            if not job.is_live:
                self._complete.add(job.submission_id)
        return log

    def _shown(self, job: JobRecord, known: Mapping[str, RunStatus], followed: Collection[str] = ()) -> dict[str, RunStatus]:
        return _runs_of(job, self._log_of(job), known, followed)

    def _goes_on(self, run_key: str, campaign: str) -> bool:
        """True while a living campaign has not brought a run to its end."""
        job = self._jobs.find(f"campaign-{campaign}")
        status = self._shown(job, {}).get(run_key)
        return job.is_live and status is not None and not status.state.is_final


def _runs_of(
    job: JobRecord, log: CampaignLog, known: Mapping[str, RunStatus] = MappingProxyType({}), followed: Collection[str] = ()
) -> dict[str, RunStatus]:
    """The runs of a campaign as it reports them, else those that it was handed (see `handed_statuses`)."""
    return log.statuses or handed_statuses(job, log, "" if job.is_live else _end_of(job), known, followed)


def _without_campaign(status: RunStatus, job: JobRecord) -> RunStatus:
    """The last status of a run whose campaign is dead."""
    reason = f"its campaign {job.campaign} {_end_of(job)}; this is its last report. `nnfleet resume` continues it."
    return status.model_copy(update={"reason": reason, "seconds_left": None})


def _end_of(job: JobRecord) -> str:
    if job.state == "STOPPED":
        return "was stopped"
    lines = [line.strip() for line in job.message.splitlines() if line.strip() and not line.startswith(EVENT_PREFIX)]
    return f"died ({death(job)}{f': {masked(lines[-1])[-200:]}' if job.has_failed_by_itself and lines else ''})"


def _death_of(job: JobRecord) -> ClusterError:
    return ClusterError(
        f"campaign: {job.submission_id} {'was stopped' if job.state == 'STOPPED' else 'died'}. Its jobs continue; "
        f"`nnfleet resume`, or the experiment submitted again, follows them.\n{masked(job.message)[-TAIL:]}"
    )
