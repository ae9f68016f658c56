"""Events: how a job of ours speaks to whoever submitted it, one line of its stdout each: `NNFLEET {"event": "done", ...}`.

One writer and one reader; each kind of job has a union of its own of the events that it emits (`campaign/events.py`, `drill/order.py`).
"""

import json
import sys
from collections.abc import Iterator
from typing import TypeVar

from pydantic import ConfigDict, TypeAdapter

from trainers.contract.run_spec import Frozen

EVENT_PREFIX = "NNFLEET "


class Event(Frozen):
    """One event; its subclasses are distinguished by `event`. Of a newer version's, what this one does not know is passed over."""

    model_config = ConfigDict(extra="ignore")

    event: str


AnyEvent = TypeVar("AnyEvent", bound=Event)


def line_of(event: Event) -> str:
    """The event as a line without its end: ASCII, since a job's stdout has any encoding, and readers split at whatever ends a line."""
    text = json.dumps(event.model_dump(mode="json"), ensure_ascii=False)
    text = text.encode(errors="replace").decode()  # half a surrogate pair, of a file's name, is no JSON for the reader
    return EVENT_PREFIX + json.dumps(json.loads(text))


def emit(event: Event) -> None:
    """Write one event to stdout."""
    sys.stdout.write(f"{line_of(event)}\n")
    sys.stdout.flush()


def events_in(text: str, kinds: TypeAdapter[AnyEvent]) -> Iterator[AnyEvent]:
    """The events in the log of a job. A line of another version, or one that is no event, is passed over."""
    for line in text.splitlines():
        if line.startswith(EVENT_PREFIX):
            try:
                event = kinds.validate_json(line.removeprefix(EVENT_PREFIX))
            except ValueError:
                continue
            yield event
