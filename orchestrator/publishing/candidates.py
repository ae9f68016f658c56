"""What MLflow gets of a run's candidates: three metrics of the winner, the answer as a tag, a small table. Not a metric per candidate."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from orchestrator.run.candidates import Candidates, CandidateScore, read_candidates
from trainers.contract.run_folder import RunFolder

if TYPE_CHECKING:
    from orchestrator.tracking.client import Tracker

TABLE = "fullval/candidates.json"
TAG = "nnfleet.candidates"
LONGEST_TAG = 4900


def send_candidates(tracker: "Tracker", run_id: str, folder: RunFolder) -> None:
    """Send what the run folder says of candidates, the metrics last, as the commit. The same may be sent again. Raises TrackingError."""
    found = read_candidates(folder)
    if found is None:
        return
    tracker.log_table(run_id, TABLE, [_row(score, found) for score in found.scores])
    tracker.set_tags(run_id, {TAG: " ".join(found.sentences)[:LONGEST_TAG]})
    tracker.log_scores(run_id, winner_metrics(found), folder.candidates_file.stat().st_mtime)


def holds_candidates(held: Mapping[str, float], folder: RunFolder) -> bool:
    """True when `held`, the metrics of an MLflow run, has what the run folder says of the winner, value by value."""
    found = read_candidates(folder)
    wanted = winner_metrics(found) if found else {}
    return all(math.isclose(held.get(key, math.nan), value, rel_tol=1e-9) for key, value in wanted.items())


def winner_metrics(found: Candidates) -> dict[str, float]:
    """MLflow's metrics of the winner; its Dice is of the kind of `full/<checkpoint>/dice_mean`. Pure."""
    if found.won is None:
        return {}
    values = {
        "candidates/winner_epoch": float(found.won.epoch),
        "candidates/winner_ema_pseudo_dice": found.won.ema_pseudo_dice,
        "candidates/winner_dice_mean_optimistic": found.won.dice_mean,
    }
    return {key: value for key, value in values.items() if value is not None}


def _row(score: CandidateScore, found: Candidates) -> dict[str, str | float | int | None]:
    return {
        "epoch": score.epoch,
        "full_dice_mean_optimistic": score.dice_mean,
        "ema_pseudo_dice": score.ema_pseudo_dice,
        "winner_optimistic": "winner" if score.epoch == found.winner else "",
        "also": " ".join(score.also),
    }
