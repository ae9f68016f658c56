"""The campaign job: `python -m orchestrator.campaign.job EXPERIMENT.yaml`, one small Ray job per submission, without torch.
`--resume FOLDER [--only=NAME ...] [--filter] [--only-failed]` continues what is unfinished below a results folder
instead, from the runs' own folders.

It expands the experiment, takes possession of the runs, keeps the queue, submits one training job for each run whose whole gang fits
now, and follows every run to its end. All decisions are pure (`next_step.py`, `orchestrator/queue/admission.py`) and
made from what the cluster and the run folders say, so a campaign may die at any moment: the next one follows the running jobs. Two
campaigns of the same runs both watch; submission ids that are the same for the same job number keep them from starting anything twice.

It speaks to its submitter by events on stdout (`events.py`).
"""

import argparse
import contextlib
import logging
import os
import sys
import traceback
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from orchestrator.campaign.dispatch import ClusterJobs
from orchestrator.campaign.events import Done, Failed, Planned, Waiting
from orchestrator.campaign.loop import Campaign
from orchestrator.campaign.notices import NoticeOfFailure
from orchestrator.campaign.planning import plan_beside, queue_of, refuse_all, refuse_never, replacements
from orchestrator.campaign.preprocessing import Stage, preprocess_first
from orchestrator.campaign.resuming import chosen, plan_of_resume
from orchestrator.campaign.validating import checked
from orchestrator.cluster.nodes import ask_for_nodes, cluster_nodes
from orchestrator.dataset.network_check import try_ahead
from orchestrator.errors import name_of
from orchestrator.experiment.expansion import expand
from orchestrator.experiment.model import Experiment, load_experiment
from orchestrator.experiment.plan import PlanReport, plan_report
from orchestrator.follow.reserved import runs_at_work
from orchestrator.preprocessing.due import due_of
from orchestrator.queue.enlarging import Enlarging
from orchestrator.queue.registry import Entry, Registry
from orchestrator.resume.orphan_workers import refuse_orphan_workers
from orchestrator.resume.resume_check import sound
from orchestrator.run.below import results_folder
from orchestrator.run.clock import Clock
from orchestrator.run.events import emit
from orchestrator.run.halving import overrule
from orchestrator.run.interrupts import obey_interrupts
from orchestrator.run.job_record import JobRecord
from orchestrator.tracking.address import check_tracking_uri, masked
from orchestrator.tracking.binding import TrackingServer
from orchestrator.validation.held_out_admission import QueuePlace
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.errors import ClusterError, ConfigError, NnfleetError, StorageError, TrackingError

log = logging.getLogger(__name__)

PATIENCE_S = 3600.0
RETRY_S = 15.0
_T = TypeVar("_T")
UNTRACKED = (
    "nothing goes to MLflow: the experiment file names no `tracking: {uri: ...}`, "
    "and MLFLOW_TRACKING_URI is not set on the cluster's head node."
)


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the job; whatever goes wrong becomes an `error` event and the error's exit code."""
    obey_interrupts()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", type=Path, nargs="?", help="experiment file")
    parser.add_argument("--campaign", default="", help="id of this campaign")
    parser.add_argument("--replace", action="store_true", help="move folders of other runs aside")
    parser.add_argument("--plan-only", action="store_true", help="print the plan and end")
    parser.add_argument("--validate", type=Path, metavar="RUN_FOLDER", help="only validate this trained run")
    parser.add_argument("--run-key", default="", help="with --validate: refuse when the folder is another run's")
    parser.add_argument("--npz", action="store_true", help="with --validate: the run keeps probabilities from now on")
    parser.add_argument("--best", action="store_true", help="with --validate: of a run that was stopped, its best checkpoint")
    parser.add_argument("--resume", metavar="FOLDER", help="continue unfinished runs below a results folder; empty: nnUNet_results")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="with --resume: this run")
    parser.add_argument("--filter", action="store_true", help="with --only: run keys of a campaign, of which what cannot go on is left")
    parser.add_argument("--only-failed", action="store_true", help="with --resume: of these what failed")
    parser.add_argument("--tracking-uri", default="", help="with --resume: in the place of a local MLflow server that does not answer")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    campaign = options.campaign or uuid.uuid4().hex[:8]
    notice = NoticeOfFailure(campaign)
    try:
        return _run(campaign, options, notice)
    except NnfleetError as err:
        return _failed(name_of(err), str(err), err.exit_code, notice)
    except Exception as err:
        traceback.print_exc()
        return _failed("NnfleetError", f"campaign: {type(err).__name__}: {err}. See its log.", 1, notice)


