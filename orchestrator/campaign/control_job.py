"""Acts on run folders where they are, as a small Ray job: `python -m orchestrator.campaign.control_job stop RUN_FOLDER...`
with `[--run-key KEY]... [--now | --finish [--anneal N]]`, `place RUN_FOLDER...` with `[--priority N] [--first]`, `queue`, `sync`, or
`compare MODEL... --results FOLDER --tracking-uri URI`.

A laptop does not see the folders of a cluster; whoever submits this job does not need to.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Collection, Sequence
from functools import partial
from itertools import chain, repeat
from pathlib import Path

from orchestrator.campaign.comparisons import compare_and_publish
from orchestrator.campaign.dispatch import ClusterJobs
from orchestrator.campaign.stopping import ask_each
from orchestrator.queue.registry import Registry
from orchestrator.run.events import emit
from orchestrator.run.interrupts import obey_interrupts
from orchestrator.run.job_record import living_campaigns
from trainers.contract.requests import request_finish, request_place, request_stop
from trainers.contract.run_folder import RunFolder
from trainers.errors import ClusterError, ConfigError, NnfleetError, TrackingError


def main(arguments: list[str] | None = None) -> int:
    """Entry point; an error of ours is printed and gives its exit code."""
    obey_interrupts()
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    stopping = verbs.add_parser("stop", help="ask runs to stop")
    stopping.add_argument("run_folders", nargs="+", type=Path)
    stopping.add_argument("--run-key", action="append", default=[], help="of each folder: refuse when it is another run's; none: whosever")
    stopping.add_argument("--now", action="store_true", help="at once instead of after the epoch or the cases in work")
    stopping.add_argument("--finish", action="store_true", help="end early as a trained run, which is validated")
    stopping.add_argument("--anneal", type=int, default=0, help="with --finish: anneal the learning rate over so many more epochs")
    syncing = verbs.add_parser("sync", help="deliver to MLflow what it lacks")
    syncing.add_argument("runs", nargs="*", default=[])
    syncing.add_argument("--results", type=Path, default=None)
    placing = verbs.add_parser("place", help="ask for another place in the queue")
    placing.add_argument("run_folders", nargs="+", type=Path)
    placing.add_argument("--run-key", action="append", default=[], help="of each folder: refuse when it is another run's")
    placing.add_argument("--priority", type=int, default=None)
    placing.add_argument("--first", action="store_true", help="before everything else of its user")
    verbs.add_parser("queue", help="print the queue")
    comparing = verbs.add_parser("compare", help="send the comparison of models to MLflow")
    comparing.add_argument("models", nargs="+")
    comparing.add_argument("--results", type=Path, required=True)
    comparing.add_argument("--tracking-uri", required=True)
    options = parser.parse_args(arguments)
    try:
        if options.verb == "sync":
            return synchronise(options.runs, options.results)
        if options.verb == "compare":
            emit(compare_and_publish(options.models, options.results, options.tracking_uri))
            return 0
        if options.verb == "place":
            place_all(options.run_folders, options.run_key, priority=options.priority, is_first=options.first)
            return 0
        from orchestrator.cluster.jobs import Jobs

        if options.verb == "queue":
            return print_queue(Jobs.inside_job())
        if options.finish:
            finish_all(options.run_folders, options.run_key, anneal_epochs=options.anneal)
            return 0
        stop_all(options.run_folders, options.run_key, Jobs.inside_job(), is_now=options.now)
    except NnfleetError as err:
        sys.stdout.write(f"Error: {err}\n")
        return err.exit_code
    return 0


def synchronise(runs: Sequence[str], results: Path | None) -> int:
    """Sync all runs below a results folder, or those of these names, by default in this node's nnUNet_results; one event each.

    Returns the exit code: not 0 if MLflow lacks something still. Raises ConfigError as `sync_below`.
    """
    from orchestrator.cluster.jobs import Jobs
    from orchestrator.compare.model_run import with_models
    from orchestrator.publishing.reconcile import SyncedEvent, sync_below

    registry = Registry.of_cluster(os.environ.get("RAY_ADDRESS", ""))
    jobs, exit_code = Jobs.inside_job().records(), 0
    for done in with_models(sync_below(results, runs, jobs, registry), jobs):
        emit(SyncedEvent(synced=done))
        exit_code = TrackingError.exit_code if done.lacking else exit_code
    return exit_code


def stop_all(folders: Sequence[Path], run_keys: Sequence[str], jobs: ClusterJobs, *, is_now: bool) -> None:
    """Ask each run to stop, whatever becomes of the others. Raises the first error, with the texts of all."""
    named = zip(folders, chain(run_keys, repeat("")), strict=False)
    campaigns: set[str] = set()
    with contextlib.suppress(ClusterError):  # the runs are asked all the same
        campaigns = living_campaigns(jobs.records())
    ask_each(partial(stop, RunFolder(folder), run_key, jobs, is_now=is_now, campaigns=campaigns) for folder, run_key in named)


def finish_all(folders: Sequence[Path], run_keys: Sequence[str], *, anneal_epochs: int) -> None:
    """Ask each run to end early as a trained run, whatever becomes of the others. Raises as `stop_all`."""

    def finish(folder: Path, run_key: str) -> None:
        spec = RunFolder(folder).spec_of(run_key, "stop")
        if spec.own.trainer is not None and anneal_epochs:
            raise ConfigError(
                f"stop: {spec.address} trains by its trainer's own loop, whose learning rates nnfleet does not set. "
                "Leave out --anneal: it then ends after the epoch in progress."
            )
        request_finish(RunFolder(folder), spec.run_key, anneal_epochs=anneal_epochs)

    named = zip(folders, chain(run_keys, repeat("")), strict=False)
    ask_each(partial(finish, folder, run_key) for folder, run_key in named)


def place_all(folders: Sequence[Path], run_keys: Sequence[str], *, priority: int | None, is_first: bool) -> None:
    """Ask for another place in the queue for each run, whatever becomes of the others; of several moved to the front the first one named
    stays first. Raises as `stop_all`."""

    now_unix = time.time()

    def place(folder: Path, run_key: str, number: int) -> None:
        RunFolder(folder).spec_of(run_key, "queue")
        request_place(RunFolder(folder), priority=priority, first_unix=now_unix - 1e-3 * number if is_first else 0.0)

    named = zip(folders, chain(run_keys, repeat("")), strict=False)
    ask_each(partial(place, folder, run_key, number) for number, (folder, run_key) in enumerate(named))


def print_queue(jobs: ClusterJobs) -> int:
    """Emit the queue of the cluster that this is a job of; returns the exit code."""
    from orchestrator.campaign.queue_view import QueueEvent, queue_report
    from orchestrator.cluster.nodes import cluster_nodes

    registry = Registry.of_cluster(os.environ.get("RAY_ADDRESS", ""))
    emit(QueueEvent(queue=queue_report(jobs.records(), cluster_nodes(), registry)))
    return 0


def stop(folder: RunFolder, run_key: str, jobs: ClusterJobs, *, is_now: bool, campaigns: Collection[str] = ()) -> None:
    """Ask a run to stop, whether its campaign lives or not: its training sees it at the end of the epoch, its validation when the cases in
    work are done. With `is_now` its jobs are ended. `campaigns`: all that live; none of them that still begins takes the run up again.

    Raises ConfigError when the folder is not the one of the run `run_key` (empty: whosever it is), DataError when it is no run folder.
    """
    spec = folder.spec_of(run_key, "stop")
    request_stop(folder, is_now=is_now, campaigns=campaigns)
    for job in jobs.records():
        if job.run_key == spec.run_key and job.is_live and (is_now or not (job.kind == "train" or job.obeys_gentle_stop)):
            jobs.stop(job.submission_id)


if __name__ == "__main__":
    sys.exit(main())
