"""The opening of a campaign: it takes possession of every run of its submission, or of none."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.campaign.dispatch import ClusterJobs
from orchestrator.campaign.validating import check_not_waiting
from orchestrator.dataset.model_folder import folders_of_others
from orchestrator.follow.followed_run import FollowedRun
from orchestrator.follow.observe import Observer
from orchestrator.follow.reserved import runs_at_work
from orchestrator.publishing.lacking import lacks_results
from orchestrator.queue.registry import Registry
from orchestrator.resume.takeover import Acquired, acquire, end_replaced, make_way, refuse, stop_mark
from orchestrator.run.clock import Clock
from orchestrator.run.job_record import JobRecord
from orchestrator.run.progress import Action
from orchestrator.tracking.binding import TrackingServer, open_experiments, refuse_mixture, run_to_take, track
from trainers.contract.run_spec import RunSpec
from trainers.contract.states import RunState
from trainers.errors import StorageError, TrackingError


@dataclass(frozen=True)
class Opened:
    """A run that the campaign owns from now on, and what it does with it first."""

    run: FollowedRun
    acquired: Acquired
    action: Action
    """As in `acquired`, but DELIVER for a finished run of which MLflow lacks something."""


@contextlib.contextmanager
def opening(
    specs: Sequence[RunSpec],
    *,
    campaign: str,
    cluster: ClusterJobs,
    registry: Registry,
    tracker: TrackingServer | None,
    clock: Clock,
    only_validate: bool = False,
    replaces: bool = False,
) -> Iterator[list[Opened]]:
    """Take possession of every run; `only_validate`: of trained ones, to validate them again; `replaces`: folders of other runs
    are moved aside.

    Inside the block the lock of openings is held: the campaign publishes there what it owns. Raises ConfigError, DataError, ClusterError or
    TrackingError; nothing has started then. Whatever fails, here or in the block, leaves no run that waits in MLflow for ever.
    """
    if tracker is not None:
        tracker.ping()
    with registry.locked("opening"):  # not the lock of admission: speaking to MLflow may take a while
        if tracker is not None:
            open_experiments(specs, tracker)  # a deleted one comes back with its runs, which are then looked at
            living = {job.run_key for job in cluster.records() if job.is_live}
            for spec in specs:
                if spec.run_key not in living:
                    refuse_mixture(spec, tracker)
        with registry.locked():  # no campaign submits a job meanwhile
            jobs = cluster.records()
            at_work = runs_at_work(jobs, registry, but=campaign)
            leaving = folders_of_others(specs) if replaces else set()
            for spec in specs:
                refuse(spec, jobs, at_work, leaving)
                if only_validate:
                    check_not_waiting(spec, at_work)
            made_way = {spec.run_key: make_way(spec) for spec in specs if spec.run_folder in leaving}
            acquired = [
                acquire(
                    spec,
                    jobs,
                    only_validate=only_validate,
                    made_way=made_way.get(spec.run_key),
                    campaign=campaign,
                    is_at_work=spec.run_key in at_work,
                )
                for spec in specs
            ]
        opened: list[Opened] = []
        try:
            for each in acquired:
                run = _followed(each, jobs, campaign, tracker, clock)
                opened.append(Opened(run, each, each.action))
                end_replaced(each, tracker)
                if each.action is Action.NOTHING and lacks_results(each.spec, run.tracked, tracker):
                    opened[-1] = Opened(run, each, Action.DELIVER)
            with registry.locked():
                for one in opened:
                    if one.acquired.was_stopping and stop_mark(one.run.folder) == one.acquired.stop_mark:
                        one.run.folder.stop_file.unlink(missing_ok=True)
            yield opened
        except BaseException:  # a stop is an interrupt
            for one in opened:
                _end_in_mlflow(one.acquired, one.run.tracked.run_id, tracker)
            for begun in acquired[len(opened) :][:1]:
                _end_in_mlflow(begun, _run_begun(begun, tracker), tracker)
            raise


def _followed(acquired: Acquired, jobs: Sequence[JobRecord], campaign: str, tracker: TrackingServer | None, clock: Clock) -> FollowedRun:
    spec = acquired.spec
    tracked = track(spec, tracker)
    own = [job for job in jobs if job.run_key == spec.run_key]
    earlier = frozenset(job.submission_id for job in own if acquired.was_stopping or acquired.validates_again or not job.is_live)
    observer = Observer(
        spec,
        earlier,
        continues_after_stop=acquired.was_stopping,
        validates_again=acquired.validates_again,
        is_trained=acquired.action is Action.VALIDATE,
        clock=clock,
    )
    return FollowedRun(observer, campaign, tracked)


def _run_begun(acquired: Acquired, tracker: TrackingServer | None) -> str:
    """The MLflow run of a run whose opening failed on the way, if it was made and is not ended; else empty."""
    if tracker is not None:
        with contextlib.suppress(TrackingError, StorageError, OSError):
            known = run_to_take(acquired.spec, tracker)
            return known.run_id if known is not None and not (known.has_ended or known.is_deleted) else ""
    return ""


def _end_in_mlflow(acquired: Acquired, run_id: str, tracker: TrackingServer | None) -> None:
    """End a run that no job follows, as far as the server lets it."""
    if tracker is None or not run_id or acquired.action is Action.FOLLOW:
        return
    state = RunState.SUCCEEDED if acquired.action is Action.NOTHING else RunState.STOPPED
    with contextlib.suppress(TrackingError):
        tracker.set_state(run_id, state)