def _failed(error: str, text: str, exit_code: int, notice: NoticeOfFailure) -> int:
    """Report it to whoever waits, then to people."""
    message = masked(text)
    emit(Failed(error=error, message=message))
    if notice.is_asked:  # which may take minutes
        with contextlib.suppress(ClusterError, OSError):  # others see that it holds nothing and begins nothing
            Registry.of_cluster(os.environ.get("RAY_ADDRESS", "")).post(notice.campaign, Entry(has_failed=True))
        notice.send(message)
    return exit_code


def _run(campaign: str, options: argparse.Namespace, notice: NoticeOfFailure) -> int:
    if options.validate is not None:
        return _validate(campaign, options.validate, options.run_key, notice, npz=options.npz, best=options.best)
    if options.resume is not None:
        place = Path(options.resume) if options.resume else None
        how = {"only_failed": options.only_failed, "is_filter": options.filter}
        return resume(campaign, place, options.only, options.tracking_uri, notice, **how)
    if options.experiment is None:
        raise ConfigError("campaign: name an experiment file.")
    return _train(campaign, options.experiment, notice, plan_only=options.plan_only, replaces=options.replace)


def _train(campaign: str, experiment_file: Path, notice: NoticeOfFailure, *, plan_only: bool, replaces: bool) -> int:
    from orchestrator.cluster.jobs import Jobs

    experiment = load_experiment(experiment_file, is_sent=True)
    if not plan_only:
        notice.ask([experiment.notify], pseudonyms=experiment.pseudonyms)
    if not experiment.tracking.uri:  # of a remote cluster: the server that its head node knows
        uri = check_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI", ""), "MLFLOW_TRACKING_URI")
        tracking = experiment.tracking.model_copy(update={"uri": uri})
        experiment = experiment.model_copy(update={"tracking": tracking})
    warnings = [] if experiment.tracking.uri else [UNTRACKED]
    cluster, address = Jobs.inside_job(), os.environ.get("RAY_ADDRESS", "")
    registry = Registry.of_cluster(address)
    begin = partial(_begun, campaign, experiment, cluster, registry, notice, warnings, plan_only=plan_only, replaces=replaces)
    if (due := due_of(experiment)) is None:
        report, runner = begin()
    else:
        resolved = experiment.with_folders_resolved()
        to_come = plan_beside(resolved, due, cluster.records, cluster_nodes, registry, address, campaign=campaign)
        if not plan_only:
            refuse_never(to_come)
            _ping(experiment.tracking.uri)
        emit(Planned(plan=to_come))
        if plan_only:
            return 0
        _preprocess(campaign, experiment, cluster, registry)
        report, runner = begun_patiently(partial(begin, refuses_never=False), Clock())
    emit(Planned(plan=report))
    return runner.run() if runner is not None else 0


def _begun(
    campaign: str,
    experiment: Experiment,
    cluster: ClusterJobs,
    registry: Registry,
    notice: NoticeOfFailure,
    warnings: Sequence[str],
    *,
    plan_only: bool,
    replaces: bool,
    refuses_never: bool = True,
) -> tuple[PlanReport, Campaign | None]:
    """The plan of an experiment whose data are all there, and, but for `plan_only`, a campaign in possession of its runs."""
    specs = expand(experiment, replaces=replaces)
    warnings = [*warnings, *(replacements(specs) if replaces else ())]
    jobs, address = cluster.records(), os.environ.get("RAY_ADDRESS", "")
    if plan_only:  # else the opening does, under its lock
        refuse_all(specs, jobs, registry)
    report = plan_report(experiment, specs, cluster_nodes(), queue_of(jobs, registry), cluster=address, warnings=warnings)
    if plan_only:
        return report, None
    if refuses_never:
        refuse_never(report)
    try_ahead(specs)
    return report, _opened(campaign, cluster, specs, notice, replaces=replaces)


def begun_patiently(begin: Callable[[], _T], clock: Clock) -> _T:
    """What `begin` returns, which is called again while the cluster or the tracking server is away: hours of preprocessing are not to end
    with a restart of a server. Raises its error after PATIENCE_S; other errors at once."""
    began_s = clock.monotonic()
    while True:
        try:
            return begin()
        except (ClusterError, TrackingError) as err:
            if clock.monotonic() - began_s > PATIENCE_S:
                raise
            _report_waiting(f"is preprocessed, and waits to begin its runs: {err}")
            clock.sleep(RETRY_S)


def _ping(tracking_uri: str) -> None:
    """Raise TrackingError, before hours of preprocessing, for a server that does not answer or refuses."""
    from orchestrator.tracking.client import Tracker

    if tracking_uri:
        Tracker(tracking_uri).ping()


