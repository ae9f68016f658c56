"""Waiting for a campaign in the foreground, and what Ctrl-C and SIGTERM mean there."""

import contextlib
import signal
import sys
from typing import TYPE_CHECKING, Literal

import typer

from orchestrator.cli.output import EXIT_DETACHED, Terminated, note, working
from orchestrator.cli.parameters import cluster_option
from orchestrator.errors import NnfleetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


def submit_in_foreground(experiment: "Experiment", cluster: str | None, doing: str, *, replaces: bool = False) -> "Submission":
    """Submit; `doing` is shown meanwhile. Ctrl-C withdraws what was sent already and reports it: no campaign stays unnoticed."""
    from orchestrator import api

    return in_foreground(lambda on_submit: api.submit(experiment, cluster, on_submit, note, replaces=replaces), cluster, doing)


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


@contextlib.contextmanager
def hearing_sigterm() -> "Iterator[None]":
    """SIGTERM raises Terminated in this thread, as Ctrl-C raises KeyboardInterrupt."""

    def raise_terminated(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def wait_in_foreground(campaign_id: str, cluster: str | None) -> list["RunStatus"]:
    """Show the campaign until every run has ended. Ctrl-C asks what to do; SIGTERM stops the runs after their epoch.

    Exits with EXIT_DETACHED when the person detaches.
    """
    from orchestrator import api
    from orchestrator.cli.watch import Watch

    while True:
        is_asked = True
        with Watch() as watch:
            try:
                return api.wait(campaign_id, cluster, watch)
            except KeyboardInterrupt as interrupt:
                is_asked = not isinstance(interrupt, Terminated)
        answer = ask() if is_asked else "stop"
        if answer == "detach":
            note(f"Detached: the runs continue. See them: nnfleet status --watch{cluster_option(cluster)}")
            raise typer.Exit(EXIT_DETACHED)
        if answer in ("stop", "now"):
            note(
                "Stopping: the checkpoint of the last complete epoch stays."
                if answer == "now"
                else "Stopping after the epoch in flight, if one has begun ... "
                "(`nnfleet stop --now RUN` ends it at once and keeps the last complete epoch.)"
            )
            api.stop((), answer == "now", cluster, campaign=campaign_id, on_wait=note)
