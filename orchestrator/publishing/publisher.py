"""Delivers a run to MLflow from the training driver, in threads that never hold the driver up and never raise into it.

Two channels, so that a long upload does not delay metrics. Each looks at the run folder, sends what MLflow lacks, waits, and looks again;
the run folder is the mailbox, so the newest always wins. While the server is away a channel waits longer and longer, logs that once, and
catches up afterwards. What is not delivered when the time is up stays in the run folder, for the next driver or for `deliver_run`.
"""

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.errors import NnfleetError, Superseded
from orchestrator.publishing.files_channel import FilesChannel
from orchestrator.publishing.metrics_channel import MetricsChannel
from orchestrator.publishing.upload_links import clear_uploads
from orchestrator.run.undelivered import forget_undelivered, note_undelivered
from trainers.contract.run_folder import RunFolder
from trainers.storage.faults import backoff_s

log = logging.getLogger(__name__)

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
LONGEST_WAIT_WHEN_CLOSING_S = 2.0


class Channel(Protocol):
    """A kind of things that MLflow gets of one run. Used by one thread."""

    name: str

    def send(self, closing: bool) -> bool:
        """Send what is due, when `closing` without regard to intervals; True when MLflow has all that is committed."""

    def forget_server(self) -> None:
        """Ask anew what MLflow has: it failed."""


@dataclass
class Outage:
    """Logs once that deliveries fail, and once that they work again; meanwhile the run folder says so, for `status`."""

    channel: str
    folder: RunFolder | None = None
    failures: int = 0
    since: float = field(default=0.0)
    has_worked: bool = False

    def failed(self, err: Exception) -> None:
        """Count one failure; the first of a row is logged."""
        if self.failures == 0:
            self.since = time.time()
            log.warning(
                "MLflow gets no %s since %s: %s Training goes on; everything stays in the run folder and is sent when it works again.",
                *(self.channel, time.strftime("%H:%M:%S", time.localtime(self.since)), err),
                exc_info=not isinstance(err, NnfleetError),
            )
        self.failures += 1
        if self.folder is not None:
            note_undelivered(self.folder, self.channel, self.since, str(err))

    def ended(self) -> None:
        """A delivery worked."""
        if self.failures:
            log.warning("MLflow gets %s again, after %.0f s.", self.channel, time.time() - self.since)
        if self.folder is not None and (self.failures or not self.has_worked):
            forget_undelivered(self.folder, self.channel)  # also what a dead publisher has left
        self.failures, self.has_worked = 0, True


class Publisher:
    """Delivers one run folder while it is written. `start`, then `flush` when the training has ended, then `stop`."""

    def __init__(self, folder: RunFolder, fencing_token: int, interval_s: float = 2.0, first_s: float = 0.0) -> None:
        """`interval_s`: between looks at the run folder; `first_s`: before the first, unless a flush is requested meanwhile."""
        self._folder = folder
        self._interval_s, self._first_s = interval_s, first_s
        self._changed = threading.Condition()
        self._stopping = False
        self._requested = 0  # number of the newest flush
        channels: tuple[Channel, ...] = (MetricsChannel(folder, fencing_token), FilesChannel(folder, fencing_token))
        self._flushed = {channel.name: 0 for channel in channels}  # number of the newest flush that was done
        self._superseded: set[str] = set()  # channels that have ended because another driver owns the run
        self._threads = [
            threading.Thread(target=self._run, args=(channel,), name=f"publisher: {channel.name}", daemon=True) for channel in channels
        ]

    def start(self) -> None:
        """Begin to deliver, after removing what dead publishers have left."""
        clear_uploads(self._folder, time.time())
        for thread in self._threads:
            thread.start()

    def flush(self, deadline_s: float) -> bool:
        """Deliver everything that is committed now, without regard to intervals; True if that was done within `deadline_s` seconds."""
        with self._changed:
            self._requested += 1
            requested = self._requested
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._unfinished(requested) - self._superseded, deadline_s)
            return not self._unfinished(requested)

    def _unfinished(self, flush: int) -> set[str]:
        return {channel for channel, done in self._flushed.items() if done < flush}

    def stop(self) -> None:
        """End the threads after what they are doing; waits for that no longer than two seconds. They do not keep the process alive."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=1.0)

    def _run(self, channel: Channel) -> None:
        outage = Outage(channel.name, self._folder)
        self._wait(self._first_s, 0)
        while not self._stopping:
            requested = self._requested
            closing = requested > self._flushed[channel.name]
            try:
                is_complete = channel.send(closing)
            except Superseded as err:
                log.warning("MLflow gets no more %s from here: %s", channel.name, err)
                with self._changed:
                    self._superseded.add(channel.name)
                    self._changed.notify_all()
                return
            except Exception as err:
                outage.failed(err)
                channel.forget_server()
                longest_s = LONGEST_WAIT_WHEN_CLOSING_S if closing else LONGEST_WAIT_S
                self._wait(backoff_s(outage.failures, FIRST_WAIT_S, longest_s), requested)
                continue
            outage.ended()
            if is_complete and closing:
                with self._changed:
                    self._flushed[channel.name] = requested
                    self._changed.notify_all()
            self._wait(self._interval_s, requested)

    def _wait(self, seconds: float, seen: int) -> None:
        """Wait, but not past a stop or a flush that was requested meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._requested > seen, seconds)


def deliver_run(folder: RunFolder, fencing_token: int, deadline_s: float) -> bool:
    """Deliver what a run folder holds and MLflow lacks, for the driver of `fencing_token`; True if nothing is left.

    Called where no publisher runs: after training. Ends at once when another driver owns the run.
    """
    publisher = Publisher(folder, fencing_token, interval_s=0.5)
    publisher.start()
    try:
        return publisher.flush(deadline_s)
    finally:
        publisher.stop()
