"""Files that one of all who try creates, whole or not at all: by a hard link, or where there are none by a folder that is a claim."""

import errno
import os
import shutil
import stat
import uuid
from pathlib import Path

from trainers.storage.faults import is_there, storing
from trainers.storage.files import NO_LINKS, filled, fsync_folder, remove_quietly, write_beside, write_through

IS_TAKEN = {errno.ENOTEMPTY, errno.EEXIST}
"""How they say that a folder is not replaced by another one."""
CLAIMED = "content"
"""Name of the file in a folder that is a claim."""


def create_exclusive(target: Path, content: bytes, mode: int = 0o644) -> bool:
    """Create `target` whole or not at all; False if it already exists. Safe between processes and nodes of a shared folder.

    Whoever moves or deletes such a file calls `release_claim` before.
    """
    temporary = write_beside(target, filled(content), mode)
    with storing(target):
        try:
            is_made = _linked(temporary, target)
        except OSError as err:
            if err.errno not in NO_LINKS:
                raise
            is_made = _created_by_claim(temporary, target)
        finally:
            remove_quietly(temporary)
        if is_made:
            fsync_folder(target.parent)
    return is_made


def _linked(temporary: Path, target: Path) -> bool:
    try:
        os.link(temporary, target)
    except FileExistsError:
        return os.stat(temporary).st_nlink >= 2  # it was made after all: NFS repeats a request whose answer was lost
    return True


def _created_by_claim(temporary: Path, target: Path) -> bool:
    """As `create_exclusive`, where there are no hard links. The exclusive act is the renaming of a folder with the content in it: a folder
    that is not empty is never replaced, so one of all wins.

    The claim stays: whatever a cache answers to the question whether `target` is there, no second one wins, and whoever writes `target`
    writes what the winner claimed. So a kill at any moment leaves `target` whole, or leaves it to the next.
    """
    if is_there(target):
        return False
    claim = _claim_of(target)
    is_claimed = _renamed_onto(claim, temporary)
    _complete(claim, target)
    return is_claimed


def _claim_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.claim")


def _renamed_onto(claim: Path, temporary: Path) -> bool:
    """Make `claim` a folder that holds the file `temporary`; False if another was first."""
    own = _beside(claim)
    own.mkdir()
    try:
        os.replace(temporary, own / CLAIMED)
        fsync_folder(own)
        os.rename(own, claim)
    except OSError as err:
        if err.errno not in IS_TAKEN and not claim.is_dir():
            raise
        return False
    finally:
        shutil.rmtree(own, ignore_errors=True)
    return True


def _complete(claim: Path, target: Path) -> None:
    """Make `target` of what `claim` holds, unless it is there. Whoever sees a claim may, and all at once."""
    held = claim / CLAIMED
    try:
        content, mode = held.read_bytes(), stat.S_IMODE(held.stat().st_mode)
    except FileNotFoundError:  # of a version that removed claims
        return
    if not is_there(target):
        write_through(target, filled(content), mode)


def release_claim(target: Path) -> None:
    """Let an exclusively created file be created anew once it is gone; without hard links its claim would bring it back.

    Called before `target` is moved, and after it was made where its users may delete it. Does nothing where there are hard links.
    """
    claim, released = _claim_of(target), _beside(_claim_of(target))
    with storing(target):
        try:
            os.rename(claim, released)
        except FileNotFoundError:
            return
    shutil.rmtree(released, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}")
