"""What a campaign has told so far, read back from its log: the laptop's only window onto runs whose folders it does not see."""

import contextlib
import json
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from orchestrator import errors
from orchestrator.experiment.plan import PlanReport
from orchestrator.run.status import RunStatus
from trainers.contract.errors import NnfleetError

EVENT_PREFIX = "NNFLEET "


@dataclass
class CampaignLog:
    """The newest of everything in a campaign's log. `text` is the whole log each time; only what is new is parsed."""

    statuses: dict[str, RunStatus] = field(default_factory=dict)
    plan: PlanReport | None = None
    error: NnfleetError | None = None
    waits: str = ""
    """Why it has not begun yet."""
    exit_code: int | None = None
    """Set once every run has come to its end."""
    _read: int = 0

    def update(self, text: str) -> "CampaignLog":
        """Take in what the log holds beyond what was read before; an unfinished last line is left for later."""
        end = text.rfind("\n") + 1
        for line in text[self._read : end].splitlines():
            if line.startswith(EVENT_PREFIX):
                self._take(line.removeprefix(EVENT_PREFIX))
        self._read = max(self._read, end)
        return self

    def _take(self, line: str) -> None:
        # a line of another version, or one that is not the campaign's, says nothing to us
        with contextlib.suppress(ValueError, ValidationError, KeyError, TypeError, OverflowError, RecursionError):
            event: dict[str, Any] = json.loads(line)
            match event["event"]:
                case "status":
                    before = self.statuses.get(event["status"]["run_key"])
                    known = {} if before is None else before.model_dump()
                    status = RunStatus.model_validate({**known, **event["status"]})
                    self.statuses[status.run_key] = status
                case "plan":
                    self.plan = PlanReport.model_validate(event["plan"])
                case "waiting":
                    self.waits = str(event["message"])
                case "error":
                    self.error = error_named(str(event["error"]), str(event["message"]))
                case "done":
                    self.exit_code = int(event["exit_code"])


def error_named(name: str, message: str) -> NnfleetError:
    """The error of the tree with this name, so that it is handled here as if it had been raised here."""
    kind = getattr(errors, name, NnfleetError)
    return kind(message) if isinstance(kind, type) and issubclass(kind, NnfleetError) else NnfleetError(message)
