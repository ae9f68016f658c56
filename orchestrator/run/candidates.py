"""What the full validation says of a run's candidates, the best epochs by EMA pseudo-Dice: is the best of them the best by Dice?"""

from trainers.contract.records import Record, read_record
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointName


class CandidateScore(Record):
    """One candidate."""

    epoch: int
    """Counted from 0."""
    ema_pseudo_dice: float | None = None
    dice: float | None = None
    """Mean over the fold's cases of their mean Dice; None where no case has one. By it the winner is chosen."""
    dice_mean: float | None = None
    """Mean over the cases per class, then over the classes, as in summary.json and of every checkpoint in MLflow."""
    also: tuple[CheckpointName, ...] = ()
    """Under which other names these weights are kept."""


class Candidates(Record):
    """`candidates.json`: every candidate that was validated, highest EMA first."""

    scores: tuple[CandidateScore, ...] = ()
    winner: int | None = None
    """Epoch of the highest Dice. It was chosen on its own validation fold, so its score is optimistic."""
    sentences: tuple[str, ...] = ()
    """The answer, marked where it is optimistic."""

    @property
    def won(self) -> CandidateScore | None:
        """The score of the winner."""
        return next((score for score in self.scores if score.epoch == self.winner), None)


def read_candidates(folder: RunFolder) -> Candidates | None:
    """As the newest full validation left it; None where there is none, or it cannot be read."""
    return read_record(folder.candidates_file, Candidates)