def _preprocess(campaign: str, experiment: Experiment, cluster: ClusterJobs, registry: Registry) -> None:
    """Wait until all that the experiment needs is preprocessed; its runs wait meanwhile."""
    what, enlarging = f"preprocessing of {experiment.dataset}", Enlarging(ask_for_nodes, Clock())
    user, priority = experiment.user, experiment.priority
    place = QueuePlace(campaign, what, registry, cluster.records, user=user, priority=priority, enlarging=enlarging)
    registry.post(campaign, Entry())  # others see that it has begun
    preprocess_first(Stage(experiment, place, cluster, _report_waiting))


def resume(
    campaign: str,
    results: Path | None,
    names: Sequence[str],
    tracking_uri: str,
    notice: NoticeOfFailure,
    *,
    only_failed: bool = False,
    is_filter: bool = False,
) -> int:
    """Continue the unfinished runs below a results folder, or the named ones, or of these what failed. A run that cannot go on is left,
    with the reason; when it was named, not only meant by a campaign (`is_filter`), that is an error. Runs on which other campaigns are at
    work are left but for named ones.
    """
    from orchestrator.cluster.jobs import Jobs

    raises = bool(names) and not is_filter
    cluster, address = Jobs.inside_job(), os.environ.get("RAY_ADDRESS", "")
    registry = Registry.of_cluster(address)
    place, at_work = results_folder(results, os.environ), runs_at_work(cluster.records(), registry)
    choice = chosen(place, names, tracking_uri, at_work, only_failed=only_failed, is_filter=is_filter)
    taken = [run.spec for run in choice.taken]
    sound_runs, faults = sound(taken, cluster.records, registry, Clock(), _report_waiting, raises=raises)
    queue = queue_of(cluster.records(), registry)
    report = plan_of_resume(sound_runs, [*choice.left, *faults], cluster_nodes(), queue, address, raises=raises)
    specs = [row.spec for row in report.rows]
    runner = _opened(campaign, cluster, specs, notice, is_quiet=True) if specs else None
    for spec in specs if raises else ():  # a person named it
        overrule(spec)
    emit(Planned(plan=report))
    if runner is None:
        emit(Done(exit_code=0))
        return 0
    return runner.run()


def _report_waiting(text: str) -> None:
    log.warning("%s", text)
    emit(Waiting(message=text))


def _validate(campaign: str, run_folder: Path, run_key: str, notice: NoticeOfFailure, *, npz: bool, best: bool) -> int:
    from orchestrator.cluster.jobs import Jobs

    cluster = Jobs.inside_job()
    spec = checked(RunFolder(run_folder), run_key, cluster.records(), best=best)
    if npz:
        spec = spec.model_copy(update={"validation": spec.validation.model_copy(update={"npz": True})})
    return _opened(campaign, cluster, [spec], notice, only_validate=True).run()


def _opened(
    campaign: str,
    cluster: ClusterJobs,
    specs: Sequence[RunSpec],
    notice: NoticeOfFailure,
    *,
    only_validate: bool = False,
    is_quiet: bool = False,
    replaces: bool = False,
) -> Campaign:
    """A campaign in possession of its runs. `is_quiet`: that no orphan workers train them was checked before. `replaces`: it moves the
    folders of other runs aside.
    """
    from orchestrator.tracking.client import Tracker

    notice.ask([spec.notify for spec in specs], pseudonyms=any(spec.pseudonyms for spec in specs))
    if not is_quiet:
        refuse_orphan_workers(specs, cluster.records, Clock(), _report_waiting)
    uri = specs[0].tracking_uri
    registry = Registry.of_cluster(os.environ.get("RAY_ADDRESS", ""))
    tracker = Tracker(uri) if uri else None
    runner = Campaign(campaign, cluster, cluster_nodes, registry, emit, tracker, ask_for_nodes=ask_for_nodes)
    runner.open(specs, only_validate=only_validate, replaces=replaces)
    notice.withdraw()
    with runner.interruptible():
        if tracker is not None:
            end_orphans(tracker, cluster.records, registry)
        runner.announce()
    return runner


def end_orphans(tracker: TrackingServer, jobs: Callable[[], Sequence[JobRecord]], registry: Registry) -> None:
    """End in MLflow what nobody works on any more. A failure is only logged: the next campaign does it."""
    from orchestrator.publishing.reconcile import end_orphaned_runs

    try:
        with registry.locked("opening"):  # nobody is about to acquire what is found dead
            end_orphaned_runs(tracker, jobs(), registry)
    except (ClusterError, StorageError, OSError) as err:
        log.warning("orphaned runs were not ended in MLflow: %s", err)


if __name__ == "__main__":
    sys.exit(main())
