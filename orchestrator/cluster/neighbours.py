"""Heads that run on this machine below other homes, mostly other people's: each leaves a notice for all, without a secret."""

import contextlib
import hashlib
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.cluster.capacity import Offer
from orchestrator.cluster.processes import ProcessRecord, boot_id
from trainers.errors import StorageError
from trainers.storage.files import write_atomic

log = logging.getLogger(__name__)

PLACES = (Path("/run/lock"), Path("/tmp"))
"""Where every user may write, whatever TMPDIR says. Each reads all of them."""
PREFIX = "nnfleet-head-"
LARGEST_NOTICE = 10_000
CLOCK_STEP_S = 60.0
"""How far the clock may have been set since a head started; a process that has got its id by now started later than that, mostly."""


class Notice(BaseModel):
    """A head, as its neighbours see it."""

    model_config = ConfigDict(frozen=True)

    uid: int
    user: str
    home: str
    """Digest of its home folder."""
    pid: int
    started_unix: float
    boot_id: str
    offer: Offer
    gpu_uuids: tuple[str, ...] = ()
    """Of the GPUs of the offer; none where NVML did not tell, and of an earlier version."""

    @property
    def is_alive(self) -> bool:
        """True if its process runs, or hides what it is."""
        if self.boot_id != boot_id():
            return False
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.started_unix) < CLOCK_STEP_S)
        except psutil.AccessDenied:
            return True
        except psutil.NoSuchProcess:
            return _is_hidden(self.pid)
        except (psutil.Error, OSError):
            return False

    def __str__(self) -> str:
        return f"user {self.user} runs a head here with {self.offer.words}"


def _is_hidden(pid: int) -> bool:
    """True for another user's process that /proc does not show (hidepid): only a signal tells that it is there."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def leave_notice(home: Path, ray: ProcessRecord, offer: Offer, gpu_uuids: Sequence[str] = ()) -> None:
    """Tell the neighbours about a head of this home. Where no place takes a notice, they only do not learn of it."""
    notice = Notice(
        uid=os.getuid(),
        user=psutil.Process().username(),
        home=_digest(home),
        pid=ray.pid,
        started_unix=ray.started_unix,
        boot_id=ray.boot_id,
        offer=offer,
        gpu_uuids=tuple(gpu_uuids),
    )
    for path in _own_files(home):
        try:
            write_atomic(path, notice.model_dump_json().encode())
            return
        except (OSError, StorageError) as err:
            log.info("%s cannot be written, so other users of this machine may not learn of this head: %s", path, err)


def remove_notice(home: Path) -> None:
    """Take back what `leave_notice` left."""
    for path in _own_files(home):
        with contextlib.suppress(OSError):
            path.unlink()


def neighbours(home: Path) -> list[Notice]:
    """Living heads of other homes on this machine, by user."""
    found = [notice for place in PLACES for path in sorted(place.glob(f"{PREFIX}*.json")) if (notice := read_notice(path)) is not None]
    return sorted((each for each in found if each.home != _digest(home) and each.is_alive), key=lambda each: (each.user, each.pid))


def crowding(offer: Offer, others: list[Notice], machine_cpus: int) -> str:
    """A sentence if the CPUs of this offer and of the others are more than the machine has; else nothing. Pure."""
    if offer.cpus + sum(other.offer.cpus for other in others) <= machine_cpus or not others:
        return ""
    return (
        f"{'; '.join(_of_users(others))}. With the {offer.cpus} of this home that is more than the {machine_cpus} CPUs of this machine. "
        "Share one head (docs/security.md), or let each give out a part: `nnfleet up --cpus N --memory-gib N`."
    )


def _of_users(others: Sequence[Notice]) -> Iterator[str]:
    """A clause for each user, with what all heads of theirs give out together."""
    for user in dict.fromkeys(other.user for other in others):
        own = [other for other in others if other.user == user]
        if len(own) == 1:
            yield str(own[0])
            continue
        gpu_ids = tuple(dict.fromkeys(gpu for other in own for gpu in other.offer.gpu_ids))
        memory_gib = sum(other.offer.memory_gib for other in own)
        together = Offer(cpus=sum(other.offer.cpus for other in own), gpu_ids=gpu_ids, memory_gib=memory_gib)
        yield f"user {user} runs {len(own)} heads here with together {together.words}"


def read_notice(path: Path) -> Notice | None:
    """A notice that belongs to the user whom it names; anything else that somebody left there is passed over."""
    with contextlib.suppress(OSError, ValidationError), _opened(path) as descriptor:
        owner = os.fstat(descriptor)
        notice = Notice.model_validate_json(os.read(descriptor, LARGEST_NOTICE))
        return notice if stat.S_ISREG(owner.st_mode) and owner.st_uid == notice.uid else None
    return None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a link or a pipe may wait there
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _own_files(home: Path) -> list[Path]:
    return [place / f"{PREFIX}{os.getuid()}-{_digest(home)}.json" for place in PLACES if place.is_dir()]


def _digest(home: Path) -> str:
    return hashlib.sha256(str(home).encode()).hexdigest()[:12]
