"""What Ray Train's controller does for us before it resizes a healthy gang: it has a state saved.

Runs in the controller, on the head node. It may not raise: an error in a callback ends the run.
"""

import logging
import time
from typing import Any

from ray.train.v2._internal.execution.callback import ControllerCallback  # the only hook before a resize
from ray.train.v2._internal.execution.controller.state import ResizingState

from trainers.contract.commits import newest_committed
from trainers.contract.requests import complete_save, is_save_open, request_save, withdraw_save
from trainers.contract.run_folder import RunFolder

log = logging.getLogger(__name__)
SAVE_WAIT_S = 30.0
SAVE_POLL_S = 0.1
SEEN_WITHIN_S = 2.0
"""A request that is no longer open, without a state that answers it for so long, was refused: the state comes before the request goes."""


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
    """Ask for a state and wait until the one that answers is durable, or the request is refused; a state in the making is no answer."""
    before = newest_committed(folder)
    request_save(folder, "the number of workers changes")
    asked = seen_open = now = time.monotonic()
    while now < min(asked + SAVE_WAIT_S, seen_open + SEEN_WITHIN_S):
        if is_save_open(folder):
            seen_open = now
        else:
            newest = newest_committed(folder)
            if newest is not None and (before is None or newest.position > before.position):
                return
        time.sleep(SAVE_POLL_S)
        now = time.monotonic()
    withdraw_save(folder)
    complete_save(folder)
    log.warning("%s saved no state within %.0f s: it continues from the one before", folder.root, now - asked)
