"""`nnfleet stop`: end runs and keep their checkpoints."""

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import note, print_json, say, working
from orchestrator.cli.parameters import AsJson, Cluster, Runs, cluster_option
from trainers.contract.states import RunState

if TYPE_CHECKING:
    from orchestrator.run.job_record import JobRecord
    from orchestrator.run.status import RunStatus


def stop(
    runs: Runs = None,
    campaign: Annotated[str | None, typer.Option("--campaign", metavar="ID", help="All runs of this campaign.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All runs and test sets of the cluster that have not ended.")] = False,
    now: Annotated[bool, typer.Option("--now", help="At once, dropping the epoch in flight; else after this epoch.")] = False,
    finish: Annotated[bool, typer.Option("--finish", help="After this epoch, as a trained run: it is validated and published.")] = False,
    anneal: Annotated[
        int, typer.Option("--anneal", metavar="N", min=0, help="With --finish: after N more epochs, the learning rate annealed over them.")
    ] = 0,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> None:
    """Stop runs, with a loadable checkpoint once an epoch has ended; submitting them again continues them. With --finish they end early
    as trained runs.
    """
    from orchestrator import api
    from orchestrator.cli.models import by_fold

    tests: list[JobRecord] = []
    with working("Asking to stop ..."):
        how = partial(api.stop, campaign=campaign, everything=everything, finish=finish, anneal=anneal)
        statuses = how(runs or (), now, cluster, on_wait=note, on_test_set=tests.append)
    for job in tests:
        (note if as_json else say)(f"{job.submission_id}  asked to end now ({job.test_set}; finished cases are kept)")
    if as_json:
        print_json([item.model_dump(mode="json") for item in statuses])
        return
    for item in by_fold(statuses):
        say(f"{item.address}  {_answer_to_finish(item, anneal) if finish else _answer(item, now)}")
    if any(item.campaign and not item.state.is_final for item in statuses):
        note(f"See it: nnfleet status --watch{cluster_option(cluster)}")
    elif not (statuses or tests):
        say("Nothing is left to stop.")


def _answer(status: "RunStatus", now: bool) -> str:
    """What becomes of a run that was asked to stop."""
    if not status.is_claimed:
        return "never began; `nnfleet status` shows it no more"
    if status.state is RunState.PAUSED:
        return f"was paused, and is stopped now: `nnfleet resume` leaves it, `nnfleet resume {status.run_key}` continues it"
    if status.state.is_final:
        return f"had ended before: {status.state.value}"
    if not status.campaign:
        return f"was not asked: {status.reason}"
    if now or status.state is RunState.QUEUED:
        return f"asked to end now (was {status.state.value}, {status.epochs_done}/{status.epochs} epochs are kept)"
    if status.state is RunState.VALIDATING:
        return "asked to end after the cases in work (was VALIDATING)"
    if not status.phase:
        return f"asked to end before its next epoch (was {status.state.value}, {status.epochs_done}/{status.epochs} epochs are done)"
    return f"asked to end after the epoch in flight (was {status.state.value}, epoch {status.epochs_done}/{status.epochs})"


def _answer_to_finish(status: "RunStatus", anneal: int) -> str:
    """What becomes of a run that was asked to end early as a trained run."""
    from orchestrator.run.status import cannot_finish

    if status.state is RunState.PAUSED:
        return f"was not asked: it is paused; `nnfleet resume {status.run_key}` continues it"
    if status.state.is_final:
        return f"had ended before: {status.state.value}"
    why = cannot_finish(status) if status.campaign else status.reason
    if why or not status.campaign:
        return f"was not asked: it {why}" if status.campaign else f"was not asked: {why}"
    done = f"epoch {status.epochs_done}/{status.epochs}"
    when = f"after {anneal} more epochs with an annealed learning rate" if anneal else "after the epoch in flight"
    return f"asked to end early {when}; then it is validated (was {status.state.value}, {done})"
