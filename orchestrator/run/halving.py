"""What successive halving decided of the models of an experiment, as it stands in the folder of each of their runs."""

import logging
import time
from collections.abc import Iterable, Sequence

from pydantic import Field, ValidationError

from trainers.contract.records import Record
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec, model_address
from trainers.storage.faults import is_there
from trainers.storage.files import write_json_atomic

log = logging.getLogger(__name__)
RESUMES = "`nnfleet resume RUN` continues it all the same."
OVERRULED = "stopped by successive halving, then continued by a person"


class Judged(Record):
    """One model at a rung."""

    model: str
    """As `competitor_of` calls it."""
    value: float | None = None
    """Mean over its runs of the EMA pseudo-Dice at the rung; None: a run of it had seen no foreground by then."""
    runs: dict[str, float | None] = Field(default_factory=dict)
    """Address of each run -> its EMA pseudo-Dice at the rung."""
    is_kept: bool = False


class RungDecision(Record):
    """Which models of a comparison go on after a rung, with the evidence."""

    comparison: str
    """Digest of the runs that are compared, see `HalvingOfRun`."""
    rung: int
    """Epochs that were done by all of them."""
    keep: float
    judged: tuple[Judged, ...] = ()
    """Best first."""
    out: tuple[str, ...] = ()
    """Models that were not compared: a run of theirs ended before the rung."""
    campaign: str = ""
    """Which one decided."""
    unix: float = 0.0

    @property
    def kept(self) -> tuple[Judged, ...]:
        """The models that go on."""
        return tuple(model for model in self.judged if model.is_kept)

    @property
    def stopped(self) -> tuple[Judged, ...]:
        """The models that do not."""
        return tuple(model for model in self.judged if not model.is_kept)

    @property
    def evidence(self) -> str:
        """The whole decision in a sentence."""
        parts = [f"go on: {_listed(self.kept)}", f"stopped: {_listed(self.stopped) or 'none'}"]
        out = [f"not compared, as a run of each ended before: {', '.join(self.out)}"] if self.out else []
        what = f"successive halving at epoch {self.rung}, by the mean EMA pseudo-Dice of a model's runs"
        return f"{what}: {'; '.join([*parts, *out])}."

    def reason(self, model: str) -> str:
        """Why a run of a model was stopped, for users; `model` is among `stopped`."""
        place = [judged.model for judged in self.judged].index(model)
        own, last = self.judged[place], self.kept[-1]
        date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.unix))
        return (
            f"successive halving at epoch {self.rung}: {model} has the mean EMA pseudo-Dice {_text(own.value)} over {_count(own)} and is "
            f"{place + 1} of {len(self.judged)} models; the last that goes on, {last.model}, has {_text(last.value)}. Decided by campaign "
            f"{self.campaign}, {date}. {RESUMES}"
        )


class HalvingRecord(Record):
    """`halving.json`: what was decided of the run's comparison."""

    decisions: tuple[RungDecision, ...] = ()
    """Of each rung the one that holds."""
    is_overruled: bool = Field(False, exclude=True)
    """A person continued the run after it had been stopped: it is in no comparison any more. It stands in a file of its own, which no
    campaign writes while it records what it decides."""

    def of(self, comparison: str) -> dict[int, RungDecision]:
        """The decisions of one comparison, by rung; those of an experiment with other runs do not hold for it."""
        return {decision.rung: decision for decision in self.decisions if decision.comparison == comparison}

    def added(self, decision: RungDecision) -> "HalvingRecord":
        """With a decision, in the place of another one of the same rung."""
        others = (one for one in self.decisions if (one.comparison, one.rung) != (decision.comparison, decision.rung))
        return self.model_copy(update={"decisions": (*others, decision)})


def earliest(decisions: Iterable[RungDecision]) -> RungDecision | None:
    """The one that holds of several of the same rung, made at once by campaigns of two clusters: everybody chooses the same."""
    return min(decisions, key=lambda decision: (decision.unix, decision.campaign), default=None)


def competitor_of(spec: RunSpec) -> str:
    """The model that a run belongs to in a comparison: its address without fold and seed, which are averaged over."""
    return model_address(spec.dataset, spec.configuration, spec.trainer, spec.plans, spec.variant)


def read_halving(folder: RunFolder) -> HalvingRecord:
    """What was decided of a run. Raises OSError where the disk gives no answer: that is no leave to decide anew."""
    return _read(folder).model_copy(update={"is_overruled": is_there(folder.halving_overruled_file)})


def _read(folder: RunFolder) -> HalvingRecord:
    try:
        return HalvingRecord.model_validate_json(folder.halving_file.read_bytes())
    except FileNotFoundError:
        return HalvingRecord()
    except ValidationError as err:
        log.warning("%s is damaged and is read as empty: %s", folder.halving_file, err)
        return HalvingRecord()


def write_halving(folder: RunFolder, record: HalvingRecord) -> None:
    """Store what was decided of a run, without a person's word on it. Raises StorageError."""
    write_json_atomic(folder.halving_file, record.model_dump(mode="json"))


def stopping_decision(spec: RunSpec, record: HalvingRecord) -> RungDecision | None:
    """The decision that stops a run; None where none does, or a person overruled it. Pure."""
    if spec.halving is None or record.is_overruled:
        return None
    model = competitor_of(spec)
    found = [one for one in record.of(spec.halving.comparison).values() if any(judged.model == model for judged in one.stopped)]
    return min(found, key=lambda one: one.rung, default=None)


def halving_reason(spec: RunSpec, record: HalvingRecord) -> str:
    """Why successive halving stopped a run; empty where it did not. Pure."""
    decision = stopping_decision(spec, record)
    return "" if decision is None else f"stopped by {decision.reason(competitor_of(spec))}"


def overrule(spec: RunSpec) -> None:
    """A person continues a run: where it had been stopped by successive halving, it is in no comparison from now on.

    Raises StorageError or OSError.
    """
    folder = RunFolder(spec.run_folder)
    if stopping_decision(spec, read_halving(folder)) is not None:
        write_json_atomic(folder.halving_overruled_file, {"unix": round(time.time(), 3)})


def _listed(models: Sequence[Judged]) -> str:
    return ", ".join(f"{model.model} {_text(model.value)} ({_count(model)})" for model in models)


def _count(model: Judged) -> str:
    return "1 run" if len(model.runs) == 1 else f"{len(model.runs)} runs"


def _text(value: float | None) -> str:
    return "- (no foreground yet)" if value is None else f"{value:.4f}"
