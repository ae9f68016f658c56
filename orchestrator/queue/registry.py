"""Where the campaigns of one cluster, and its test sets, meet: its locks, and an entry of each with what it waits for and holds.

Campaign jobs run on the head node, so a folder there is enough. The entries of campaigns that live no more are passed over.
"""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from orchestrator.queue.file_lock import locked
from orchestrator.queue.order import GangRecord, RegistryRecord, Waiting
from trainers.errors import ClusterError
from trainers.storage.files import write_atomic, write_json_atomic

log = logging.getLogger(__name__)
GROWTH_LIMITS_FRESH_S = 60.0
"""For how long a growth limit of elastic runs holds; after that no campaign lives, and nobody waits."""

LOCK_TIMEOUT_S = 600.0
"""How long a campaign waits for another one: its requests to a job server that hangs end after minutes."""


class HeldWorkers(GangRecord):
    """A run that has started and not ended, and what it keeps reserved until then."""

    is_placed: bool = False
    """They hold it in Ray too, though no job of the list says so."""
    user: str = ""
    """Who submitted the run; empty: not known."""
    ends_unix: float | None = None
    """When its training is expected to end; None: not known."""


class Entry(RegistryRecord):
    """What one campaign publishes for the others."""

    waiting: tuple[Waiting, ...] = ()
    holding: tuple[HeldWorkers, ...] = ()
    runs: tuple[str, ...] = ()
    """Keys of all its runs that have not ended."""
    has_failed: bool = False
    """It owns no run and will own none: its job lives only until its message is sent."""

    def without(self, run_keys: Collection[str]) -> "Entry":
        """As if it held nothing for these runs."""
        return self.model_copy(update={"holding": tuple(held for held in self.holding if held.run_key not in run_keys)})


class Registry:
    """The meeting place in `folder`, private to the user that the cluster runs as."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._room = folder / "room.elastic"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            raise ClusterError(f"campaign: {folder} on the head node is a link or belongs to somebody else. Remove it there.")

    @classmethod
    def of_cluster(cls, address: str) -> "Registry":
        """The registry of the cluster with this GCS address, on its head node."""
        digest = hashlib.sha256(address.encode()).hexdigest()[:12]
        return cls(Path(tempfile.gettempdir()) / f"nnfleet-campaigns-{os.getuid()}-{digest}")

    @contextlib.contextmanager
    def locked(self, what: Literal["admission", "opening"] = "admission") -> Iterator[None]:
        """Hold one of the two locks of the cluster's campaigns. Raises ClusterError when another one holds it for LOCK_TIMEOUT_S.

        admission: decide and submit inside it, so that no two campaigns see the same free GPUs. opening: acquire runs.
        """
        with locked(self.folder / f"{what}.lock", f"campaign: {what}", LOCK_TIMEOUT_S):
            yield

    def post(self, campaign: str, entry: Entry) -> None:
        """Publish what `campaign` waits for and holds."""
        path = self.folder / f"{campaign}.json"
        content = entry.model_dump_json().encode()
        if not path.exists() or path.read_bytes() != content:
            write_atomic(path, content)

    def withdraw(self, campaign: str) -> None:
        """Forget `campaign`: it has ended."""
        (self.folder / f"{campaign}.json").unlink(missing_ok=True)

    def entries(self, living: Collection[str]) -> dict[str, Entry]:
        """The entries of the campaigns in `living`."""
        found = {}
        for campaign in living:
            try:
                found[campaign] = Entry.model_validate_json((self.folder / f"{campaign}.json").read_bytes())
            except FileNotFoundError:
                continue  # it has not published anything yet
            except ValidationError as err:
                log.warning("the entry of campaign %s is of another version and is ignored: %s", campaign, err)
        return found

    def set_growth_limits(self, most: Mapping[str, int], now_unix: float) -> None:
        """Publish to how many workers each elastic training may grow. Any campaign may, under the admission lock."""
        if dict(most) != self.room(now_unix, GROWTH_LIMITS_FRESH_S / 4):
            write_json_atomic(self._room, {"unix": now_unix, "most": dict(most)})

    def room(self, now_unix: float, fresh_s: float = GROWTH_LIMITS_FRESH_S) -> dict[str, int]:
        """To how many workers each elastic training may grow, by run key; empty when no campaign has published limits for a while."""
        try:
            limits = json.loads(self._room.read_bytes())
            is_fresh = abs(now_unix - float(limits["unix"])) < fresh_s
            return {str(key): int(most) for key, most in limits["most"].items()} if is_fresh else {}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, KeyError, AttributeError) as err:
            log.warning("%s is of another version and is ignored: %s", self._room, err)
            return {}
