"""Waiting for a campaign in the foreground, and what Ctrl-C means there."""

import contextlib
import sys
from typing import TYPE_CHECKING, Literal

from orchestrator.cli.output import note, working
from orchestrator.cli.parameters import cluster_option
from orchestrator.errors import NnfleetError

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.api import Submission
    from orchestrator.experiment.model import Experiment
    from orchestrator.run.status import RunStatus

Answer = Literal["stop", "now", "detach", "keep"]
ANSWERS: dict[str, Answer] = {"s": "stop", "n": "now", "d": "detach", "k": "keep"}
QUESTION = (
    "\n[s] stop after this epoch, without validation  [n] stop now  [d] detach: it goes on without this window  [k] keep going"
    "\nYour choice [s]: "
)


def answer_of(text: str) -> Answer | None:
    """What a person typed: the first letter counts, nothing means stop; None for anything else."""
    return ANSWERS.get(text.strip().lower()[:1] or "s")


def ask() -> Answer:
    """What Ctrl-C shall do. Without a terminal to ask at: stop after this epoch. A second Ctrl-C or end of input detaches."""
    if not sys.stdin.isatty():
        return "stop"
    with contextlib.suppress(KeyboardInterrupt, EOFError):
        while True:
            print(QUESTION, end="", file=sys.stderr, flush=True)
            answer = answer_of(input())
            if answer is not None:
                return answer
    return "detach"


def submit_in_foreground(experiment: "Experiment", cluster: str | None, doing: str) -> "Submission":
    """Submit; `doing` is shown meanwhile. Ctrl-C withdraws what was sent already and reports it: no campaign stays unnoticed."""
    from orchestrator import api

    return in_foreground(lambda on_submit: api.submit(experiment, cluster, on_submit, note), cluster, doing)


def in_foreground(send: "Callable[[Callable[[str], None]], Submission]", cluster: str | None, doing: str) -> "Submission":
    """What `send` submits, in the foreground likewise; it calls its argument with the campaign's id just before that is sent."""
    from orchestrator import api

    sent: list[str] = []
    try:
        with working(doing):
            return send(sent.append)
    except KeyboardInterrupt:
        if not sent:
            note("Nothing was submitted.")
            raise
        note("Withdrawing what was submitted ...")
        try:
            ended = api.withdraw(sent[0], cluster)
        except (NnfleetError, KeyboardInterrupt):
            note(
                f"Campaign {sent[0]} may still run. See it and stop its runs: nnfleet status --campaign {sent[0]}{cluster_option(cluster)}"
            )
            raise
        note(f"Withdrawn: {', '.join(ended)}." if ended else "Withdrawn: no job of it was running yet.")
        raise


def wait_in_foreground(campaign_id: str, cluster: str | None) -> list["RunStatus"]:
    """Show the campaign until every run has ended. Ctrl-C asks what to do; returns early when the person detaches."""
    from orchestrator import api
    from orchestrator.cli.watch import Watch

    statuses: list[RunStatus] = []
    while True:
        with Watch() as watch:
            try:
                return api.wait(campaign_id, cluster, watch)
            except KeyboardInterrupt:
                statuses = watch.statuses or statuses
        answer = ask()
        if answer == "detach":
            note(f"Detached: the runs continue. See them: nnfleet status --watch{cluster_option(cluster)}")
            return statuses
        if answer in ("stop", "now"):
            note(
                "Stopping: the checkpoint of the last complete epoch stays."
                if answer == "now"
                else "Stopping after the epoch in flight ... (`nnfleet stop --now RUN` ends it at once and keeps the last complete epoch.)"
            )
            _stop_all(campaign_id, cluster, now=answer == "now")


def _stop_all(campaign_id: str, cluster: str | None, *, now: bool) -> None:
    from orchestrator import api

    for item in api.status(cluster, campaign_id):
        if not item.state.is_final:
            api.stop([item.run_key], now, cluster)
