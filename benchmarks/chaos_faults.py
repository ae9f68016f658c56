"""What chaos may do to a cluster, drawn from a seed; and the doing of it, to processes of the test's own cluster only."""

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from tests.integration.many_nodes import ManyNodes, Node
from tests.integration.mlflow_server import MlflowServer
from trainers.contract.commits import commit_files
from trainers.contract.fencing import claims_seen
from trainers.contract.run_folder import RunFolder

Moment = Literal["epoch", "commit", "start-up", "validation"]
RESTARTS_WORKERS = ("rank 0", "other rank", "node", "driver", "head", "drain notice", "state truncated")
OF_TRACKING = ("tracking killed", "tracking frozen")
IN_TRAINING = (*RESTARTS_WORKERS, "loader", "campaign", *OF_TRACKING)
IN_VALIDATION = ("validation worker", "validation driver", "node", "campaign", "tracking killed", "head")
ENDS_JOB = ("driver", "head")
"""Faults that cost the training job itself."""
NOTICE_S = 12.0
"""Between the notice and the end of a node."""


@dataclass(frozen=True)
class Strike:
    """One fault to come."""

    run: int
    kind: str
    moment: Moment
    epoch: int
    """Not before so many epochs are committed."""
    fraction: float
    """Of an epoch to wait after that; of the way through a start or a validation too."""
    pause_s: float
    """Until what was taken away comes back."""
    same_address: bool
    """A new head listens where the old one did; nodes of the old one die with it."""


def draw(seed: int, faults: int, runs: int, epochs: int, kinds: tuple[str, ...] = ()) -> list[Strike]:
    """`faults` strikes over `runs` runs, in the order of the runs; pure. Every kind comes once before any comes again."""
    rng = random.Random(seed)
    training: list[tuple[str, bool]] = [(kind, False) for kind in IN_TRAINING]
    validation: list[tuple[str, bool]] = [(kind, True) for kind in IN_VALIDATION[:2]]
    deck: list[tuple[str, bool]] = []
    while len(deck) < faults:
        extra = (rng.choice(IN_VALIDATION[2:]), True)
        hand = [item for item in (*training, *validation, extra) if not kinds or item[0] in kinds]
        rng.shuffle(hand)
        deck += hand
    in_turn = sorted(deck[:faults], key=lambda item: item[1])  # so that each run gets its share of those that hit the validation
    shares: list[list[tuple[str, bool]]] = [in_turn[run::runs] for run in range(runs)]
    strikes = []
    for run, share in enumerate(shares):
        order = sorted(share, key=lambda item: (item[1], item[0] not in IN_VALIDATION[:2]))  # what hits the validation comes last
        in_training = [kind for kind, late in order if not late]
        for place, (kind, late) in enumerate(order):
            before = in_training[place - 1] if 0 < place < len(in_training) else ""
            starts = place == 0 or before in RESTARTS_WORKERS
            moments: list[Moment] = ["epoch", "epoch", "commit", *(["start-up"] if starts and kind != "state truncated" else [])]  # type: ignore[list-item]
            moment: Moment = "validation" if late else rng.choice(moments)
            usable = epochs - 2
            epoch = 1 + int((place + rng.random()) * usable / max(1, len(in_training)))
            strikes.append(Strike(run, kind, moment, min(epoch, epochs - 1), rng.random(), rng.uniform(1, 6), rng.random() < 0.5))
    return strikes


