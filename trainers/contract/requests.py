"""Wishes to a training in progress: files in the run folder that rank 0 looks for between two steps.

No disk may end the training there. A share that is away wishes nothing; the thread that writes states is the one that waits for it.
"""

import contextlib
import os
from pathlib import Path

from trainers.contract.run_folder import RunFolder


def is_requested(request: Path) -> bool:
    """Whether somebody wishes what this file stands for."""
    return os.path.exists(request)  # Path.exists raises where a share is away


def withdraw(request: Path) -> None:
    """Remove a wish, if it is there."""
    with contextlib.suppress(OSError):
        request.unlink()


def acknowledge_save(folder: RunFolder) -> None:
    """Take note, before a state is copied, that it answers the wish for one: so no second state does, and whoever waits sees it as open."""
    with contextlib.suppress(OSError):
        os.replace(folder.save_file, folder.accepted_save_file)
