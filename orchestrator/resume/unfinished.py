"""Which runs below a results folder `nnfleet resume` continues: read from their folders alone, without the experiment file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.follow.next_step import is_trained
from orchestrator.run.below import run_folders_below
from orchestrator.run.halving import RESUMES, halving_reason, read_halving
from orchestrator.run.names import Names, resolve_all
from orchestrator.run.outcome import Outcome, read_outcome
from orchestrator.run.progress import Progress, progress_at
from orchestrator.tracking.binding import noted_run_id
from trainers.contract.commits import Committed, newest_committed
from trainers.contract.requests import read_stop_request
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.errors import DataError, StorageError


@dataclass(frozen=True)
class Found:
    """A run whose folder was read."""

    spec: RunSpec
    progress: Progress
    outcome: Outcome | None = None
    """How its newest job ended; None when it left no result, or goes on."""
    is_stopping: bool = False
    """A stop request is pending."""
    mlflow_run_id: str = ""
    committed: Committed | None = None
    """Its newest commit."""
    halved: str = ""
    """Why successive halving stopped it; empty: it did not."""

    @property
    def names(self) -> Names:
        """By what a user may name it."""
        return Names(self.spec.run_key, self.spec.address, self.mlflow_run_id, str(self.spec.run_folder))

    def __str__(self) -> str:
        """As a sentence names it."""
        return f"{self.spec.address} ({self.spec.run_key})"


@dataclass(frozen=True)
class Verdict:
    """Whether a run is continued, and why or why not."""

    is_taken: bool
    why: str


@dataclass(frozen=True)
class Choice:
    """Which of the runs that were found are continued."""

    taken: tuple[Found, ...]
    left: tuple[str, ...]
    """One sentence for each run, or file, that is left as it is; one for all that are merely finished."""


def find_runs(results: Path) -> tuple[list[Found], list[str]]:
    """All runs of ours below `results`, and a sentence for each run.json that cannot be followed: damaged, or made for another place."""
    found, damaged = [], []
    for folder in run_folders_below(results):
        try:
            found.append(_found(folder))
        except (DataError, StorageError, OSError) as err:
            damaged.append(str(err))
    return found, damaged


def _found(folder: RunFolder) -> Found:
    spec = folder.spec()
    folder.check_is_own(spec)  # else a copied run.json would lead to the folder that it was copied from
    own = RunFolder(spec.run_folder)
    committed, outcome, stop = newest_committed(own), read_outcome(own), read_stop_request(own)
    is_past_it = stop is not None and not stop.is_for_validation and outcome is not None and is_trained(outcome)
    return Found(
        spec,
        progress_at(spec, committed),
        outcome,
        stop is not None and not is_past_it,
        noted_run_id(own),
        committed,
        halving_reason(spec, read_halving(own)) if spec.halving is not None else "",
    )


def verdict_on(run: Found, *, is_named: bool = False) -> Verdict:
    """Whether `run` is continued: pure. Whatever was cut off is; what a person or an error ended, only by its name."""
    if run.progress.stage == "finished":
        early = run.progress.early_end
        return Verdict(False, f"is finished (ended early {early})." if early else FINISHED)
    state = run.outcome.state if run.outcome else ""
    if is_named or not (run.is_stopping or state in _ENDED):
        return Verdict(True, run.progress.text)
    message = run.outcome.message.split("\n", 1)[0] if run.outcome else ""
    why = {
        "STOPPED": f"was {run.halved.removesuffix(RESUMES).rstrip(' .')}" if run.halved else "was stopped",
        "SUCCEEDED": "had succeeded, but files of it are missing",
        "FAILED_CONFIG": f"needs another request or other data ({message})",
        "FAILED_CODE": f"failed by an error of the code ({message})",
    }.get(state, "was asked to stop")
    return Verdict(False, f"{why}. To continue it nevertheless: nnfleet resume {run.spec.run_key}")


FINISHED = "is finished."
_ENDED = ("SUCCEEDED", "STOPPED", "FAILED_CONFIG", "FAILED_CODE")


def verdict_on_failed(run: Found) -> Verdict:
    """Whether `run` failed, and so is continued where only failed runs are; what a person stopped, or was cut off, is left. Pure."""
    if run.progress.stage == "finished" or run.outcome is None or not run.outcome.is_failure:
        return Verdict(False, "did not fail.")
    return Verdict(not run.is_stopping, run.progress.text if not run.is_stopping else "failed, and was asked to stop.")


def choose(
    found: Sequence[Found], damaged: Sequence[str], names: Sequence[str], place: Path, *, only_failed: bool = False, is_filter: bool = False
) -> Choice:
    """The runs to continue among those found: all that the names mean, else all that were cut off; with `only_failed` of all, or of those
    that the names mean, those that failed. Raises ConfigError for a name that means none.

    `is_filter`: the names are run keys that nobody wrote, those of a campaign. Of these what was cut off, and one without a folder is left.
    """
    gone: list[str] = []
    if is_filter:
        wanted = [run for run in found if run.spec.run_key in names]
        gone = [f"{key} has no folder below {place}." for key in names if key not in {run.spec.run_key for run in wanted}]
    else:
        known = [run.names for run in found]
        wanted = [found[i] for i in resolve_all(names, known, f"below {place}", left=damaged)] if names else list(found)
    is_named = bool(names) and not is_filter
    verdicts = [(run, verdict_on_failed(run) if only_failed else verdict_on(run, is_named=is_named)) for run in wanted]
    return Choice(
        tuple(run for run, verdict in verdicts if verdict.is_taken),
        (*_left_as_they_are(verdicts), *gone, *(() if is_named else damaged)),
    )


def _left_as_they_are(verdicts: Sequence[tuple[Found, Verdict]]) -> list[str]:
    """A sentence for each run that is not continued; of those where nothing is to be done only their number, where they are several."""
    left = [(f"{run} {verdict.why}", verdict.why == FINISHED) for run, verdict in verdicts if not verdict.is_taken]
    num_finished = sum(is_finished for _, is_finished in left)
    if num_finished < 2:
        return [sentence for sentence, _ in left]
    return [f"{num_finished} runs that are finished.", *(sentence for sentence, is_finished in left if not is_finished)]


def of_one_server(choice: Choice) -> Choice:
    """A campaign has one tracking server: the runs of the server that most of `choice` use; each of the others is left, with the reason."""
    by_server: dict[str, list[Found]] = {}
    for run in choice.taken:
        by_server.setdefault(run.spec.tracking_uri, []).append(run)
    if len(by_server) < 2:
        return choice
    most = max(by_server, key=lambda uri: len(by_server[uri]))
    others = [
        f"{run} goes to {uri or 'no tracking server'}, the others to {most or 'none'}: continue it apart: nnfleet resume {run.spec.run_key}"
        for uri, runs in by_server.items()
        if uri != most
        for run in runs
    ]
    return Choice(tuple(by_server[most]), (*choice.left, *others))
