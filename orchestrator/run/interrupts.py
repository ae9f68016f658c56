"""SIGINT, by which a job is asked to end. What a shell starts in the background ignores it, and so does everything that this starts."""

import signal


def obey_interrupts() -> None:
    """Let SIGINT raise KeyboardInterrupt in this process, also where the head, or whoever started it, was started in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
