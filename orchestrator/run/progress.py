"""What a run's folder already holds (nothing, some epochs, a trained model, a finished run), and so what happens next with the run."""

import contextlib
import json
from enum import StrEnum
from typing import Literal

from pydantic import Field

from orchestrator.run.outcome import read_outcome
from trainers.contract.candidates import candidate_epochs
from trainers.contract.cascade import has_next_stages_due
from trainers.contract.commits import Committed, begun_unix, early_end_of, epochs_of, newest_committed
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointName, Frozen, RunSpec

Stage = Literal["new", "continues", "validates", "finished"]
"""What plans in JSON call it."""


class Action(StrEnum):
    """What a submission does with a run."""

    FOLLOW = "follow"
    """A job of it lives and is followed to its end."""
    TRAIN = "train"
    VALIDATE = "validate"
    DELIVER = "deliver"
    """It is finished, and its results go to MLflow, which lacks them."""
    NOTHING = "nothing"
    """It is finished."""


class Progress(Frozen):
    """What a run's folder already holds."""

    stage: Stage
    """new; continues (after `epochs_done`); validates (trained, its full validation remains); finished (nothing is left to do)."""
    epochs_done: int = 0
    epochs_left: int | None = Field(None, exclude=True)
    """Epochs that remain to be trained, of a run that somebody asked to end early; None: those of its schedule."""
    early_end: str = Field("", exclude_if=lambda text: not text)
    """Where somebody asked for an early end: after how many epochs of how many, and how the learning rate goes."""

    @property
    def action(self) -> Action:
        """What a submission does with a run of which no job lives. A result is kept; what is trained is only validated."""
        return {"new": Action.TRAIN, "continues": Action.TRAIN, "validates": Action.VALIDATE, "finished": Action.NOTHING}[self.stage]

    @property
    def text(self) -> str:
        """`new`, `continues from epoch 3`, ..."""
        return self._text + (f" (ended early {self.early_end})" if self.early_end else "")

    @property
    def _text(self) -> str:
        return {
            "new": "new",
            "continues": f"continues from epoch {self.epochs_done}",
            "validates": "trained: validation remains",
            "finished": "finished: skipped",
        }[self.stage]


def progress_of(spec: RunSpec) -> Progress:
    """What the run folder of `spec` already holds (reads the folder)."""
    return progress_at(spec, newest_committed(RunFolder(spec.run_folder)))


def progress_at(spec: RunSpec, committed: Committed | None) -> Progress:
    """Likewise where the newest commit was read already."""
    folder = RunFolder(spec.run_folder)
    if committed is None or committed.run_key != spec.run_key:
        return Progress(stage="new")
    done, epochs, early = committed.epochs_done, epochs_of(spec, committed), early_end_of(spec, committed)
    if done < epochs or committed.final is None:
        return Progress(stage="continues", epochs_done=done, epochs_left=max(0, epochs - done) if early else None, early_end=early)
    outcome = read_outcome(folder)
    is_validated = (
        outcome is not None
        and outcome.state == "SUCCEEDED"
        and (not has_candidates(spec, committed) or folder.candidates_file.is_file())
        and all(_has_results(folder, spec, name) for name in checkpoints_due(spec, committed))
        and all(has_next_stages_due(spec, "final", case, committed.final.sha256) for case in spec.val_cases)
    )
    return Progress(stage="finished" if is_validated else "validates", epochs_done=done, epochs_left=0 if early else None, early_end=early)


def _has_results(folder: RunFolder, spec: RunSpec, name: CheckpointName) -> bool:
    return folder.summary(name).is_file() and all(folder.has_probabilities_due(name, spec, case) for case in spec.val_cases)


def has_candidates(spec: RunSpec, committed: Committed | None) -> bool:
    """True for a run whose candidates have to be validated beside `checkpoints_due`, or named as lost if none is left; pure."""
    if not spec.val_cases or committed is None:
        return False
    return bool(committed.candidates or candidate_epochs(committed.history, min(spec.validation.candidates, 1)))


def checkpoints_due(spec: RunSpec, committed: Committed | None) -> tuple[CheckpointName, ...]:
    """The checkpoints that a run has to have validated before it is finished, pure: those that its experiment asks for.

    A run may have no best one (see `lack_of_best`), and a fold without validation cases has nothing to validate.
    """
    if not spec.val_cases:
        return ()
    has_no_best = committed is not None and committed.best is None and committed.epochs_done >= epochs_of(spec, committed)
    return tuple(name for name in spec.validation.checkpoints if not (name == "best" and has_no_best))


def lack_of_best(committed: Committed) -> str:
    """Why a run has no best checkpoint, in words, pure."""
    policy = committed.best_policy
    if policy.score is None:
        return "no epoch of this run saw foreground, so it has no best checkpoint"
    which = "the best epoch" if policy.best_epoch is None else f"epoch {policy.best_epoch}, the best one,"
    return f"the weights of {which} are lost and no later epoch has beaten it, so this run has no best checkpoint"


def begun_or_taken_unix(folder: RunFolder, committed: Committed | None) -> float:
    """When the first epoch of a run began; before that has ended, when the run was taken up, by the time of its run.json.

    0 where its newest job ended without an epoch, and where it is not known.
    """
    if begun := begun_unix(committed.history) if committed else 0.0:
        return begun
    with contextlib.suppress(OSError):
        if not (committed and committed.history) and read_outcome(folder) is None:
            return round(folder.spec_file.stat().st_mtime, 3)
    return 0.0


def full_dice(folder: RunFolder, spec: RunSpec) -> dict[str, float]:
    """Mean foreground Dice over whole cases of each checkpoint that was validated (nan-mean over cases, then over classes)."""
    found: dict[str, float] = {}
    for name in spec.validation.checkpoints:
        try:
            found[name] = float(json.loads(folder.extended_summary(name).read_text())["dice_mean"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found
