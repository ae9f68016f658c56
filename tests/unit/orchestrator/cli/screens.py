"""Four models of five folds in every state, and their plan: what a lab's screen shows."""

from pathlib import Path
from typing import Any

from orchestrator.experiment.plan import PlanReport
from orchestrator.queue.gang_fit import FitWhen
from orchestrator.run.progress import Progress, Stage
from orchestrator.run.status import CasesDone, RunStatus
from tests.unit.orchestrator.cli.test_cli import plan_report
from trainers.contract.states import RunState

LONG = "4/3d_fullres/nnUNetTrainerDA5@nnUNetResEncUNetMPlans+lowlr+seed1"
MIXED = "4/3d_fullres/nnUNetTrainer_250epochs"
WAITS = "4/3d_lowres/nnUNetTrainerDA5"
DONE = "4/2d/nnUNetTrainer"
STATES = {
    DONE: [RunState.SUCCEEDED] * 5,
    LONG: [RunState.RUNNING, RunState.RECOVERING, *[RunState.QUEUED] * 3],
    MIXED: [RunState.VALIDATING, RunState.SUCCEEDED, RunState.STOPPED, RunState.FAILED_CLUSTER, RunState.PAUSED],
    WAITS: [RunState.QUEUED] * 5,
}
REASONS = {
    RunState.QUEUED: "waits for 2 GPUs: 0 of 8 are free.",
    RunState.RECOVERING: "its workers were lost.",
    RunState.STOPPED: "stopped as asked.",
    RunState.FAILED_CLUSTER: "a node was lost three times without progress.",
    RunState.PAUSED: "no campaign of this cluster follows it; `nnfleet resume` continues it.",
}
EPOCHS = {RunState.QUEUED: 0, RunState.SUCCEEDED: 1000, RunState.VALIDATING: 1000}


def statuses() -> list[RunStatus]:
    """Of all twenty runs, the folds as campaigns report them: in the order in which they started."""
    return [_status(model, fold, states[fold]) for model, states in STATES.items() for fold in (1, 0, 2, 4, 3)]


def _status(model: str, fold: int, state: RunState) -> RunStatus:
    done = EPOCHS.get(state, 120 + fold)
    trains = state in (RunState.RUNNING, RunState.RECOVERING)
    return RunStatus(
        run_key=f"{model}/{fold}",
        address=f"{model}/{fold}",
        campaign="c1",
        state=state,
        epochs_done=done,
        epochs=1000,
        fraction_of_epoch=0.5 if trains else 0.0,
        ema_pseudo_dice=0.71 if done else None,
        best_ema_pseudo_dice=0.7234 if done else None,
        epoch_s=62.3 if done else None,
        seconds_left=54321.0 if trains else None,
        reason=REASONS.get(state, ""),
        validation=CasesDone(checkpoint="best", done=3, cases=52) if state is RunState.VALIDATING else None,
        full_dice={"best": 0.8912, "final": 0.8901} if state is RunState.SUCCEEDED else {},
        run_folder=Path(f"/r/{model}/fold_{fold}"),
    )


def planned() -> PlanReport:
    """The plan of these runs."""
    rows: list[tuple[str, Stage, FitWhen, str, dict[str, Any]]] = [
        (DONE, "finished", "now", "nothing is left to do.", {"batch_per_rank": (25, 24)}),
        (LONG, "continues", "now", "2 GPUs are free.", {"seed": 1}),
        (MIXED, "validates", "later", "waits behind 3 runs: 0 of 8 GPUs are free now.", {}),
        (WAITS, "new", "never", "no node has 2 GPUs.", {"most_workers": 8, "batch_per_rank_of_most": (1, 1)}),
    ]
    report = plan_report()
    shared = {"n_train": 208, "n_val": 52, "epochs": 1000, "iterations": 250, "workers": 2, "batch_per_rank": (1, 1)}
    changes = [
        {**shared, "address": f"{model}/{fold}", "progress": Progress(stage=stage, epochs_done=120), "fits": fits, "because": why, **more}
        for model, stage, fits, why, more in rows
        for fold in range(5)
    ]
    return report.model_copy(update={"rows": tuple(report.rows[0].model_copy(update=change) for change in changes)})
