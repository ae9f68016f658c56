"""A run of a cascade's second stage and the runs whose segmentations it needs: a pure policy over their states."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.follow.next_step import End, Step, Train, Wait
from trainers.contract.run_spec import RunSpec
from trainers.contract.states import RunState


@dataclass(frozen=True)
class FirstStageRun:
    """A run of the first stage as its campaign knows it, or as its folder shows it."""

    model: str
    """The address of its model."""
    address: str
    state: RunState
    reason: str = ""


def needed_of(spec: RunSpec, runs: Mapping[str, FirstStageRun], elsewhere: Collection[str] = ()) -> list[FirstStageRun]:
    """The runs, by run key, whose segmentations a run needs. What is not among them was made before.

    `elsewhere`: keys of runs that others have not brought to their end.
    """
    stage = spec.previous_stage
    if stage is None:
        return []
    model = spec.model_copy(update={"configuration": stage.configuration}).model
    others = {key: FirstStageRun(model, key, RunState.QUEUED) for key in stage.run_keys if key in elsewhere}
    known = {**others, **runs}
    return [known[key] for key in stage.run_keys if key in known]


def after_first_stage(step: Step, needed: Sequence[FirstStageRun]) -> Step:
    """What happens next with a run that needs the segmentations of others: it waits until all are validated, and ends with the first of
    them that ends without. What has a job already, or has trained, goes on."""
    if not isinstance(step, Train):
        return step
    for run in needed:
        if run.state.is_final and run.state is not RunState.SUCCEEDED:
            why = f": {run.reason}" if run.reason else "."
            advice = "Once that is repaired, submit the experiment again: both continue."
            return End(run.state, f"needs the segmentations of {run.address}, which ended {run.state.value}{why} {advice}")
    done = sum(run.state is RunState.SUCCEEDED for run in needed)
    if done == len(needed):
        return step
    return Wait(step.state, f"waits for the segmentations of {needed[0].model}: {done} of {len(needed)} runs are validated.")
