"""The campaign job: `python -m orchestrator.campaign.job EXPERIMENT.yaml`, one small Ray job per submission, without torch.
`--resume FOLDER [--only=NAME ...]` continues what is unfinished below a results folder instead, from the runs' own folders.

It expands the experiment, takes possession of the runs, keeps the queue, submits one training job for each run whose whole gang fits
now, and follows every run to its end. All decisions are pure (`next_step.py`, `orchestrator/queue/admission.py`) and
made from what the cluster and the run folders say, so a campaign may die at any moment: the next one follows the running jobs. Two
campaigns of the same runs both watch; submission ids that are the same for the same job number keep them from starting anything twice.

It speaks to its submitter by events on stdout (`events.py`).
"""

import argparse
import logging
import os
import sys
import traceback
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.campaign.dispatch import ClusterJobs
from orchestrator.campaign.events import Done, Failed, Planned, Waiting
from orchestrator.campaign.loop import Campaign
from orchestrator.campaign.planning import queue_of, refuse_all
from orchestrator.cluster.nodes import cluster_nodes
from orchestrator.dataset.model_folder import folders_of_others
from orchestrator.dataset.problems import listed
from orchestrator.experiment.expansion import expand
from orchestrator.experiment.plan import PlanReport, plan_of_runs, plan_report
from orchestrator.queue.registry import Registry
from orchestrator.resume.orphan_workers import refuse_orphan_workers
from orchestrator.resume.unfinished import choose, find_runs, of_one_server
from orchestrator.run.aside import aside_name
from orchestrator.run.below import results_folder
from orchestrator.run.clock import Clock
from orchestrator.run.events import emit
from orchestrator.run.interrupts import obey_interrupts
from orchestrator.run.job_record import JobRecord
from orchestrator.tracking.address import check_tracking_uri, masked
from orchestrator.tracking.binding import TrackingServer
from orchestrator.validation.cases import checkpoints_to_validate
from trainers.contract.commits import newest_committed
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.errors import ClusterError, ConfigError, NnfleetError, StorageError

log = logging.getLogger(__name__)

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
    parser.add_argument("--tracking-uri", default="", help="with --resume: in the place of a local MLflow server that does not answer")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    campaign = options.campaign or uuid.uuid4().hex[:8]
    try:
        if options.validate is not None:
            return _validate(campaign, options.validate, options.run_key, npz=options.npz, best=options.best)
        if options.resume is not None:
            return resume(campaign, Path(options.resume) if options.resume else None, options.only, options.tracking_uri)
        if options.experiment is None:
            raise ConfigError("campaign: name an experiment file.")
        return _train(campaign, options.experiment, plan_only=options.plan_only, replaces=options.replace)
    except NnfleetError as err:
        emit(Failed(error=type(err).__name__, message=masked(str(err))))
        return err.exit_code
    except Exception as err:
        traceback.print_exc()
        emit(Failed(error="NnfleetError", message=masked(f"campaign: {type(err).__name__}: {err}. See its log.")))
        return 1


def _train(campaign: str, experiment_file: Path, *, plan_only: bool, replaces: bool) -> int:
    from orchestrator.cluster.jobs import Jobs
    from orchestrator.experiment.model import load_experiment

    experiment = load_experiment(experiment_file)
    if not experiment.tracking.uri:  # of a remote cluster: the server that its head node knows
        uri = check_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI", ""), "MLFLOW_TRACKING_URI")
        tracking = experiment.tracking.model_copy(update={"uri": uri})
        experiment = experiment.model_copy(update={"tracking": tracking})
    warnings = [] if experiment.tracking.uri else [UNTRACKED]
    specs = expand(experiment, replaces=replaces)
    warnings += replacements(specs) if replaces else []
    cluster = Jobs.inside_job()
    address = os.environ.get("RAY_ADDRESS", "")
    jobs, registry = cluster.records(), Registry.of_cluster(address)
    if plan_only:  # else the opening does, under its lock
        refuse_all(specs, jobs, registry)
    report = plan_report(experiment, specs, cluster_nodes(), queue_of(jobs, registry), cluster=address, warnings=warnings)
    never = _never_fits(report)
    if never and not plan_only:
        raise ClusterError("\n".join(["cluster: it can never hold", *never, "Ask for less under `workers`, or for a larger cluster."]))
    runner = None if plan_only else _opened(campaign, cluster, specs, replaces=replaces)
    emit(Planned(plan=report))
    return runner.run() if runner is not None else 0


def replacements(specs: Sequence[RunSpec]) -> list[str]:
    """What `--replace` moves aside, in a sentence; nothing if no folder is another run's."""
    folders = sorted(map(str, folders_of_others(specs)))
    if not folders:
        return []
    called = aside_name(Path(folders[0]), "replaced", "<UTC time>")
    what = "1 run folder of another run was" if len(folders) == 1 else f"{len(folders)} run folders of other runs were"
    return [f"results: {what} moved aside, to `{called}` beside its place: {listed(folders)}."]


