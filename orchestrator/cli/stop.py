"""`nnfleet stop`: end a run and keep its checkpoints."""

from typing import Annotated

import typer

from orchestrator.cli.output import note, print_json, say, working
from orchestrator.cli.parameters import AsJson, Cluster, Run, cluster_option
from trainers.contract.states import RunState


def stop(
    run: Run,
    now: Annotated[bool, typer.Option("--now", help="At once, dropping the epoch in flight; else after this epoch.")] = False,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> None:
    """Stop a run, with a loadable checkpoint once an epoch has ended; submitting it again continues it."""
    from orchestrator import api
    from orchestrator.cli.tables import TRAINS, status_line

    with working("Asking the run to stop ..."):
        statuses = api.stop(run, now, cluster)
    if as_json:
        print_json([item.model_dump(mode="json") for item in statuses])
        return
    for item in statuses:
        say(status_line(item))
    if any(item.state in TRAINS for item in statuses) and not now:
        note(f"The run ends after the epoch in flight. See it: nnfleet status --watch{cluster_option(cluster)}")
    elif any(item.state is RunState.VALIDATING for item in statuses) and not now:
        note(f"The run ends after the cases in work. See it: nnfleet status --watch{cluster_option(cluster)}")
    elif any(not item.state.is_final for item in statuses):
        note(f"The run ends now. See it: nnfleet status --watch{cluster_option(cluster)}")
