"""Hosts with addresses of their own: one is cut off, later one is killed; then a whole gang goes on writing while it is cut off.

    python -m benchmarks.hosts [--defaults]     as root, on Linux

A head without CPUs and three hosts with one CPU each, on one switch. A run on two of them is compared with an unbroken one. A second run
has both its workers on one host with two CPUs: cut off, they train on, until the cluster has started others and their claim fences the
first off. `--defaults` leaves Ray's health checks as Ray has them. The exit code is 1 if a run differs from the unbroken one, or if the
gang that was cut off committed something after the claim of its successor.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from orchestrator.drill.order import differences
from tests.integration.digests import epochs_done, reached, weights_digest
from tests.integration.hosts import Hosts, RayHosts, reason_against
from tests.integration.test_hosts import (
    QUICK_TO_NOTICE,
    claims,
    host_of_others,
    host_of_writer,
    run_of,
    suffer,
    table,
    wait_until,
)
from tests.toy import Toy, toy_dataset
from trainers.contract.run_folder import RunFolder

ITERATIONS = 40
EPOCHS = 30


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--defaults", action="store_true")
    parser.add_argument("--part", choices=("spread", "packed", "both"), default="both")
    options = parser.parse_args(arguments)
    if reason := reason_against():
        raise SystemExit(reason)
    checks = {} if options.defaults else QUICK_TO_NOTICE
    violations: list[str] = []
    with tempfile.TemporaryDirectory(prefix="nnf-") as base:
        toy = toy_dataset(Path(base) / "toy")
        if options.part != "packed":
            violations += spread(toy, Path(base), checks)
        if options.part != "spread":
            violations += packed(toy, Path(base), checks)
    for text in violations:
        print(f"VIOLATION {text}", flush=True)
    return int(bool(violations))


def spread(toy: Toy, base: Path, checks: Mapping[str, str]) -> list[str]:
    """One worker on each of two hosts, a third one spare: cut, back again, kill. Returns what must not be."""
    names = ["left", "middle", "right"]
    with Hosts(("head", *names)) as hosts:
        cluster = RayHosts(hosts, dict.fromkeys(names, 1), logs(base, "spread"), checks)
        for host in hosts:
            cluster.start(host)
        cluster.wait_for_cpus(3)
        unbroken = run_of(toy, base, "unbroken", EPOCHS, ITERATIONS)
        assert cluster.train(unbroken.root).wait(timeout=300) == 0
        broken = run_of(toy, base, "broken", EPOCHS, ITERATIONS)
        driver = cluster.train(broken.root)
        wait_until(lambda: epochs_done(broken) >= 3, driver, "the third epoch")
        lost = host_of_writer(hosts, broken)
        events = [suffer(f"cable of {lost.name} pulled (rank 0 there)", lost.cut, broken, driver)]
        lost.mend()
        print(f"processes on {lost.name} when the cable was back: {len(lost.processes('ray::'))} of Ray's workers", flush=True)
        cluster.start_ray(lost)
        cluster.wait_for_cpus(3)
        done = epochs_done(broken)
        wait_until(lambda: epochs_done(broken) > done, driver, "one more epoch")
        dead = host_of_others(hosts, names, host_of_writer(hosts, broken))
        events.append(suffer(f"{dead.name} killed (rank 1 there)", dead.kill, broken, driver))
        assert driver.wait(timeout=300) == 0
    print("\n" + table(events))
    return unequal(broken, unbroken)


def packed(toy: Toy, base: Path, checks: Mapping[str, str]) -> list[str]:
    """Both workers on one host, which is cut off and stays so: two gangs train, one of them may commit. Returns what must not be."""
    with Hosts(("head", "left", "right")) as hosts:
        cluster = RayHosts(hosts, {"left": 2, "right": 2}, logs(base, "packed"), checks)
        for host in hosts:
            cluster.start(host)
        cluster.wait_for_cpus(4)
        unbroken = run_of(toy, base, "unbroken-packed", EPOCHS, ITERATIONS)
        assert cluster.train(unbroken.root).wait(timeout=300) == 0
        broken = run_of(toy, base, "broken-packed", EPOCHS, ITERATIONS)
        driver = cluster.train(broken.root)
        wait_until(lambda: epochs_done(broken) >= 3, driver, "the third epoch")
        lost, before = host_of_writer(hosts, broken), epochs_done(broken)
        event = suffer(f"cable of {lost.name} pulled (all ranks there)", lost.cut, broken, driver)
        at_claim = claims(broken)[-1]
        alive = len(lost.processes("ray::RayTrainWorker"))
        assert driver.wait(timeout=300) == 0
    print("\n" + table([event]))
    print(f"workers of the old gang still alive at the first step of the new one: {alive}")
    return [*late_commits(broken, before, at_claim["claimed_unix"], at_claim["attempt"]), *unequal(broken, unbroken)]


def late_commits(folder: RunFolder, before: int, claimed_unix: float, fencing_token: int) -> list[str]:
    """What the gang that was cut off committed after the claim of its successor, `attempt`; prints what it committed until then."""
    own = [row for row in reached(folder).history if row.fencing_token < fencing_token]
    late = [row.epoch for row in own if row.ended_unix > claimed_unix]
    while_cut = [row.epoch for row in own if row.epoch >= before and row.epoch not in late]
    print(f"cut off, the old gang committed epochs {while_cut} until the claim of attempt {fencing_token}")
    return [f"{folder.root}: epochs {late} were committed by the old gang after the claim of attempt {fencing_token}"] if late else []


def unequal(broken: RunFolder, unbroken: RunFolder) -> list[str]:
    """Where weights and curves of both differ."""
    ours, theirs = reached(broken).history, reached(unbroken).history
    found = differences(ours, theirs, weights_digest(broken), weights_digest(unbroken))
    writers = sorted({row.fencing_token for row in ours})
    print(f"curves and weights {'differ' if found else 'are equal'}; fencing tokens that wrote epochs: {writers}", flush=True)
    return [f"{broken.root}: {text}" for text in found]


def logs(base: Path, name: str) -> Path:
    """A folder for the logs of one cluster."""
    folder = base / f"logs-{name}-{int(time.time())}"
    folder.mkdir()
    return folder


if __name__ == "__main__":
    sys.exit(main())