def _never_fits(report: PlanReport) -> list[str]:
    return [f"{row.address} {row.because}" for row in report.rows if row.fits == "never"]


def resume(campaign: str, results: Path | None, names: Sequence[str], tracking_uri: str) -> int:
    """Continue the unfinished runs below a results folder, or the named ones. A run that cannot go on is left, with the reason; when it
    was named, that is an error.
    """
    from orchestrator.cluster.jobs import Jobs
    from orchestrator.resume.resume_check import sound, with_reachable_server

    place = results_folder(results, os.environ)
    found, damaged = find_runs(place)
    choice = of_one_server(choose([with_reachable_server(run, tracking_uri) for run in found], damaged, names, place))
    cluster, address = Jobs.inside_job(), os.environ.get("RAY_ADDRESS", "")
    registry = Registry.of_cluster(address)
    specs, faults = sound([run.spec for run in choice.taken], cluster.records, registry, Clock(), _report_waiting, raises=bool(names))
    queue = queue_of(cluster.records(), registry)
    left = [*choice.left, *faults]
    report = plan_of_runs("resume", specs, cluster_nodes(), queue, cluster=address, left=left)
    never = _never_fits(report)
    if never and names:
        raise ClusterError("\n".join(["cluster: it can never hold", *never, "Bring its nodes back, or submit with less under `workers`."]))
    if never:
        specs = [row.spec for row in report.rows if row.fits != "never"]
        left += [f"{text} It does not fit this cluster: submit its experiment with less." for text in never]
        report = plan_of_runs("resume", specs, cluster_nodes(), queue, cluster=address, left=left)
    runner = _opened(campaign, cluster, specs, is_quiet=True) if specs else None
    emit(Planned(plan=report))
    if runner is None:
        emit(Done(exit_code=0))
        return 0
    return runner.run()


def _report_waiting(text: str) -> None:
    log.warning("%s", text)
    emit(Waiting(message=text))


def _validate(campaign: str, run_folder: Path, run_key: str, *, npz: bool, best: bool) -> int:
    from orchestrator.cluster.jobs import Jobs

    folder, cluster = RunFolder(run_folder), Jobs.inside_job()
    spec = folder.spec_of(run_key, "validate")
    check_not_imported(spec)
    if npz:
        spec = spec.model_copy(update={"validation": spec.validation.model_copy(update={"npz": True})})
    check_trained(folder, spec, cluster.records(), best=best)
    return _opened(campaign, cluster, [spec], only_validate=True).run()


def check_not_imported(spec: RunSpec) -> None:
    """Raise ConfigError for a run that nnU-Net trained and validated: a validation here would replace nnU-Net's own files."""
    if spec.imported is not None:
        raise ConfigError(
            f"validate: {spec.address} was validated by nnU-Net in {spec.imported.folder}, whose files stay as they are. Run "
            "nnUNetv2_train with --val there (and --npz for probabilities), then `nnfleet import` it again."
        )


def check_trained(folder: RunFolder, spec: RunSpec, jobs: Sequence[JobRecord], *, best: bool = False) -> None:
    """Raise ConfigError for a run that cannot be validated by hand: it is not trained to its end, or it is being trained.

    `best`: where it is not trained to its end, a best checkpoint is enough.
    """
    reached = newest_committed(folder)
    if any(job.is_live and job.kind == "train" and job.run_key == spec.run_key for job in jobs):
        raise ConfigError(f"validate: {spec.address} is being trained; its validation follows by itself.")
    is_enough = reached is not None and reached.run_key == spec.run_key and (reached.final or (best and reached.best))
    if not is_enough:
        done = f"{reached.epochs_done} of {spec.schedule.epochs} epochs are done" if reached else "no epoch is done"
        advice = ", or validate its best checkpoint (--best)" if reached and reached.best and not best else ""
        raise ConfigError(
            f"validate: {spec.address} in {folder.root} is not trained to its end: {done}. "
            f"Continue it first (`nnfleet resume {spec.address}`){advice}."
        )
    checkpoints_to_validate(folder, spec)


def _opened(
    campaign: str,
    cluster: ClusterJobs,
    specs: Sequence[RunSpec],
    *,
    only_validate: bool = False,
    is_quiet: bool = False,
    replaces: bool = False,
) -> Campaign:
    """A campaign in possession of its runs. `is_quiet`: that no orphan workers train them was checked before. `replaces`: it moves the
    folders of other runs aside.
    """
    from orchestrator.tracking.client import Tracker

    if not is_quiet:
        refuse_orphan_workers(specs, cluster.records, Clock(), _report_waiting)
    uri = specs[0].tracking_uri
    registry = Registry.of_cluster(os.environ.get("RAY_ADDRESS", ""))
    tracker = Tracker(uri) if uri else None
    runner = Campaign(campaign, cluster, cluster_nodes, registry, emit, tracker)
    runner.open(specs, only_validate=only_validate, replaces=replaces)
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
