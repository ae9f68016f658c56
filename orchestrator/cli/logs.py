"""`nnfleet logs`: the training log of a run, and what its jobs print."""

from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import note, write
from orchestrator.cli.parameters import Cluster, Run
from trainers.contract.states import RunState

if TYPE_CHECKING:
    from orchestrator.run.status import RunStatus


def logs(
    run: Run,
    cluster: Cluster = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay and print new lines.")] = False,
    earlier: Annotated[
        bool, typer.Option("--all", help="All its training logs, and what Ray has of all its jobs, each below its name.")
    ] = False,
) -> None:
    """Print the training log of a run, then what its validation job printed; after `down` or a reboot from the run folder."""
    from orchestrator import api

    statuses: list[RunStatus] = []

    def found(status: "RunStatus") -> None:
        statuses.append(status)
        if follow and (wait := waits_for(status)):
            note(f"{status.address} is {status.state} and {_waiting(wait)} Its log follows when it starts.")

    is_empty = True
    for part in filter(None, api.logs(run, cluster, follow, earlier, found)):
        is_empty = False
        write(part)
    if is_empty:
        status = next((item for item in api.status(cluster) if item.run_key == statuses[0].run_key), statuses[0]) if follow else statuses[0]
        why = f"It {_waiting(wait)}" if (wait := waits_for(status)) else status.reason
        note(f"{status.address} is {status.state} and no job of it has printed anything here. {why}".rstrip())


def waits_for(status: "RunStatus") -> str:
    """What a run waits for that trains nothing yet, in a sentence; empty for others."""
    if status.state is RunState.QUEUED:
        return status.reason or "its campaign has not read it yet."
    is_starting = status.state is RunState.RECOVERING or (status.state is RunState.RUNNING and not status.epochs_done)
    return status.reason or "its job checks the data, and its workers start." if is_starting and not status.phase else ""


def _waiting(wait: str) -> str:
    """What `waits_for` answers, after a subject: some of it has the verb."""
    return wait if wait.startswith("waits ") else f"waits: {wait}"
