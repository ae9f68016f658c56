"""Hosts with addresses of their own: one is cut off, later one is killed; then a whole gang goes on writing while it is cut off.

    python -m benchmarks.hosts [--defaults]     as root, on Linux

A head without CPUs and three hosts with one CPU each, on one switch. A run on two of them is compared with an unbroken one. A second run
has both its workers on one host with two CPUs: cut off, they train on, until the cluster has started others and their claim fences the
first off. `--defaults` leaves Ray's health checks as Ray has them.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from tests.integration.digests import curves, epochs_done, weights_digest
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
from trainers.spec.committed import committed_states
from trainers.spec.folder import RunFolder

ITERATIONS = 40
EPOCHS = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--defaults", action="store_true")
    parser.add_argument("--part", choices=("spread", "packed", "both"), default="both")
    options = parser.parse_args()
    if reason := reason_against():
        raise SystemExit(reason)
    checks = {} if options.defaults else QUICK_TO_NOTICE
    with tempfile.TemporaryDirectory(prefix="nnf-") as base:
        toy = toy_dataset(Path(base) / "toy")
        if options.part != "packed":
            spread(toy, Path(base), checks)
        if options.part != "spread":
            packed(toy, Path(base), checks)


def spread(toy: Toy, base: Path, checks: Mapping[str, str]) -> None:
    """One worker on each of two hosts, a third one spare: cut, back again, kill."""
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
    compare(broken, unbroken)


def packed(toy: Toy, base: Path, checks: Mapping[str, str]) -> None:
    """Both workers on one host, which is cut off and stays so: two gangs train, one of them may commit."""
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
    told_fence(broken, before, at_claim["claimed_unix"], at_claim["attempt"], alive)
    compare(broken, unbroken)


def told_fence(folder: RunFolder, before: int, claimed_unix: float, attempt: int, alive: int) -> None:
    """What the gang that was cut off committed, and that it committed nothing after the claim of its successor."""
    history = committed_states(folder)[0].history
    late = [row.epoch for row in history if row.attempt < attempt and row.ended_unix > claimed_unix]
    while_cut = [row.epoch for row in history if row.attempt < attempt and row.epoch >= before]
    print(f"cut off, the old gang committed epochs {while_cut} until the claim of attempt {attempt}; after it: {late}")
    print(f"its workers still alive at the first step of the new gang: {alive}")


def compare(broken: RunFolder, unbroken: RunFolder) -> None:
    """Weights and curves of both."""
    print(f"curves equal: {curves(broken) == curves(unbroken)}; weights equal: {weights_digest(broken) == weights_digest(unbroken)}")
    print(f"attempts that wrote epochs: {sorted({row.attempt for row in committed_states(broken)[0].history})}", flush=True)


def logs(base: Path, name: str) -> Path:
    """A folder for the logs of one cluster."""
    folder = base / f"logs-{name}-{int(time.time())}"
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
