"""What Ray Train's controller does for us before it resizes a healthy gang: it has a state saved.

Runs in the controller, on the head node. It may not raise: an error in a callback ends the run.
"""

import logging
import time
from typing import Any

from ray.train.v2._internal.execution.callback import ControllerCallback  # the only hook before a resize
from ray.train.v2._internal.execution.controller.state import ResizingState

from trainers.contract.commits import newest_committed
from trainers.contract.files import write_json_atomic
from trainers.contract.requests import is_requested, withdraw
from trainers.contract.run_folder import RunFolder

log = logging.getLogger(__name__)
SAVE_WAIT_S = 30.0
SAVE_POLL_S = 0.1
SEEN_WITHIN_S = 2.0
"""After so long without an answer to a wish that is no longer open it was refused: the state comes before the wish goes."""


class SaveBeforeResize(ControllerCallback):
    """Before the number of healthy workers changes, asks them for a state and waits for it a while, so that next to nothing is redone."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Ray is about to end healthy workers and start as many as it has room for."""
        if not isinstance(current_state, ResizingState):
            return
        try:
            _saved(self._folder)
        except Exception:
            log.exception("no state was saved before the workers of %s were resized", self._folder.root)


def _saved(folder: RunFolder) -> None:
    """Ask for a state and wait until the one that answers is durable, or the wish was refused; one that was being written is no answer."""
    before = newest_committed(folder)
    write_json_atomic(folder.save_file, {"why": "the number of workers changes"})
    asked = seen_open = now = time.monotonic()
    while now < min(asked + SAVE_WAIT_S, seen_open + SEEN_WITHIN_S):
        if is_requested(folder.save_file) or is_requested(folder.accepted_save_file):  # in this order: the first becomes the second
            seen_open = now
        else:
            newest = newest_committed(folder)
            if newest is not None and (before is None or newest.position > before.position):
                return
        time.sleep(SAVE_POLL_S)
        now = time.monotonic()
    withdraw(folder.save_file)
    withdraw(folder.accepted_save_file)
    log.warning("%s saved no state within %.0f s: it continues from the one before", folder.root, now - asked)
