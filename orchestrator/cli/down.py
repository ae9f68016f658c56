"""`nnfleet down`: end what `up` started."""

from typing import Annotated

import typer

from orchestrator.cli.output import console, note, print_json, say, working
from orchestrator.cli.parameters import AsJson
from orchestrator.errors import ClusterError, ConfigError


def down(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Also while runs have not ended; do not ask.")] = False, as_json: AsJson = False
) -> None:
    """Stop the local Ray cluster and MLflow server; runs are paused, and `nnfleet resume` continues them from their last epoch."""
    from orchestrator import api

    if not yes:
        _ask_about(_unfinished())
    with working("Stopping Ray and MLflow ..."):
        api.down()
    if as_json:
        print_json({"down": True})
        return
    say("Ray and MLflow of this machine are down.")


def _unfinished() -> list[str]:
    """A line for each run of the local cluster that has not ended; none where it does not answer."""
    from orchestrator import api
    from orchestrator.cli.models import by_fold
    from orchestrator.cli.tables import status_line

    try:
        return [status_line(status) for status in by_fold(api.local_runs()) if not status.state.is_final]
    except ClusterError as err:
        note(f"Which runs have not ended is not known: {err}")
        return []


def _ask_about(lines: list[str]) -> None:
    """Go on only if the user means it. Raises ConfigError where nobody can be asked."""
    if not lines:
        return
    for line in lines:
        note(line)
    count = f"{len(lines)} run{'s have' if len(lines) > 1 else ' has'} not ended"
    if not console(stderr=True).is_terminal:
        raise ConfigError(f"down: {count}. `nnfleet down --yes` pauses them; `nnfleet resume` continues them after the next `up`.")
    typer.confirm(f"{count}. Pause them? `nnfleet resume` continues them.", abort=True, err=True)
