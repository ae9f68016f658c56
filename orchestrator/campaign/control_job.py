"""Acts on run folders where they are: `python -m orchestrator.campaign.control_job stop RUN_FOLDER [--now]` or `sync`, a small Ray job.

A laptop does not see the folders of a cluster; whoever submits this job does not need to.
"""

import argparse
import sys
from pathlib import Path

from orchestrator.run.events import emit
from trainers.contract.errors import NnfleetError
from trainers.contract.files import write_json_atomic
from trainers.contract.run_folder import RunFolder


def main(arguments: list[str] | None = None) -> int:
    """Entry point; raises DataError when a folder is no run folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    stopping = verbs.add_parser("stop", help="ask a run to stop")
    stopping.add_argument("run_folder", type=Path)
    stopping.add_argument("--now", action="store_true", help="at once instead of after the epoch in flight")
    syncing = verbs.add_parser("sync", help="deliver to MLflow what it lacks")
    syncing.add_argument("run", nargs="?", default="")
    syncing.add_argument("--results", type=Path, default=None)
    options = parser.parse_args(arguments)
    if options.verb == "sync":
        return synchronise(options.run, options.results)
    stop(RunFolder(options.run_folder), is_now=options.now)
    return 0


def synchronise(run: str, results: Path | None) -> int:
    """Sync the runs below a results folder, by default this node's nnUNet_results; one event each."""
    from orchestrator.cluster.jobs import Jobs
    from orchestrator.tracking.reconcile import SyncedEvent, sync_below

    try:
        for done in sync_below(results, run, Jobs.inside_job().records()):
            emit(SyncedEvent(synced=done))
    except NnfleetError as err:
        sys.stdout.write(f"Error: {err}\n")
        return err.exit_code
    return 0


def stop(folder: RunFolder, *, is_now: bool) -> None:
    """Ask a run to stop: the training sees it at the end of its epoch. Ends its validation, and with `is_now` any of its jobs,
    whether its campaign lives or not.
    """
    from orchestrator.cluster.jobs import Jobs

    run_key = folder.spec().run_key
    write_json_atomic(folder.stop_file, {"now": is_now})
    jobs = Jobs.inside_job()
    for job in jobs.records():
        if job.run_key == run_key and job.is_live and (is_now or job.kind == "validate"):
            jobs.stop(job.submission_id)


if __name__ == "__main__":
    sys.exit(main())
