"""The clocks that decisions go by, as one value that tests replace."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """A decision goes by `monotonic`, which no one sets; `unix` only hints: it may jump, and other machines have another."""

    unix: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
