"""Messages to people about the runs of a campaign, by the services that `apprise` knows: mail, chats, webhooks.

The addresses hold secrets, so they stand in the environment of the cluster's head and nowhere else: no message, log or error shows one.
A message that cannot be sent delays no run and is tried again a few times.
"""

import importlib.util
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from orchestrator.follow.followed_run import FollowedRun
from orchestrator.tracking.records import shared_reason
from trainers.contract.run_spec import Notify
from trainers.contract.states import RunState
from trainers.errors import StorageError

log = logging.getLogger(__name__)

RETRIES_S = (5.0, 30.0, 120.0)
"""Seconds before each further try of a message."""
PATIENCE_S = 240.0
"""How long the end of a campaign waits for its last messages, whatever is queued: one with all its tries, and some time to send it."""
LONGEST_LIST = 20
"""Runs that a message names; of more only the number."""
Send = Callable[[Sequence[str], str, str], bool]
"""Sends (addresses, title, body); False when some service did not take it."""


class Notices:
    """What people are to hear of a campaign's runs."""

    def __init__(self, campaign: str, warn: Callable[[str], None], send: Send | None = None, env: Mapping[str, str] = os.environ) -> None:
        self._campaign = campaign
        self._warn = warn
        self._send = send or send_by_apprise
        self._env = env
        self._to_the_end: set[str] = set()
        """Variables with the addresses of those who asked for a summary, once a run of theirs has ended."""
        self._unsent: dict[str, list[FollowedRun]] = {}
        self._messages: queue.Queue[tuple[str, str, str]] = queue.Queue()
        self._unfinished: list[tuple[str, str]] = []
        """(variable, title) of each message that is queued or being tried."""
        self._failed: queue.Queue[str] = queue.Queue()
        self._thread: threading.Thread | None = None

    def begin(self, runs: Collection[FollowedRun]) -> None:
        """Warn before anything is trained that no message can be sent: without addresses, or without what sends them."""
        if any(run.spec.notify for run in runs) and importlib.util.find_spec("apprise") is None:
            self._warn("notify: no message will be sent, as apprise is not installed where the head runs: `pip install 'nnfleet[notify]'`.")
        for name in sorted({run.spec.notify.to for run in runs if run.spec.notify}):
            if not self._addresses(name):
                self._warn(
                    f"notify: no message will be sent, as {name} is not set where the cluster's head runs. "
                    f"Set it to addresses as apprise writes them and start the services again (`nnfleet up`)."
                )

    def note(self, run: FollowedRun) -> None:
        """A run has come to its end."""
        if (notify := run.spec.notify) is None:
            return
        if "ended" in notify.when:
            self._to_the_end.add(notify.to)
        if wants(notify, run.state):
            self._unsent.setdefault(notify.to, []).append(run)

    def send(self) -> None:
        """Hand over one message for all that was noted since the last look, for each list of addresses; never raises."""
        unsent, self._unsent = self._unsent, {}
        for name, runs in unsent.items():
            self._post(name, title_of(runs), body_of(runs))
        while not self._failed.empty():
            self._warn(self._failed.get())

    def close(self, runs: Sequence[FollowedRun]) -> None:
        """Every run has ended: the summary, to those who asked for it, unless nothing ended under this campaign; waits a little."""
        for name in sorted(self._to_the_end):
            self._post(name, f"campaign {self._campaign} has ended: {counts(runs)}", body_of(runs))
        self._wait()

    def fail(self, names: Collection[str], reason: str) -> None:
        """The campaign ends before it owns a run: a message to these lists of addresses; waits a little."""
        for name in sorted(names):
            self._post(name, f"campaign {self._campaign} failed before its runs began", reason)
        self._wait()

    def _wait(self) -> None:
        """Until all messages are sent, or for so long; warns of each that was not."""
        ends_s = time.monotonic() + PATIENCE_S
        while self._unfinished and time.monotonic() < ends_s:
            time.sleep(0.05)
        self.send()
        for name, title in list(self._unfinished):
            self._warn(f"notify: a message was not sent to {name} before the campaign's job ended: {title}")

    def _addresses(self, name: str) -> list[str]:
        return self._env.get(name, "").split()

    def _post(self, name: str, title: str, body: str) -> None:
        if not self._addresses(name):
            return
        self._unfinished.append((name, title))
        self._messages.put((name, title, body))
        if self._thread is None:
            self._thread = threading.Thread(target=self._deliver, name="notices", daemon=True)
            self._thread.start()

    def _deliver(self) -> None:
        while True:
            name, title, body = self._messages.get()
            try:
                if not self._is_taken(name, title, body):
                    self._failed.put(f"notify: a message could not be sent to all addresses of {name}: {title}")
            finally:
                self._unfinished.remove((name, title))

    def _is_taken(self, name: str, title: str, body: str) -> bool:
        for wait_s in (0.0, *RETRIES_S):
            time.sleep(wait_s)
            try:
                if self._send(self._addresses(name), f"nnfleet: {title}", body):
                    return True
            except Exception as err:  # a service's library; its text may hold the address
                log.warning("notify: %s: a message was not sent (%s)", name, type(err).__name__)
        return False


