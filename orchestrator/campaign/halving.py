"""Successive halving in a campaign: what is due is decided once, recorded in the folders of all runs that are compared, and carried out.

Each run's folder holds the decisions, so whatever dies, the next campaign carries out the same ones.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from orchestrator.campaign.bracket import Bracket, Member, open_rung
from orchestrator.campaign.pausing import has_all_epochs, make_room, pause_of, set_turns
from orchestrator.experiment.halving import digest_of
from orchestrator.follow.followed_run import FollowedRun
from orchestrator.queue.rungs import Contestant, judged
from orchestrator.run.below import run_folders_below
from orchestrator.run.clock import Clock
from orchestrator.run.halving import OVERRULED, RungDecision, competitor_of, earliest, read_halving, write_halving
from trainers.contract.requests import read_stop_request, request_stop
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.contract.states import RunState
from trainers.errors import DataError, StorageError

log = logging.getLogger(__name__)

RETRY_S = 10.0
"""After a folder could not be read, none is read again before: all campaigns of the cluster wait for a look."""


class Halvings:
    """The brackets that the runs of a campaign are in."""

    def __init__(self, campaign: str, clock: Clock, on_decision: Callable[[str], None]) -> None:
        """`on_decision` gets each decision that is made here, in a sentence."""
        self._campaign = campaign
        self._clock = clock
        self._on_decision = on_decision
        self._found: _Found | None = None
        self._brackets: list[Bracket] | None = None
        self._failed: Exception | None = None
        self._retry_s = 0.0
        """After a failure, no earlier than then, on the monotonic clock."""
        self._waits: set[tuple[str, int]] = set()
        """Brackets, by their digests, and rungs of which the log has who is waited for."""

    def look(self, runs: Iterable[FollowedRun], at_work: Callable[[], Collection[str]] = frozenset) -> None:
        """Decide what is due, and ask the runs of models that do not go on to stop. `at_work`: keys of the runs that other living campaigns
        have not brought to their end; asked only where anything is compared.

        Raises StorageError or OSError, again until RETRY_S have passed; then it begins with what was recorded.
        """
        if self._failed is not None and self._clock.monotonic() < self._retry_s:
            raise self._failed
        self._failed = None
        try:
            if self._found is None:
                self._found = _found(runs)
            if self._brackets is None:
                self._brackets = [_bracket(members, self._found.unread) for members in self._found.members]
            elsewhere = at_work() if self._brackets else ()
            for bracket in self._brackets:
                for member in bracket.members:
                    member.is_at_work_elsewhere = member.spec.run_key in elsewhere
                self._look_at(bracket)
        except (StorageError, OSError) as err:
            self._brackets = None
            self._failed, self._retry_s = err, self._clock.monotonic() + RETRY_S
            raise

    def make_room(self, lacking: Sequence[str]) -> None:
        """Ask runs that have reached a rung to pause for those that have not and found no capacity in this look: `lacking`, first in line
        first. Raises StorageError or OSError."""
        for bracket in self._brackets or ():
            make_room(bracket, lacking, self._campaign, self._clock.unix())

    def _look_at(self, bracket: Bracket) -> None:
        bracket.open_rung = None
        for rung in bracket.halving.at:
            decision = bracket.decided.get(rung)
            if decision is None and bracket.is_complete:
                decision = self._decide(bracket, rung)
            if decision is None:
                break
            for member in bracket.members:
                _carry_out(member, decision)
        set_turns(bracket)

    def _decide(self, bracket: Bracket, rung: int) -> RungDecision | None:
        """A decision that is due, once it is recorded everywhere; None while it is not due."""
        earlier = {model.model for decision in bracket.decided.values() for model in decision.stopped}
        members = [member for member in bracket.members if competitor_of(member.spec) not in earlier]
        runs = [member.at(rung) for member in members]
        found = judged(runs, bracket.halving.keep)
        if found is None:
            self._log_wait(bracket.halving.comparison, rung, runs)
            bracket.open_rung = open_rung(rung, members, runs, bracket.halving.keep)
            return None
        decision = RungDecision(
            comparison=bracket.halving.comparison,
            rung=rung,
            keep=bracket.halving.keep,
            judged=tuple(found[0]),
            out=tuple(found[1]),
            campaign=self._campaign,
            unix=round(self._clock.unix(), 3),
        )
        decision = _recorded(bracket, decision)
        bracket.decided[rung] = decision
        log.info("%s", decision.evidence)
        self._on_decision(decision.evidence)
        return decision

    def _log_wait(self, digest: str, rung: int, runs: Sequence[Contestant]) -> None:
        """Once for a rung that some have reached, whom they wait for."""
        late = [f"{run.address}, which was stopped" if run.was_stopped else run.address for run in runs if not run.has_reached]
        if len(late) == len(runs) or not late or (digest, rung) in self._waits:
            return
        self._waits.add((digest, rung))
        more = f" (and {len(late) - 5} more)" if len(late) > 5 else ""
        log.info("successive halving at epoch %d waits for %d of %d runs: %s%s", rung, len(late), len(runs), "; ".join(late[:5]), more)


def _recorded(bracket: Bracket, decision: RungDecision) -> RungDecision:
    """The decision that holds for its rung, in the folder of every run that is compared: one that was made before, else this."""
    folders = [RunFolder(member.spec.run_folder) for member in bracket.members]
    records = [read_halving(folder) for folder in folders]
    held = [record.of(decision.comparison).get(decision.rung) for record in records]
    decision = earliest(one for one in held if one is not None) or decision
    for folder, record, present in zip(folders, records, held, strict=True):
        if present != decision:
            write_halving(folder, record.added(decision))
    return decision


def _carry_out(member: Member, decision: RungDecision) -> None:
    """Ask a run of a model that does not go on to stop, as `nnfleet stop` does; one that is trained is validated all the same."""
    run, model = member.run, competitor_of(member.spec)
    if run is None or all(stopped.model != model for stopped in decision.stopped):
        return
    if has_all_epochs(run) or (run.state.is_final and run.state is not RunState.STOPPED):
        run.halved = ""
        return
    run.halved = f"stopped at epoch {decision.rung}"
    if not run.state.is_final and read_stop_request(run.folder) is None:
        request_stop(run.folder, is_now=False, why=f"stopped by {decision.reason(model)}")


@dataclass(frozen=True)
class _Found:
    members: list[list[Member]]
    """Of each bracket."""
    unread: list[str]
    """Why folders beside them count as no runs."""


def _found(runs: Iterable[FollowedRun]) -> _Found:
    """The brackets of the runs, with the runs of the same brackets that this campaign does not follow."""
    by_id: dict[str, dict[str, Member]] = {}
    for run in runs:
        if run.spec.halving is not None:
            by_id.setdefault(run.spec.halving.comparison, {})[run.key] = Member(run.spec, run)
    unread: list[str] = []
    for folder in sorted({member.spec.model_folder.parent for members in by_id.values() for member in members.values()}):
        for spec in _specs_below((RunFolder(path.root) for path in run_folders_below(folder)), unread):
            if spec.halving is not None and spec.halving.comparison in by_id:
                by_id[spec.halving.comparison].setdefault(spec.run_key, Member(spec))
    return _Found([[*members.values()] for members in by_id.values()], unread)


def _specs_below(folders: Iterable[RunFolder], unread: list[str]) -> Iterable[RunSpec]:
    """The runs in these folders; to `unread` goes why there is none that counts: damaged, or a copy."""
    for folder in folders:
        try:
            spec = folder.spec()
            folder.check_is_own(spec)
        except DataError as err:
            unread.append(str(err))
        else:
            yield spec


def _bracket(members: list[Member], unread: Sequence[str]) -> Bracket:
    halving = members[0].spec.halving
    assert halving is not None
    records = {str(member.spec.run_folder): read_halving(RunFolder(member.spec.run_folder)) for member in members}
    decided = {rung for record in records.values() for rung in record.of(halving.comparison)}
    for member in members:
        if records[str(member.spec.run_folder)].is_overruled and member.run is not None:
            member.run.halved = OVERRULED
    for member in members:
        member.pause = pause_of(member.spec, halving.comparison)
    in_it = [member for member in members if not records[str(member.spec.run_folder)].is_overruled]
    is_complete = digest_of((member.spec for member in members), halving) == halving.comparison
    if not is_complete:
        log.warning(
            "successive halving decides nothing more: of the runs that are compared only %d were found (%s). Bring the others back; the "
            "next campaign looks again.%s",
            len(members),
            ", ".join(sorted(member.spec.address for member in members)),
            f" Not read: {unread[0]}{f' (and {len(unread) - 1} more)' if len(unread) > 1 else ''}" if unread else "",
        )
    found = Bracket(halving, in_it, {}, is_complete)
    for rung in sorted(decided):  # a campaign may have died while it recorded one
        recorded = (records[str(member.spec.run_folder)].of(halving.comparison).get(rung) for member in members)
        first = earliest(one for one in recorded if one is not None)
        assert first is not None
        found.decided[rung] = _recorded(found, first)
    return found
