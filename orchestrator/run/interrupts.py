"""Signals that end a command or a job. SIGINT asks a job to end; what a shell starts in the background ignores it, and so does all that
this starts."""

import signal


class Terminated(KeyboardInterrupt):
    """SIGTERM: whoever sends it does not answer questions."""


class HungUp(KeyboardInterrupt):
    """SIGHUP: the terminal is closed, and what was submitted goes on."""


def obey_interrupts() -> None:
    """Let SIGINT raise KeyboardInterrupt in this process, also where the head, or whoever started it, was started in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
