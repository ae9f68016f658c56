"""`nnfleet queue`: the order in which runs start, and another place in it."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import console, note, print_json, say, working
from orchestrator.cli.parameters import AsJson, Cluster, Priority, Runs, cluster_option
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from orchestrator.campaign.queue_view import QueueReport, QueueRow

WIDE = 100
"""Terminal width from which on all columns are shown."""


def queue(
    runs: Runs = None,
    priority: Priority = None,
    first: Annotated[bool, typer.Option("--first", help="Move the named runs before all others of their user.")] = False,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> None:
    """Show the runs that wait, first in line first, with the start that is expected of each; or give the named ones another place."""
    from orchestrator import api

    if bool(runs) != (first or priority is not None):
        raise ConfigError("queue: name runs together with --priority N or --first; without any of them the queue is shown.")
    if runs:
        with working("Asking for another place ..."):
            moved = api.place(runs, cluster, priority=priority, is_first=first)
        for status in moved:
            (note if as_json else say)(f"{status.address}  {_answer(priority, first)}")
    with working("Reading the queue ..."):
        report = api.queue(cluster)
    if as_json:
        print_json(report.model_dump(mode="json"))
    elif runs:
        note(f"See it: nnfleet queue{cluster_option(cluster)}")
    elif not report.rows:
        say("No run waits.")
    else:
        out = console()
        out.print(queue_table(report, out.width))
    if report.num_preprocessing and not (as_json or runs):
        say("Runs whose data are being preprocessed have no place in it yet: `nnfleet status` shows them.")
    if report.shares and not (as_json or runs):
        say(shares_line(report))


def queue_table(report: "QueueReport", width: int) -> "RenderableType":
    """One row per run that waits."""
    from orchestrator.cli.tables import plain_table

    columns = [">#", "run", "user", ">priority", "workers", "waits since", "expected start"]
    table = plain_table(*(columns if width >= WIDE else columns[:4] + columns[-1:]))
    for number, row in enumerate(report.rows, 1):
        priority = f"{row.priority}{' first' if row.is_moved else ''}"
        cells = [str(number), row.address, row.user or "-", priority, row.workers, _time(row.since_unix), _start(row)]
        table.add_row(*(cells if width >= WIDE else cells[:4] + cells[-1:]))
    return table


def shares_line(report: "QueueReport") -> str:
    """`Held now: ann 50 %, bob 25 %.`"""
    held = sorted(report.shares.items(), key=lambda item: -item[1])
    return f"Held now: {', '.join(f'{user or chr(45)} {100 * share:.0f} %' for user, share in held)}."


def _start(row: "QueueRow") -> str:
    if row.because.startswith("Wrong request"):
        return "never: see status"
    return "not known" if row.starts_unix is None else _time(row.starts_unix)


def _time(unix: float) -> str:
    """In this machine's time."""
    return f"{datetime.fromtimestamp(unix):%Y-%m-%d %H:%M}"


def _answer(priority: int | None, first: bool) -> str:
    parts = [*([] if priority is None else [f"priority {priority}"]), *(["first of its user's runs"] if first else [])]
    return f"asked for: {', '.join(parts)}"
