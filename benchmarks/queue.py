"""The queue under load, simulated: thousands of runs on a thousand GPUs, decided by the real policies under a clock of its own.

    python -m benchmarks.queue [--runs 10000] [--gpus 1000] [--seed 1] [--named 0.2]

Two kinds of GPUs (nodes of 8 with 96 CPU cores, of 4 with 48), half of the GPUs each; a fifth of the runs of up to 8 workers names one
of them, the others take any. Eight users, three priorities, gangs of 1 to 16 workers. Half of the runs are there at the start, half
come in the first day. Expected durations are wrong by a factor of up to two, those of a tenth of the runs are not known. A fifth of the
nodes dies once and comes back; what ran there waits again with the rest of its work. The exit code is 1 if a bound is missed.
"""

import argparse
import heapq
import random
import statistics
import sys
import time
from dataclasses import dataclass, field

from orchestrator.queue.admission import decide
from orchestrator.queue.gang_fit import NodeResources, Reservation
from orchestrator.queue.order import Waiting
from orchestrator.queue.space import ACCELERATOR_TYPE
from trainers.contract.run_spec import WorkerSpec

LARGE, SMALL = (8, 96), (4, 48)
"""GPUs and CPU cores of a node of each kind."""
KINDS = {LARGE: "A100", SMALL: "T4"}
SHAPES = {(1, 4): 0.55, (1, 12): 0.1, (2, 4): 0.15, (4, 4): 0.1, (8, 8): 0.06, (16, 4): 0.04}
"""How many of the runs have so many workers, of a GPU and so many cores each."""
USERS = tuple(f"user{number}" for number in range(8))
HOUR = 3600.0
LOOK_S = 60.0
"""What happens within this time is met by one look; a real campaign looks every second, which leaves GPUs idle for less."""
MOST_MAKESPAN, MOST_UNFAIR, MOST_DECISION_S = 1.05, 0.05, 1e-3