@dataclass
class Faults:
    """Strikes parts of one cluster; each strike returns what brings back the part that it took."""

    cluster: ManyNodes
    mlflow: MlflowServer
    resume: Callable[[], None]
    """Continue the campaign from the run folders."""
    campaign_job: Callable[[], str]
    """Submission id of the campaign that is followed."""

    def strike(self, strike: Strike, folder: RunFolder) -> tuple[str, Callable[[], None]]:
        """Do it; returns what was hit and how to mend it. Raises LookupError while there is nothing to hit."""
        match strike.kind:
            case "rank 0":
                return self._kill(self._ranks(folder)[:1]), _nothing
            case "other rank":
                return self._kill(self._ranks(folder)[1:2]), _nothing
            case "loader":
                found = self._of_job(self._job(folder, "train"), "ray::Loader")
                return self._kill(found[int(strike.fraction * len(found)) :][:1]), _nothing
            case "driver":
                return self._kill(self._entry_points(self._job(folder, "train"), "orchestrator.training.driver")), _nothing
            case "validation worker":
                return self._kill(self._of_job(self._job(folder, "validate"), "ray::CaseWorker")[:1]), _nothing
            case "validation driver":
                return self._kill(self._entry_points(self._job(folder, "validate"), "orchestrator.validation.job")), _nothing
            case "campaign":
                return self._kill(self._entry_points(self.campaign_job(), "orchestrator.campaign.job")), self.resume
            case "state truncated":
                return self._truncate(folder, strike.fraction), _nothing
            case "node":
                node = self._a_node(folder)
                return f"{node.record.name}, {node.kill()} processes", lambda: self._bring_back(node, strike.pause_s)
            case "drain notice":
                return self._drain(self._a_node(folder), strike)
            case "head":
                self.cluster.kill_head()
                return f"head; new one at {'the same' if strike.same_address else 'another'} address", lambda: self._rebuild(strike)
            case "tracking killed":
                self.mlflow.kill()
                return "MLflow server", lambda: self._later(strike.pause_s, self.mlflow.start)
            case "tracking frozen":
                self.mlflow.freeze()
                return "MLflow server", lambda: self._later(strike.pause_s, self.mlflow.thaw)
        raise AssertionError(strike.kind)

    def has_ranks(self, folder: RunFolder) -> bool:
        """True once the workers of the newest start have claimed it."""
        with contextlib.suppress(LookupError):
            return bool(self._ranks(folder))
        return False

    def is_validating(self, folder: RunFolder, since_unix: float = 0.0) -> bool:
        """True once a worker of the run's validation is there that has begun since then."""
        with contextlib.suppress(LookupError, psutil.Error):
            found = self._of_job(self._job(folder, "validate"), "ray::CaseWorker")
            return any(process.create_time() > since_unix + 1 for process in found)
        return False

    def of_jobs(self) -> Iterator[tuple[psutil.Process, str]]:
        """Processes of jobs, with the submission id of their job."""
        for process in self.cluster.processes():
            with contextlib.suppress(psutil.Error):
                if job := process.environ().get("NNFLEET_SUBMISSION_ID", ""):
                    yield process, job

    def _ranks(self, folder: RunFolder) -> list[psutil.Process]:
        """Rank 0 first, then the others."""
        main = newest_worker_pid(folder)
        found = self._of_job(self._job(folder, "train"), "ray::RayTrainWorker")
        return sorted(found, key=lambda process: (process.pid != main, process.pid)) if main in [p.pid for p in found] else []

    def _job(self, folder: RunFolder, kind: str) -> str:
        """Submission id of the run's job of which something lives: the newest."""
        begin = f"{kind}-{folder.spec().run_key}-a"
        found = {job for _, job in self.of_jobs() if job.startswith(begin)}
        if not found:
            raise LookupError(f"nothing of {begin} lives")
        return max(found, key=lambda job: [int(part.lstrip("ar")) for part in job.removeprefix(begin).split("-")])

    def _of_job(self, job: str, title: str) -> list[psutil.Process]:
        found = []
        for process, own in self.of_jobs():
            with contextlib.suppress(psutil.Error, IndexError):
                if own == job and process.cmdline()[0].startswith(title):
                    found.append(process)
        return found

    def _entry_points(self, job: str, module: str) -> list[psutil.Process]:
        found = []
        for process, own in self.of_jobs():
            with contextlib.suppress(psutil.Error):
                if own == job and module in process.cmdline() and "python" in process.cmdline()[0]:
                    found.append(process)
        return found

    @staticmethod
    def _kill(processes: list[psutil.Process]) -> str:
        if not processes:
            raise LookupError("no such process")
        titles = []
        for process in processes:
            titles.append(f"{process.pid} {process.cmdline()[0][:40]}")
            process.kill()
        return ", ".join(titles)

    def _a_node(self, folder: RunFolder) -> Node:
        """A node that works on the run: that of rank 0, or one of its validation."""
        for process in (*self._safe_ranks(folder), *self._safe_cases(folder)):
            node = self.cluster.node_of(process.pid)
            if node is not None:
                return node
        raise LookupError("no node works on the run")

    def _safe_ranks(self, folder: RunFolder) -> list[psutil.Process]:
        with contextlib.suppress(LookupError):
            return self._ranks(folder)
        return []

    def _safe_cases(self, folder: RunFolder) -> list[psutil.Process]:
        with contextlib.suppress(LookupError):
            return self._of_job(self._job(folder, "validate"), "ray::CaseWorker")
        return []

    def _truncate(self, folder: RunFolder, fraction: float) -> str:
        """Kill every rank, then cut the newest state or its commit short before the next start reads it."""
        if not commit_files(folder):
            raise LookupError("no state yet")
        killed = self._kill(self._ranks(folder))
        newest = commit_files(folder)[0]
        path = newest if fraction < 0.5 else newest.with_suffix(".pth")
        size = path.stat().st_size
        own = path.with_name(f".{path.name}.cut")  # not through a second name of the same bytes
        own.write_bytes(path.read_bytes()[: int(size * fraction)])
        os.replace(own, path)
        return f"{path.name} cut to {int(size * fraction)} of {size} bytes after killing {killed}"

    def _drain(self, node: Node, strike: Strike) -> tuple[str, Callable[[], None]]:
        """Tell the cluster that a node will be taken away, then take it away."""
        drain(self.cluster, self.cluster.ray_node_id(node))
        given = time.monotonic()

        def take() -> None:
            time.sleep(max(0.0, NOTICE_S - (time.monotonic() - given)))
            node.kill()
            self._bring_back(node, strike.pause_s)

        return f"{node.record.name}, killed {NOTICE_S:.0f} s later", take

    def _bring_back(self, node: Node, pause_s: float) -> None:
        time.sleep(pause_s)
        self.cluster.replace(node)

    def _rebuild(self, strike: Strike) -> None:
        time.sleep(strike.pause_s)
        self.cluster.forget_nodes(kill=strike.same_address)
        self.cluster.start(same_address=strike.same_address)
        self.resume()

    @staticmethod
    def _later(pause_s: float, what: Callable[[], object]) -> None:
        time.sleep(pause_s)
        what()


