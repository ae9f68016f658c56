"""Pauses at a rung: where a run that is waited for finds no workers, one that has reached the rung leaves it its own.

A pause gives way and nothing else: a paused run stands in the queue, QUEUED, behind the others of its campaign, so it goes on whenever
there is room. The run that it leaves its workers to takes its place in the queue, and once the rung is decided it has that back: before
everything new, and before the rest of its campaign where the workers were another run's before. No run is paused twice at a rung, whatever
campaign follows it.
"""

import logging
from collections.abc import Sequence

from orchestrator.campaign.bracket import Bracket, Member
from orchestrator.follow.followed_run import FollowedRun
from orchestrator.queue.rungs import handovers
from trainers.contract.requests import PauseRequest, last_pause, read_stop_request, request_pause
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.contract.states import RunState

log = logging.getLogger(__name__)


def has_all_epochs(run: FollowedRun) -> bool:
    """Whether a run has done its last epoch, as far as it was seen."""
    return run.observer.is_trained or (run.seen is not None and run.seen.epochs_done >= run.seen.epochs)


def pause_of(spec: RunSpec, digest: str) -> PauseRequest | None:
    """The last pause of a run in the bracket of this digest, also one that is over. Raises OSError."""
    found = last_pause(RunFolder(spec.run_folder))
    return found if found is not None and found.comparison == digest else None


def set_turns(bracket: Bracket) -> None:
    """Give each run its turn in the queue."""
    givers = [member for member in bracket.members if member.run is not None and not member.run.state.is_final]
    giver_of = {(member.pause.workers_to, member.pause.rung): member for member in givers if member.pause is not None}
    at = bracket.open_rung
    for member in bracket.members:
        if (run := member.run) is None:
            continue
        if at is not None and member in at.reached:
            run.turn = "last"
        elif at is not None and _leaves_workers(giver_of.get((run.key, at.rung))):
            run.turn = "first"
        elif run.observer.is_paused:  # of those that left the same workers one to the next only the first had them from the queue
            run.turn = "next" if member.pause is not None and (run.key, member.pause.rung) in giver_of else "first"
        else:
            run.turn = "usual"


def _leaves_workers(giver: Member | None) -> bool:
    """It was asked to pause and has not gone on."""
    return giver is not None and giver.run is not None and giver.run.observer.pause is not None


def make_room(bracket: Bracket, lacking: Sequence[str], campaign: str, unix: float) -> None:
    """Ask runs that have reached the rung to pause, one for each of those that have not and found no capacity: `lacking`, first in line
    first. A request whose taker needs no workers any more is withdrawn. Raises StorageError or OSError."""
    _withdraw_what_nobody_needs(bracket)
    at = bracket.open_rung
    if at is None:
        return
    late = {member.spec.run_key: member.spec for member in at.late}
    training = {member.run.key: (member, member.run) for member in at.reached if member.run is not None and _trains(member.run)}
    served = {run.observer.pause.workers_to for _, run in training.values() if run.observer.pause is not None}
    values = {key: member.values.get(at.rung) for key, (member, run) in training.items() if _can_pause(member, run, at.rung)}
    for giver, taker in handovers([key for key in lacking if key in late and key not in served], values):
        request = PauseRequest(
            comparison=bracket.halving.comparison,
            rung=at.rung,
            value=values[giver],
            workers_to=taker,
            why=f"paused: it had reached epoch {at.rung} of successive halving; its workers were offered to {late[taker].address}, "
            "which had not.",
            campaign=campaign,
            unix=round(unix, 3),
        )
        _ask_to_pause(*training[giver], request, late[taker])


def _withdraw_what_nobody_needs(bracket: Bracket) -> None:
    """Where a run was asked to pause and trains yet."""
    for member in bracket.members:
        if member.run is None or (request := member.run.observer.pause) is None or not _trains(member.run):
            continue
        if bracket.is_complete and not _is_needed(request, bracket):
            member.run.observer.withdraw_pause()
            member.pause = pause_of(member.spec, bracket.halving.comparison)
            log.info(
                "%s is not asked to pause any more: what it was to leave its workers to needs none, or the rung is decided",
                member.spec.address,
            )


def _is_needed(request: PauseRequest, bracket: Bracket) -> bool:
    """What gets the workers has not reached the rung and waits for some; of one that another campaign follows alone nobody here knows."""
    at = bracket.open_rung
    late = at.late if at is not None and at.rung == request.rung else ()
    taker = next((member for member in late if member.spec.run_key == request.workers_to), None)
    if taker is None:
        return False
    return taker.run.is_waiting if taker.run is not None and not taker.run.state.is_final else taker.is_at_work_elsewhere


def _trains(run: FollowedRun) -> bool:
    """It has workers, or they are being started again."""
    return run.state in (RunState.RUNNING, RunState.RECOVERING) and not run.is_waiting and not has_all_epochs(run)


def _can_pause(member: Member, run: FollowedRun, rung: int) -> bool:
    """It has workers, which are not being started again: those would end without an epoch."""
    return run.state is RunState.RUNNING and run.observer.pause is None and not member.was_paused_at(rung)


def _ask_to_pause(member: Member, run: FollowedRun, request: PauseRequest, taker: RunSpec) -> None:
    member.pause = pause_of(run.spec, request.comparison)  # another campaign that follows it may have asked meanwhile
    if member.was_paused_at(request.rung) or read_stop_request(run.folder) is not None:
        return
    request_pause(run.folder, request)
    member.pause = run.observer.pause = request
    log.info(
        "%s is asked to pause: it has reached epoch %d of successive halving, with an EMA pseudo-Dice of %s, the lowest of those that "
        "could pause; %s has not, and waits for workers",
        run.spec.address,
        request.rung,
        "- (no foreground yet)" if request.value is None else f"{request.value:.4f}",
        taker.address,
    )