@dataclass
class Node:
    """A machine with what is free on it; nothing while it is down."""

    name: str
    total: tuple[int, int]
    gpus: int = 0
    cpus: int = 0
    is_up: bool = True

    def seen(self) -> NodeResources:
        """As the cluster lists it."""
        kind = {f"{ACCELERATOR_TYPE}{KINDS[self.total]}": 1.0}
        total = {"GPU": self.total[0], "CPU": self.total[1], **kind}
        return NodeResources(self.name, total, {"GPU": self.gpus, "CPU": self.cpus, **kind})

    def holds(self, workers: WorkerSpec) -> int:
        """How many of a gang's workers have room."""
        is_of_kind = self.is_up and workers.accelerator_type in ("", KINDS[self.total])
        return min(self.gpus, self.cpus // workers.cpus) if is_of_kind else 0


@dataclass
class Job:
    """A run, what is left of it, and where it lies."""

    run: Waiting
    left_s: float
    since_s: float = 0.0
    """When it was submitted, began or died last."""
    start: int = 0
    """How often it has started."""
    waited_s: float = 0.0
    on: dict[int, int] = field(default_factory=dict)
    """Workers by node."""


@dataclass(frozen=True)
class Measured:
    """What a simulation has measured."""

    makespan: float
    """Relative to the lower bound: all work, and the GPUs of nodes that were down, spread evenly over all GPUs."""
    end_h: float
    median_wait_h: float
    longest_wait_h: float
    shares: dict[str, float]
    """Of the GPU-hours that were used while all users waited, by user."""
    all_wait_h: float
    decision_s: float
    """CPU seconds of the policy per run that was started or left waiting."""
    look_s: float
    """Median CPU seconds of one decision over all that waits."""
    looks: int
    restarts: int

    @property
    def unfair(self) -> float:
        """Largest relative distance of a user's share from the even one."""
        return max(abs(share * len(self.shares) - 1) for share in self.shares.values())


class Simulation:
    """Runs and nodes, and what happens to them in the order of time."""

    def __init__(self, num_runs: int, num_gpus: int, seed: int, named: float = 0.2) -> None:
        """`named`: the share of runs that name a kind of GPU."""
        self._draw, self._draw_kind, self._named = random.Random(seed), random.Random(seed), named
        num_large = num_gpus // 2 // LARGE[0]
        totals = [LARGE] * num_large + [SMALL] * ((num_gpus - num_large * LARGE[0]) // SMALL[0])
        self._nodes = [Node(f"n{number}", total, *total) for number, total in enumerate(totals)]
        self._num_gpus = sum(total[0] for total in totals)
        self._jobs = {job.run.run_key: job for job in map(self._job, range(num_runs))}
        self._waiting: dict[str, Job] = {}
        self._running: dict[str, Job] = {}
        self._now_s = self._down_gpu_s = self._all_wait_s = 0.0
        self._used = dict.fromkeys(USERS, 0.0)
        self._looks_s: list[float] = []
        self._decided = self._restarts = 0
        self._front = "", 0.0
        self._events = [(job.run.since_unix, "submit", key, 0) for key, job in self._jobs.items()]
        for number in range(len(totals)):
            if self._draw.random() < 0.2:
                self._events.append((self._draw.uniform(1, 100) * HOUR, "down", str(number), 0))
        heapq.heapify(self._events)

    def run(self) -> Measured:
        """Until every run has ended."""
        work_s = sum(job.left_s * job.run.workers.count for job in self._jobs.values())
        while self._waiting or self._running or any(what == "submit" for _, what, *_ in self._events[:1]):
            look_s = max(self._now_s, self._events[0][0]) + LOOK_S
            while self._events and self._events[0][0] <= look_s:
                at_s, what, name, start = heapq.heappop(self._events)
                self._pass_until(at_s)
                getattr(self, f"_{what}")(name, start)
            self._pass_until(look_s)
            self._look()
        waits = [job.waited_s / HOUR for job in self._jobs.values()]
        used = sum(self._used.values()) or 1.0
        return Measured(
            makespan=self._now_s / ((work_s + self._down_gpu_s) / self._num_gpus),
            end_h=self._now_s / HOUR,
            median_wait_h=statistics.median(waits),
            longest_wait_h=max(waits),
            shares={user: seconds / used for user, seconds in self._used.items()},
            all_wait_h=self._all_wait_s / HOUR,
            decision_s=sum(self._looks_s) / self._decided,
            look_s=statistics.median(self._looks_s),
            looks=len(self._looks_s),
            restarts=self._restarts,
        )

    def _job(self, number: int) -> Job:
        draw, user = self._draw, USERS[number % len(USERS)]
        count, cpus = draw.choices(list(SHAPES), weights=list(SHAPES.values()))[0]
        seconds = draw.uniform(2, 30) * HOUR
        kind = self._draw_kind.choice(list(KINDS.values())) if self._draw_kind.random() < self._named and count <= LARGE[0] else ""
        run = Waiting(
            run_key=f"r{number}",
            address=f"r{number}",
            campaign=user,
            workers=WorkerSpec(count=count, gpus=1, cpus=cpus, accelerator_type=kind),
            since_unix=0.0 if draw.random() < 0.5 else draw.uniform(0, 24) * HOUR,
            position=number,
            user=user,
            priority=draw.choices((20, 50, 80), weights=(2, 6, 2))[0],
            estimate_s=None if draw.random() < 0.1 else seconds * 2 ** draw.uniform(-1, 1),
        )
        return Job(run, seconds)

    def _pass_until(self, at_s: float) -> None:
        """What is used while nothing happens."""
        if at_s > self._now_s:
            if len({job.run.user for job in self._waiting.values()}) == len(USERS):
                self._all_wait_s += at_s - self._now_s
                for job in self._running.values():
                    self._used[job.run.user] += (at_s - self._now_s) * job.run.workers.count
            self._now_s = at_s

    def _submit(self, key: str, _: int) -> None:
        self._waiting[key] = self._jobs[key]
        self._jobs[key].since_s = self._now_s

    def _end(self, key: str, start: int) -> None:
        if key in self._running and self._jobs[key].start == start:
            self._free(key)

    def _down(self, name: str, _: int) -> None:
        number = int(name)
        for key in [key for key, job in self._running.items() if number in job.on]:
            job = self._jobs[key]
            job.left_s -= self._now_s - job.since_s
            self._free(key)
            left = None if job.run.estimate_s is None else job.left_s
            job.run = job.run.model_copy(update={"is_resuming": True, "estimate_s": left})
            self._submit(key, 0)
            self._restarts += 1
        seconds = self._draw.uniform(1, 12) * HOUR
        self._down_gpu_s += seconds * self._nodes[number].total[0]
        self._nodes[number].is_up = False
        heapq.heappush(self._events, (self._now_s + seconds, "up", name, 0))

    def _up(self, name: str, _: int) -> None:
        self._nodes[int(name)].is_up = True

    def _free(self, key: str) -> None:
        job = self._running.pop(key)
        for number, count in job.on.items():
            self._nodes[number].gpus += count
            self._nodes[number].cpus += count * job.run.workers.cpus
        job.on = {}

    def _look(self) -> None:
        """One decision over everything that waits, and its starts."""
        waiting = [self._as_posted(job) for job in self._waiting.values()]
        reserved = [self._reserved(job) for job in self._running.values()]
        nodes = [node.seen() for node in self._nodes if node.is_up]
        began_s = time.process_time()
        decision = decide(waiting, nodes, reserved, self._waiting.keys(), self._now_s)
        if waiting:
            self._looks_s.append(time.process_time() - began_s)
            self._decided += len(waiting)
        if decision.first != self._front[0]:
            self._front = decision.first, self._now_s
        for key in decision.start:
            self._start(key)

    def _as_posted(self, job: Job) -> Waiting:
        is_first = job.run.run_key == self._front[0]
        return job.run.model_copy(update={"front_unix": self._front[1]}) if is_first else job.run

    def _reserved(self, job: Job) -> Reservation:
        ends = None if job.run.estimate_s is None else job.since_s + job.run.estimate_s
        return Reservation(job.run.run_key, job.run.workers, is_placed=True, user=job.run.user, ends_unix=ends)

    def _start(self, key: str) -> None:
        """Lay its workers on the nodes that have the least left, as Ray packs them; a gang that finds no place after all waits on."""
        job, left, on = self._jobs[key], self._jobs[key].run.workers.count, {}
        for number, node in sorted(enumerate(self._nodes), key=lambda item: (item[1].cpus, item[1].gpus)):
            count = min(left, node.holds(job.run.workers))
            if count:
                on[number], left = count, left - count
            if not left:
                break
        if left:
            return
        for number, count in on.items():
            self._nodes[number].gpus -= count
            self._nodes[number].cpus -= count * job.run.workers.cpus
        job.on, job.start = on, job.start + 1
        job.waited_s = max(job.waited_s, self._now_s - job.since_s)
        job.since_s = self._now_s
        self._running[key] = self._waiting.pop(key)
        heapq.heappush(self._events, (self._now_s + job.left_s, "end", key, job.start))


def table(found: Measured, runs: int, gpus: int, wall_s: float) -> str:
    """The result as a table."""
    rows = [
        ("runs, GPUs", f"{runs}, {gpus}"),
        ("ended after", f"{found.end_h:.1f} h, {found.makespan:.3f} of the lower bound (at most {MOST_MAKESPAN})"),
        ("wait for a start", f"median {found.median_wait_h:.1f} h, longest {found.longest_wait_h:.1f} h"),
        ("while all users waited", f"{found.all_wait_h:.1f} h"),
        ("shares of the GPU-hours then", ", ".join(f"{100 * share:.2f} %" for share in found.shares.values())),
        ("farthest from the even share", f"{100 * found.unfair:.2f} % of it (at most {100 * MOST_UNFAIR:.0f} %)"),
        ("CPU time of a decision", f"{1e6 * found.decision_s:.1f} us per run decided (at most {1e6 * MOST_DECISION_S:.0f} us)"),
        ("CPU time of a decision over all", f"median {1e3 * found.look_s:.1f} ms, {found.looks} looks"),
        ("runs restarted after a node's death", str(found.restarts)),
        ("simulated in", f"{wall_s:.0f} s"),
    ]
    return "\n".join(f"| {name} | {value} |" for name, value in [("what", "measured"), ("---", "---"), *rows])


def main() -> int:
    """Simulate, print, and check the bounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--gpus", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--named", type=float, default=0.2)
    options = parser.parse_args()
    began_s = time.monotonic()
    found = Simulation(options.runs, options.gpus, options.seed, options.named).run()
    print(table(found, options.runs, options.gpus, time.monotonic() - began_s))
    is_kept = found.makespan <= MOST_MAKESPAN and found.unfair <= MOST_UNFAIR and found.decision_s <= MOST_DECISION_S
    return 0 if is_kept else 1


if __name__ == "__main__":
    sys.exit(main())
