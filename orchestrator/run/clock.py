"""The clocks that decisions go by, as one value that tests replace.

Whatever waits for something, gives up on it, or repeats it after a while takes a `Clock`: the campaign's loop, its observers and reporter,
and the wait for orphan workers. `time` itself is called only to stamp a record for people or for another process, and where a job of its
own waits for one thing that its tests shorten by a constant.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """A decision goes by `monotonic`, which no one sets; `unix` only hints: it may jump, and other machines have another."""

    unix: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