class NoticeOfFailure:
    """Who hears of a campaign that fails before it owns its runs: until then it has none that a message could be about."""

    def __init__(self, campaign: str) -> None:
        self.campaign = campaign
        self._names: set[str] = set()
        self._shows_reason = True

    def ask(self, asked: Collection[Notify | None], *, pseudonyms: bool) -> None:
        """From now on a failure is a message to those who asked for failures or for the end. `pseudonyms`: without its reason."""
        self._names = {notify.to for notify in asked if notify is not None and not {"failed", "ended"}.isdisjoint(notify.when)}
        self._shows_reason = not pseudonyms

    def withdraw(self) -> None:
        """The campaign owns its runs: the messages are theirs."""
        self._names = set()

    @property
    def is_asked(self) -> bool:
        """A failure at this moment is a message."""
        return bool(self._names)

    def send(self, reason: str) -> None:
        """Send it, if anybody asked; waits a little. `reason`: without secrets."""
        if self.is_asked:
            hidden = f"The reason may name cases; it is in the log of the job campaign-{self.campaign}."
            Notices(self.campaign, log.warning).fail(self._names, reason if self._shows_reason else hidden)


def wants(notify: Notify, state: RunState) -> bool:
    """Whether the end of a run in this state is a message of its own. Pure."""
    return ("failed" in notify.when and state.is_failure) or ("succeeded" in notify.when and state is RunState.SUCCEEDED)


def counts(runs: Sequence[FollowedRun]) -> str:
    """`2 FAILED_CODE, 8 SUCCEEDED`: failures first. Pure."""
    states = [run.state for run in in_order(runs)]
    return ", ".join(f"{states.count(state)} {state.value}" for state in dict.fromkeys(states))


def in_order(runs: Sequence[FollowedRun]) -> list[FollowedRun]:
    """Failures first. Pure."""
    return sorted(runs, key=lambda run: not run.state.is_failure)


def title_of(runs: Sequence[FollowedRun]) -> str:
    """`17/2d/nnUNetTrainer/0: FAILED_CODE`, of several `3 runs: 1 FAILED_CODE, 2 SUCCEEDED`."""
    return f"{runs[0].spec.address}: {runs[0].state.value}" if len(runs) == 1 else f"{len(runs)} runs: {counts(runs)}"


def body_of(runs: Sequence[FollowedRun]) -> str:
    """A line for each run: how it ended, how far it came, its scores, and for a failure what to do."""
    lines = [_line(run) for run in in_order(runs)[:LONGEST_LIST]]
    more = [f"and {len(runs) - LONGEST_LIST} more"] if len(runs) > LONGEST_LIST else []
    return "\n".join([*lines, *more])


def _line(run: FollowedRun) -> str:
    reason = shared_reason(run.spec, run.reason)
    try:
        status = run.status()
    except (StorageError, OSError):  # its folder cannot be read
        return f"{run.spec.address}: {run.state.value}. {reason}"
    epochs = f"epoch {status.epochs_done}/{status.epochs}"
    ended = ", ".join([f"{run.spec.address}: {run.state.value}", epochs, *status.full_dice_texts])
    return f"{ended}. {reason}" if reason else ended


def send_by_apprise(addresses: Sequence[str], title: str, body: str) -> bool:
    """Send to every address. False when one is not understood, or its service did not take the message."""
    import apprise

    logging.getLogger("apprise").setLevel(logging.CRITICAL)  # it logs addresses
    services = apprise.Apprise()
    is_understood = all([services.add(address) for address in addresses])
    return bool(services.notify(title=title, body=body)) and is_understood
