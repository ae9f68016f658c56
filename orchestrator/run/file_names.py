"""Whether a results folder keeps the file names that a validation will ask it to: found before a week of training, not after it."""

import errno
import os
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from trainers.storage.faults import is_of_storage, storing
from trainers.storage.mounts import file_system_of

_REFUSED = {errno.EACCES, errno.EPERM}
"""How some file systems refuse a name, in a folder that was made for it a moment ago."""
_PLAIN = re.compile(r"[A-Za-z0-9_.-]+")
"""Names that every file system takes."""


def names_problem(folder: Path, names: Sequence[str]) -> str:
    """Why files of these names cannot lie beside each other in `folder`; '' when they can. Tried there, if any is out of the ordinary.

    exFAT and vfat take no `:` and no `?`; they and many SMB shares do not tell `A` from `a`. Raises StorageError.
    """
    spelled = Counter(name.casefold() for name in names)
    doubtful = [name for name in names if not _PLAIN.fullmatch(name) or spelled[name.casefold()] > 1]
    if not doubtful:
        return ""
    with storing(folder), tempfile.TemporaryDirectory(prefix=".names-", dir=folder) as place:
        refused = [name for name in doubtful if not _takes(Path(place), name)]
    if not refused:
        return ""
    kind = file_system_of(folder) or "its file system"
    return (
        f"results: {folder} does not keep files by the names of {len(refused)} cases, first {refused[0]!r}: {kind} refuses characters of "
        "theirs, or takes upper and lower case for the same. Name another nnUNet_results, or rename these cases in the raw dataset and "
        "preprocess it again."
    )


def _takes(place: Path, name: str) -> bool:
    """Make a file; False if that is refused, or comes to another name. Raises OSError where the disk takes no file by any name."""
    try:
        (place / name).open("xb").close()
    except OSError as err:
        if is_of_storage(err) and err.errno not in _REFUSED:
            raise
        return False
    return name in os.listdir(place)
