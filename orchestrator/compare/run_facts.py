"""What is known of two runs that are to be compared setting by setting, read from their folders; versions from MLflow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.compare.run_differences import RunDiff, RunFacts, differences_of
from orchestrator.run.below import run_folders_below
from orchestrator.run.names import Names, resolve_one
from orchestrator.tracking.binding import noted_run_id
from trainers.contract.commits import early_end_of, newest_committed
from trainers.contract.fencing import claims_seen
from trainers.contract.plans import load_plans
from trainers.contract.records import read_mlflow_run
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.errors import DataError, NnfleetError, StorageError, TrackingError


def diff_below(results: Path, first: str, second: str) -> RunDiff:
    """Compare two runs below `results`. Raises ConfigError for a name that means no run or several, StorageError."""
    runs = _readable(results)
    names = [Names(spec.run_key, spec.address, noted_run_id(folder), str(folder.root)) for folder, spec in runs]
    chosen = [runs[resolve_one(name, names, f"below {results}")] for name in (first, second)]
    unknown: list[str] = []
    a, b = (_facts(folder, spec, unknown) for folder, spec in chosen)
    titles = [f"{spec.address} ({spec.run_key})" for _, spec in chosen]
    return RunDiff(titles[0], titles[1], tuple(differences_of(a, b)), tuple(dict.fromkeys(unknown)))


def _readable(results: Path) -> list[tuple[RunFolder, RunSpec]]:
    found = []
    for folder in run_folders_below(results):
        try:
            found.append((folder, folder.spec()))
        except (DataError, StorageError):
            continue  # it has no name, so that nobody can mean it
    return found


def _facts(folder: RunFolder, spec: RunSpec, unknown: list[str]) -> RunFacts:
    committed = newest_committed(folder)
    history = () if committed is None else committed.history
    plans, tags = _plans(folder, spec, unknown), _tags(folder, spec, unknown)
    return RunFacts(spec, plans, tags, claims_seen(folder), history, early_end_of(spec, committed))


def _plans(folder: RunFolder, spec: RunSpec, unknown: list[str]) -> Mapping[str, Any]:
    try:
        return load_plans(folder.model_folder, "plans").configuration(spec.configuration)
    except NnfleetError as err:
        unknown.append(f"The contents of the plans: {err}")
        return {}


def _tags(folder: RunFolder, spec: RunSpec, unknown: list[str]) -> Mapping[str, str] | None:
    try:
        bound = read_mlflow_run(folder)
        if bound is not None:
            from orchestrator.tracking.client import Tracker  # seconds of imports

            tracker = Tracker(bound.tracking_uri)
            tracker.ping()
            known = tracker.recorded_run(bound.run_id)
            if known is not None:
                return known.tags
        why = f"MLflow does not know {spec.address}"
    except (TrackingError, DataError) as err:
        why = str(err).removesuffix(".")
    unknown.append(f"Versions of code and libraries, which MLflow keeps: {why}.")
    return None
