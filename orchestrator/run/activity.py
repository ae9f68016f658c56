"""What a run folder tells of those who work on it now: the owner of the newest token, the newest heartbeat, the validation's progress."""

import contextlib
from dataclasses import dataclass

from orchestrator.run.status import CasesDone
from trainers.contract.fencing import TAKEOVER, claims_seen, newest_token
from trainers.contract.records import TokenClaim, ValidationHeartbeat, claim_seen, read_heartbeat, read_validation_heartbeat
from trainers.contract.run_folder import RunFolder
from trainers.storage.files import write_heartbeat


@dataclass(frozen=True)
class Owner:
    """Who acquired the newest token of a run."""

    fencing_token: int
    driver: str
    job: str
    """Submission id of the driver's job; empty if it did not say."""
    cluster: str = ""
    """Address of the cluster that the job is of: the same name may be taken on several. Empty if it did not say."""

    def __str__(self) -> str:
        """As a sentence names it."""
        return f"{self.driver} (fencing token {self.fencing_token})"


def owner_of(folder: RunFolder) -> Owner | None:
    """Who acquired the newest token; None while no driver has. Workers acquire theirs under the name of their driver."""
    claims = claims_seen(folder)
    if not claims or claims[-1].role == TAKEOVER:
        return None
    driver = claims[-1].driver
    own = next((claim for claim in claims if claim.driver == driver and claim.job), TokenClaim())
    return Owner(newest_token(folder), driver, own.job, own.cluster)


def report_cases(folder: RunFolder, fencing_token: int, done: CasesDone) -> None:
    """Report how far the validation of the training with this token is."""
    heartbeat = ValidationHeartbeat(fencing_token=fencing_token, **done.model_dump())
    with contextlib.suppress(OSError):
        write_heartbeat(folder.validating_file, heartbeat.model_dump(), fencing_token)


def cases_done(folder: RunFolder, fencing_token: int) -> CasesDone | None:
    """How far the validation of the training with this token said it is; None while it has said nothing."""
    heartbeat = read_validation_heartbeat(folder)
    if heartbeat is None or heartbeat.fencing_token != fencing_token:
        return None
    return CasesDone(checkpoint=heartbeat.checkpoint, done=heartbeat.done, cases=heartbeat.cases)


def newest_stamp(folder: RunFolder) -> float:
    """Unix time of the newest heartbeat or claim, by the clock of whoever gave it; 0 when there is none."""
    return max(claim_seen(folder, newest_token(folder)).claimed_unix, read_heartbeat(folder).unix)


def has_begun(folder: RunFolder) -> bool:
    """True once the workers of the newest start hold their resources."""
    newest = newest_token(folder)
    return newest > 0 and read_heartbeat(folder).fencing_token >= newest


def workers_now(folder: RunFolder) -> int:
    """How many workers the newest start has; 0 while a driver has acquired the run and none of its workers has started."""
    return max(0, claim_seen(folder, newest_token(folder)).world_size)
