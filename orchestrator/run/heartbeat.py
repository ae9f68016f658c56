"""Is somebody at work on a run? The one table of how long silence may last, and the one watch that measures it.

A watch goes by changes that this process sees while its own monotonic clock runs; time stamps of other machines are never compared with it.
"""

import math
from dataclasses import dataclass
from typing import Any

from orchestrator.run.clock import Clock
from trainers.contract.records import HEARTBEAT_S

FRESH_S = 60.0
"""Workers without a heartbeat for so long are taken to be gone."""
MIN_OBSERVATION_S = 3 * HEARTBEAT_S
"""The least time of looking for a heartbeat, even where the stamp of the last one is old."""
ORPHANS_PATIENCE_S = 90.0
"""Workers with heartbeats for so long after a submission has begun to wait are no leftovers: the submission is refused."""
PROBE_AFTER_S = 20.0
"""After so long without a heartbeat, and again after as long, a campaign tries whether the run's disk takes a file."""
SILENT_S = 120.0
"""After so long without a heartbeat the status of a run says so."""
VALIDATION_FRESH_S = 900.0
"""A full validation on an unknown cluster shows that it is alive by finished cases alone, and a large one takes minutes."""


@dataclass(frozen=True)
class ChangeWatch:
    """What was last seen, and since when it has been so: by the monotonic clock, and by the one that people read."""

    value: Any = None
    since_s: float = -math.inf
    since_unix: float = 0.0

    def seen(self, value: Any, clock: Clock) -> "ChangeWatch":
        """This watch if `value` is what was seen before, else one that begins now."""
        return self if value == self.value else ChangeWatch(value, clock.monotonic(), clock.unix())

    def unchanged_s(self, clock: Clock) -> float:
        """For how long it has been so; infinite before anything was seen."""
        return clock.monotonic() - self.since_s
