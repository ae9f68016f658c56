"""Whose memory it was that a node ran out of."""

import pytest

from orchestrator.training.failures import MESSAGE_CHARACTERS, RankError, blame, kind_of_death
from orchestrator.training.memory_report import MemoryReport, memory_report

REPORT = """1 worker(s) were killed due to the node running low on memory. \
Memory on the node (IP: 192.0.2.2, ID: e5ef) was {used}GB used / \
23.54GB limit (0.95)
OOM kill reason: Memory usage 6523297792B exceeded threshold of 6496062976B (25.7% of 25276510208B limit)
Object store memory usage: [- objects spillable: 0
- bytes spillable: 0
- bytes unsealed: 0
- bytes in use: 1073741824
- bytes evictable: 536870912

(global lru) capacity: 80000000]
Ray killed 1 worker(s) based on the killing policy
Considered workers: [
Selected to kill: (Actor(a5db): job ID=01000000, task name=A.__init__, required resources={{CPU: 1}}, pid=13670, \
actual memory used=4.50GB, \
worker ID=d5d9)
Not selected: (Actor(b6): job ID=02000000, pid=13671, actual memory used=1.00GB, worker ID=d5da)
]
Total non-selected idle workers: 1
Total non-selected idle workers USS bytes: 0.25GB
To see more information about memory usage on this node, use `ray logs raylet.out -ip 192.0.2.2`
Top 10 memory users: PID\tMEM(GB)\tCOMMAND
7789\t8.54\t/opt/analysis --threads 8 -...
13670\t4.50\tray::A.eat
13490\t1.00\tray::TrainController.run
13237\t0.25\tpython -m orchestrator.training.driver /results
8025\t0.18\t/usr/bin/other 12 0.5
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/ray. To adjust the kill threshold, set 1 2."""
"""As Ray 2.60 writes it, with other numbers. The cluster's: 4.5 + 1 in workers, 0.25 idle, 1.5 in objects, 0.25 in the driver: 7.5."""


class OfMemory(Exception):
    """Ray's error, with its text."""


def test_the_report_tells_the_cluster_from_other_processes() -> None:
    for text in (REPORT.format(used="22.50"), " ".join(REPORT.format(used="22.50").split())):
        assert memory_report(text) == MemoryReport(22.5, 23.54, 7.5, (7789, 8.54))
    assert memory_report("The actor was killed due to memory pressure on node x") is None


@pytest.mark.parametrize(("used", "kind", "state"), [("22.50", "cluster", "FAILED_CLUSTER"), ("14.00", "memory", "FAILED_CONFIG")])
def test_memory_that_others_took_is_not_the_users_fault(used: str, kind: str, state: str) -> None:
    assert kind_of_death(OfMemory(REPORT.format(used=used)))[:2] == (kind, state)


def test_the_failure_says_how_much_was_whose_before_rays_own_words() -> None:
    found = blame({1: RankError(OfMemory(REPORT.format(used="22.50")), is_raised=False)})
    told = "22.5 of 23.54 GiB were in use: 7.50 by this Ray cluster's workers, jobs and object store, 15.00 by other processes"
    assert f"rank 1 was ended because its node ran out of memory. {told} (the largest is process 7789, 8.54 GiB)." in found.message
    assert "RAY_memory_usage_threshold" in found.message[: MESSAGE_CHARACTERS // 2]
    assert "/opt/analysis" not in found.message.partition("Ray reports:")[0]
