"""Which runs below a results folder `nnfleet resume` takes up: read from their folders alone, without the experiment that began them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.run.outcome import Outcome, read_outcome
from orchestrator.run.progress import Progress, progress_of
from orchestrator.run.status import Names, RunStatus, meant
from orchestrator.tracking.binding import noted_run_id
from trainers.contract.errors import ConfigError, DataError, StorageError
from trainers.contract.requests import read_stop_request
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.contract.states import RunState

log = logging.getLogger(__name__)

RUN_FILE = "nnfleet/run.json"
LEVELS = ("", "fold_*", "*/fold_*", "*/*/fold_*")
"""Where fold folders lie below a fold's own folder, a model folder, a dataset's folder, and nnUNet_results."""


@dataclass(frozen=True)
class Found:
    """A run whose folder was read."""

    spec: RunSpec
    progress: Progress
    outcome: Outcome | None = None
    """How its newest job ended; None when it ended without a word, or goes on."""
    is_stopping: bool = False
    """Somebody asked it to stop, and nobody took that back."""
    mlflow_run_id: str = ""


@dataclass(frozen=True)
class Verdict:
    """Whether a run is taken up, and why or why not."""

    is_taken: bool
    why: str


@dataclass(frozen=True)
class Choice:
    """What becomes of everything that was found."""

    taken: tuple[Found, ...]
    left: tuple[str, ...]
    """One sentence for each run, or file, that is left as it is."""


def results_folder(named: Path | None, environment: Mapping[str, str]) -> Path:
    """The folder to look below: the named one, else the one that the environment names as nnU-Net knows it. Raises ConfigError."""
    folder = named or (Path(environment["nnUNet_results"]) if environment.get("nnUNet_results") else None)
    if folder is None:
        raise ConfigError("results: no folder is named, and nnUNet_results is not set where the runs are. Name one: --results FOLDER.")
    folder = folder.expanduser().absolute()
    if not folder.is_dir():
        raise ConfigError(f"results: {folder} is no folder on the cluster's head node. Name the folder that holds the runs: --results.")
    return folder


def find_runs(results: Path) -> tuple[list[Found], list[str]]:
    """All runs of ours below `results`, and a sentence for each run.json that cannot be followed: damaged, or made for another place."""
    found, damaged = [], []
    for path in sorted({path for level in LEVELS for path in results.glob(f"{level}/{RUN_FILE}" if level else RUN_FILE)}):
        try:
            found.append(_found(path))
        except (DataError, StorageError, OSError) as err:
            damaged.append(str(err))
    return found, damaged


def _found(path: Path) -> Found:
    folder = RunFolder(path.parents[1])
    spec = folder.spec()
    folder.check_is_own(spec)  # a run.json sends nobody to another place than its own
    own = RunFolder(spec.run_folder)
    return Found(spec, progress_of(spec), read_outcome(own), read_stop_request(own) is not None, noted_run_id(own))


def verdict_on(run: Found, *, is_named: bool = False) -> Verdict:
    """Whether `run` is taken up: pure. Whatever did not come to an end of its own is; what a person or an error ended, only by its name."""
    if run.progress.stage == "finished":
        return Verdict(False, "is finished.")
    state = run.outcome.state if run.outcome else ""
    if is_named or not (run.is_stopping or state in _ENDED):
        return Verdict(True, run.progress.text)
    message = run.outcome.message.split("\n", 1)[0] if run.outcome else ""
    why = {
        "STOPPED": "was stopped",
        "SUCCEEDED": "had succeeded, and files of it are gone since",
        "FAILED_CONFIG": f"needs another request or other data ({message})",
        "FAILED_CODE": f"failed by an error of the code ({message})",
    }.get(state, "was asked to stop")
    return Verdict(False, f"{why}; by its name it is continued: nnfleet resume {run.spec.run_key}")


_ENDED = ("SUCCEEDED", "STOPPED", "FAILED_CONFIG", "FAILED_CODE")


def choose(found: Sequence[Found], damaged: Sequence[str], names: Sequence[str], place: Path) -> Choice:
    """The runs to take up among those found: the named ones, else all that are unfinished. Raises ConfigError for a name that fits none
    or several.
    """
    if not names:
        verdicts = [(run, verdict_on(run)) for run in found]
        told = [f"{run.spec.address} ({run.spec.run_key}) {verdict.why}" for run, verdict in verdicts if not verdict.is_taken]
        return Choice(tuple(run for run, verdict in verdicts if verdict.is_taken), (*told, *damaged))
    wanted = [_named(name, found, place) for name in names]
    chosen = list({run.spec.run_key: run for run in wanted}.values())
    verdicts = [(run, verdict_on(run, is_named=True)) for run in chosen]
    return Choice(
        tuple(run for run, verdict in verdicts if verdict.is_taken),
        tuple(f"{run.spec.address} ({run.spec.run_key}) {verdict.why}" for run, verdict in verdicts if not verdict.is_taken),
    )


def _named(name: str, found: Sequence[Found], place: Path) -> Found:
    indices = meant(name, [Names(run.spec.run_key, run.spec.address, run.mlflow_run_id) for run in found])
    if len(indices) == 1:
        return found[indices[0]]
    listed = ", ".join(f"{run.spec.address} ({run.spec.run_key})" for run in ([found[i] for i in indices] or found)[:20]) or "none"
    if not indices:
        raise ConfigError(f"run: there is no run {name!r} below {place}. Found: {listed}.")
    raise ConfigError(f"run: {name!r} may be any of {listed}. Name it by its run key.")


def of_one_server(choice: Choice) -> Choice:
    """A campaign speaks to one tracking server: the runs of the server that most of `choice` go to; the rest is left, and said."""
    by_server: dict[str, list[Found]] = {}
    for run in choice.taken:
        by_server.setdefault(run.spec.tracking_uri, []).append(run)
    if len(by_server) < 2:
        return choice
    most = max(by_server, key=lambda uri: len(by_server[uri]))
    others = [
        f"{run.spec.address} ({run.spec.run_key}) goes to {uri or 'no tracking server'}, the others to {most or 'none'}: "
        f"continue it apart: nnfleet resume {run.spec.run_key}"
        for uri, runs in by_server.items()
        if uri != most
        for run in runs
    ]
    return Choice(tuple(by_server[most]), (*choice.left, *others))


def lost(run: Found) -> RunStatus:
    """How `status` shows a run that no campaign of the cluster knows and that did not come to an end of its own."""
    spec = run.spec
    return RunStatus(
        run_key=spec.run_key,
        address=spec.address,
        campaign="",
        state=RunState.FAILED_CLUSTER,
        epochs_done=run.progress.epochs_done,
        epochs=spec.schedule.epochs,
        reason=f"lost: no campaign of this cluster knows it ({run.progress.text}); `nnfleet resume` continues it.",
        mlflow_run_id=run.mlflow_run_id,
        run_folder=spec.run_folder,
    )
