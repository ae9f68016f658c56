"""The events of a campaign, and what they come to: the laptop's only window onto runs whose folders it does not see."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from orchestrator.errors import NnfleetError, error_named
from orchestrator.experiment.plan import PlanReport
from orchestrator.run.events import Event, events_in
from orchestrator.run.status import RunStatus


class Planned(Event):
    """What the campaign runs; it has taken possession of the runs, unless it only plans."""

    event: Literal["plan"] = "plan"
    plan: PlanReport


class StatusChanged(Event):
    """A run has come further."""

    event: Literal["status"] = "status"
    status: dict[str, Any]
    """`run_key` and the other fields of its RunStatus that are new."""


class Waiting(Event):
    """The campaign has not begun yet."""

    event: Literal["waiting"] = "waiting"
    message: str


class Warned(Event):
    """Something that the user should know and that stops no run."""

    event: Literal["warning"] = "warning"
    message: str


class RungDecided(Event):
    """Successive halving has decided which models go on."""

    event: Literal["halving"] = "halving"
    message: str
    """The decision with its evidence."""


class ComparisonMade(Event):
    """The models of a campaign that has ended were compared, or cannot be."""

    event: Literal["comparison"] = "comparison"
    models: tuple[str, ...]
    """Their addresses without a fold."""
    verdict: str = ""
    link: str = ""
    """To the report in MLflow; empty where there is none."""
    why_not: str = ""
    """Why they cannot be compared."""

    @property
    def text(self) -> str:
        """For users, as `nnfleet compare` has it."""
        return f"{self.verdict} Report in MLflow: {self.link}"


class Failed(Event):
    """The campaign ends by an error."""

    event: Literal["error"] = "error"
    error: str
    """Name of the error in the tree of `orchestrator/errors.py`."""
    message: str


class Done(Event):
    """Every run has come to its end."""

    event: Literal["done"] = "done"
    exit_code: int


CampaignEvent = Planned | StatusChanged | Waiting | Warned | RungDecided | ComparisonMade | Failed | Done
CAMPAIGN_EVENTS: TypeAdapter[CampaignEvent] = TypeAdapter(Annotated[CampaignEvent, Field(discriminator="event")])


@dataclass
class CampaignLog:
    """The newest of everything in a campaign's log. `text` is the whole log each time; only what is new is parsed."""

    statuses: dict[str, RunStatus] = field(default_factory=dict)
    plan: PlanReport | None = None
    error: NnfleetError | None = None
    waits: str = ""
    """Why it has not begun yet."""
    comparisons: list[ComparisonMade] = field(default_factory=list)
    """Of its models, as they stand in MLflow."""
    exit_code: int | None = None
    """Set once every run has come to its end."""
    _read: int = 0

    def update(self, text: str) -> "CampaignLog":
        """Take in what the log holds beyond what was read before; an unfinished last line is left for later."""
        end = text.rfind("\n") + 1
        for event in events_in(text[self._read : end], CAMPAIGN_EVENTS):
            self._take(event)
        self._read = max(self._read, end)
        return self

    def _take(self, event: CampaignEvent) -> None:
        match event:
            case StatusChanged(status=changes):
                self._merge(changes)
            case Planned(plan=plan):
                self.plan = plan
            case Waiting(message=message):
                self.waits = message
            case Failed(error=error, message=message):
                self.error = error_named(error, message)
            case Done(exit_code=exit_code):
                self.exit_code = exit_code
            case ComparisonMade():
                self.comparisons.append(event)
            case Warned() | RungDecided():
                pass  # for whoever reads the log

    def _merge(self, changes: dict[str, Any]) -> None:
        before = self.statuses.get(str(changes.get("run_key")))
        try:
            status = RunStatus.model_validate({**(before.model_dump() if before else {}), **changes})
        except ValidationError:
            return  # of another version
        self.statuses[status.run_key] = status
