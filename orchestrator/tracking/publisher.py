"""Delivers a run to MLflow from the training driver, in threads that never hold the driver up and never raise into it.

Two channels, so that a long upload does not delay metrics: `metrics`, and `checkpoints and files`. Each looks at the run folder,
sends what MLflow lacks, waits, and looks again; the run folder is the mailbox, so the newest always wins. While the server is away
a channel waits longer and longer, says so once, and catches up afterwards. What is not delivered when the time is up stays in the
run folder, for the next attempt or for `deliver`.
"""

import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.errors import NnfleetError, Superseded
from orchestrator.tracking.delivery import Delivery
from trainers.contract.fencing import newest_token
from trainers.contract.run_folder import RunFolder

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 60.0
LONGEST_WAIT_WHEN_CLOSING_S = 2.0


def backoff_s(failures: int, closing: bool) -> float:
    """How long to wait after so many failures in a row: 1, 2, 4, ... seconds, at most a minute, or two seconds when the time is short."""
    longest = LONGEST_WAIT_WHEN_CLOSING_S if closing else LONGEST_WAIT_S
    return min(longest, 2.0 ** min(failures - 1, 10))


@dataclass
class Outage:
    """Tells once that deliveries fail, and once that they work again."""

    channel: str
    failures: int = 0
    since: float = field(default=0.0)

    def failed(self, err: Exception) -> None:
        """Count one failure; the first of a row is told."""
        if self.failures == 0:
            self.since = time.time()
            started = time.strftime("%H:%M:%S", time.localtime(self.since))
            unexpected = not isinstance(err, NnfleetError)
            log.warning(
                "MLflow gets no %s since %s: %s Training goes on; everything stays in the run folder and is sent when it works again.",
                self.channel,
                started,
                err,
                exc_info=unexpected,
            )
        self.failures += 1

    def ended(self) -> None:
        """A delivery worked."""
        if self.failures:
            log.warning("MLflow gets %s again, after %.0f s.", self.channel, time.time() - self.since)
        self.failures = 0


class Publisher:
    """Delivers one run folder while it is written. `start`, then `flush` when the training has ended, then `stop`."""

    def __init__(self, folder: RunFolder, fencing_token: int, interval_s: float = 2.0) -> None:
        self._interval_s = interval_s
        self._uploading = folder.uploading
        self._changed = threading.Condition()
        self._stopping = False
        self._wanted = 0  # number of the newest flush that was asked for
        self._lacks_picture = False
        self._superseded: set[str] = set()  # channels that have ended because a newer attempt owns the run
        metrics, files = Delivery(folder, fencing_token), Delivery(folder, fencing_token)

        def send_files(closing: bool) -> bool:
            try:
                files.draw(closing)
                self._lacks_picture = False
            except Superseded:
                raise
            except Exception as err:  # a picture keeps back no checkpoint
                if not self._lacks_picture:
                    log.warning("progress.png of %s is not drawn: %s", folder.root, err, exc_info=not isinstance(err, NnfleetError))
                self._lacks_picture = True
            files.send_files(closing)
            return files.is_complete()

        def send_metrics(closing: bool) -> bool:
            metrics.send_metrics(closing)
            return metrics.is_complete()

        channels: dict[str, tuple[Delivery, Callable[[bool], bool]]] = {
            "metrics": (metrics, send_metrics),
            "checkpoints and files": (files, send_files),
        }
        self._threads = [
            threading.Thread(target=self._run, args=(channel, *parts), name=f"publisher: {channel}", daemon=True)
            for channel, parts in channels.items()
        ]
        self._flushed = dict.fromkeys(channels, 0)  # per channel: number of the newest flush that was done

    def start(self) -> None:
        """Begin to deliver, after clearing what an upload that was killed has left."""
        shutil.rmtree(self._uploading, ignore_errors=True)
        for thread in self._threads:
            thread.start()

    def flush(self, deadline_s: float) -> bool:
        """Deliver everything that is committed now, without regard to intervals; True if that was done within `deadline_s` seconds."""
        with self._changed:
            self._wanted += 1
            wanted = self._wanted
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._open_channels(wanted) - self._superseded, deadline_s)
            return not self._open_channels(wanted)

    def _open_channels(self, flush: int) -> set[str]:
        return {channel for channel, done in self._flushed.items() if done < flush}

    def stop(self) -> None:
        """End the threads after what they are doing; waits for that no longer than two seconds. They do not keep the process alive."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=1.0)

    def _run(self, channel: str, delivery: Delivery, step: Callable[[bool], bool]) -> None:
        outage = Outage(channel)
        while not self._stopping:
            wanted = self._wanted
            closing = wanted > self._flushed[channel]
            try:
                complete = step(closing)
            except Superseded as err:
                log.warning("MLflow gets no more %s from here: %s", channel, err)
                self._superseded.add(channel)
                self._notify()
                return
            except Exception as err:
                outage.failed(err)
                delivery.forget_server()
                self._wait(backoff_s(outage.failures, closing), wanted)
                continue
            outage.ended()
            if complete and closing:
                self._done(channel, wanted)
            self._wait(self._interval_s, wanted)

    def _done(self, channel: str, flush: int) -> None:
        self._flushed[channel] = flush
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _wait(self, seconds: float, seen: int) -> None:
        """Wait, but not past a stop or a flush that was asked for meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._wanted > seen, seconds)


def deliver(folder: RunFolder, deadline_s: float) -> bool:
    """Deliver what a run folder holds and MLflow lacks; True if nothing is left. Called where no publisher runs: after training."""
    publisher = Publisher(folder, newest_token(folder), interval_s=0.5)
    publisher.start()
    try:
        return publisher.flush(deadline_s)
    finally:
        publisher.stop()
