"""Run folders that are taken out of nnU-Net's way in one step, with everything in them."""

import os
import time
from itertools import count
from pathlib import Path

from trainers.storage.exclusive import IS_TAKEN
from trainers.storage.files import fsync_folder


def aside_name(root: Path, why: str, when: str) -> str:
    """`replaced-fold_0-20261129T030317Z` of `fold_0`. What begins with `fold_` is a fold for nnU-Net, and for us."""
    return f"{why}-{root.name}-{when}"


def move_aside(root: Path, why: str, unix: float) -> Path:
    """Rename a run folder within its model folder and return what it is called now; nothing is replaced. Raises OSError."""
    when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(unix))
    for number in count(1):
        target = root.with_name(aside_name(root, why, when if number == 1 else f"{when}-{number}"))
        try:
            os.rename(root, target)
        except OSError as err:
            if err.errno not in IS_TAKEN:
                raise
        else:
            break
    fsync_folder(target.parent)
    return target
