"""Waiting for a campaign or a test set in the foreground, and what Ctrl-C, SIGTERM and a closed terminal (SIGHUP) mean there."""

import contextlib
import os
import shlex
import signal
import sys
from typing import TYPE_CHECKING, Literal

import typer

from orchestrator.cli.output import EXIT_DETACHED, EXIT_RUN_STOPPED, note, working
from orchestrator.cli.parameters import cluster_option
from orchestrator.errors import NnfleetError
from orchestrator.run.interrupts import HungUp, Terminated

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

    again = shlex.join(["nnfleet", *sys.argv[1:]])
    return in_foreground(lambda on_submit: api.submit(experiment, cluster, on_submit, note, replaces=replaces, again=again), cluster, doing)


def in_foreground(send: "Callable[[Callable[[str], None]], Submission]", cluster: str | None, doing: str) -> "Submission":
    """What `send` submits, in the foreground likewise; it calls its argument with the campaign's id just before that is sent.

    A terminal that is closed withdraws nothing: exits with EXIT_DETACHED.
    """
    from orchestrator import api

    sent: list[str] = []
    try:
        with working(doing):
            return send(sent.append)
    except KeyboardInterrupt as interrupt:
        if not sent:
            note("Nothing was submitted.")
            raise
        if isinstance(interrupt, HungUp):
            raise typer.Exit(EXIT_DETACHED) from None
        note("Withdrawing what was submitted ...")
        try:
            ended = api.withdraw(sent[0], cluster)
        except (NnfleetError, KeyboardInterrupt):
            note(
                f"Campaign {sent[0]} may still run. See it and stop its runs: nnfleet status --campaign {sent[0]}{cluster_option(cluster)}"
            )
            raise
        note(f"Withdrawn: {', '.join(ended)}." if ended else _not_stored(sent[0], cluster))
        raise


def _not_stored(campaign: str, cluster: str | None) -> str:
    """Of a campaign that was sent, and that the job server does not list as alive."""
    option = cluster_option(cluster)
    return (
        f"No job of campaign {campaign} is at work. Should the job server store it after all: nnfleet status --campaign {campaign}{option} "
        f"shows it, nnfleet stop --campaign {campaign}{option} ends it."
    )


@contextlib.contextmanager
def hearing_signals() -> "Iterator[None]":
    """SIGTERM raises Terminated in this thread, and SIGHUP raises HungUp, as Ctrl-C raises KeyboardInterrupt. A SIGHUP that was ignored
    before, as by nohup, stays so."""
    on_terminal = [stream.fileno() for stream in (sys.stdout, sys.stderr) if stream.isatty()]

    def raise_terminated(*_: object) -> None:
        raise Terminated

    def raise_hung_up(*_: object) -> None:
        with open(os.devnull, "w") as nowhere:
            for descriptor in on_terminal:  # else the next line that is printed is an error
                os.dup2(nowhere.fileno(), descriptor)
        raise HungUp

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, raise_terminated)}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, raise_hung_up)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def following_a_test_set(cluster: str | None) -> "Iterator[Callable[[str, bool], None]]":
    """What signals mean while a test set is waited for; gives the `on_job` of `api.evaluate`.

    Exits with EXIT_DETACHED where its job goes on: at SIGHUP, and where another command began it; at SIGTERM with EXIT_RUN_STOPPED.
    """
    jobs: dict[str, bool] = {}
    with hearing_signals():
        try:
            yield jobs.__setitem__
        except KeyboardInterrupt as interrupt:
            for job, is_own in jobs.items():
                if isinstance(interrupt, HungUp) or not is_own:
                    note(f"Detached: {job} goes on. The same command follows it, nnfleet stop {job}{cluster_option(cluster)} ends it.")
                    raise typer.Exit(EXIT_DETACHED) from None
                note("Finished cases are kept: the same command continues.")
                if isinstance(interrupt, Terminated):
                    raise typer.Exit(EXIT_RUN_STOPPED) from None
            raise


def wait_in_foreground(campaign_id: str, cluster: str | None) -> list["RunStatus"]:
    """Show the campaign until every run has ended. Ctrl-C asks what to do; SIGTERM stops the runs after their epoch.

    Exits with EXIT_DETACHED when the person detaches, or closes the terminal.
    """
    from orchestrator import api
    from orchestrator.cli.watch import Watch

    while True:
        answer: Answer | None = None
        with Watch() as watch:
            try:
                return api.wait(campaign_id, cluster, watch)
            except Terminated:
                answer = "stop"
            except HungUp:
                answer = "detach"
            except KeyboardInterrupt:
                pass
        answer = answer or ask()
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