def _nothing() -> None:
    """The cluster mends it by itself."""


def drain(cluster: ManyNodes, node_id: str) -> None:
    """A notice of preemption for one node, as a cloud's drainer gives it."""
    import subprocess
    import sys

    code = (
        "import sys, time\n"
        "from ray._raylet import GcsClient\n"
        "from ray.core.generated import autoscaler_pb2\n"
        "client = GcsClient(address=sys.argv[1])\n"
        "reason = autoscaler_pb2.DrainNodeReason.Value('DRAIN_NODE_REASON_PREEMPTION')\n"
        f"deadline = int((time.time() + {NOTICE_S}) * 1000)\n"
        "accepted = client.drain_node(sys.argv[2], reason, 'chaos', deadline)\n"
        "assert accepted[0] if isinstance(accepted, tuple) else accepted, accepted\n"
    )
    subprocess.run([sys.executable, "-c", code, f"127.0.0.1:{cluster.gcs_port}", node_id], check=True, timeout=60)


def newest_worker_pid(folder: RunFolder) -> int:
    """Rank 0 of the newest attempt; 0 while its workers have not claimed it."""
    own = claims_seen(folder)
    return own[-1].pid if own and own[-1].role == "workers" else 0


def file_names(folder: Path) -> frozenset[str]:
    """What lies in a folder, hidden files too."""
    with contextlib.suppress(OSError):
        return frozenset(os.listdir(folder))
    return frozenset()
