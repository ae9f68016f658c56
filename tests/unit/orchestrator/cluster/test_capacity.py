"""What a process may use of its machine, and what a head that it starts is given."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
from ray._private.accelerators import NvidiaGPUAcceleratorManager

from orchestrator.cluster import nodes
from orchestrator.cluster.capacity import Offer, Share, usable_cpus, usable_memory
from orchestrator.cluster.nodes import busy_gpus, busy_words, computing_processes, node_of, offer_of, visible_gpus
from orchestrator.errors import ConfigError

OWN = "0::/system.slice/job_7/step_0\n"
"""As Slurm nests the cgroup of a job, version 2."""
OWN_V1 = "4:memory:/slurm/job_7\n1:cpu,cpuacct:/slurm/job_7\n"


def files(base: Path, content: dict[str, str]) -> dict[str, Path]:
    """The files of cgroups below `base`, as arguments."""
    for name, text in content.items():
        path = base / "cgroups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (base / "membership").write_text(OWN_V1 if any(name.startswith(("cpu/", "memory/")) for name in content) else OWN)
    return {"membership": base / "membership", "cgroups": base / "cgroups"}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to CPUs")
def test_cpus_beyond_the_affinity_are_not_counted() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from orchestrator.cluster.capacity import usable_cpus; print(usable_cpus())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"


@pytest.mark.parametrize(
    ("content", "cpus"),
    [
        ({"system.slice/job_7/step_0/cpu.max": "max 100000", "system.slice/job_7/cpu.max": "350000 100000"}, 3),
        ({"cpu.max": "250000 100000"}, 2),
        ({"system.slice/job_7/cpu.max": "50000 100000"}, 1),
        ({"cpu/slurm/job_7/cpu.cfs_quota_us": "300000", "cpu/slurm/job_7/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
        ({"cpu.max": "no number"}, 16),
        ({}, 16),
    ],
    ids=["of the job", "of the container", "half a CPU", "version 1", "version 1 without limit", "unreadable", "none"],
)
def test_the_tightest_quota_of_the_cgroups_bounds_the_cpus(
    content: dict[str, str], cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    assert usable_cpus(**files(tmp_path, content)) == cpus


@pytest.mark.parametrize(
    "content",
    [
        {"system.slice/job_7/memory.max": str(64 << 20), "memory.max": "max"},
        {"memory/slurm/memory.limit_in_bytes": str(64 << 20), "memory/memory.limit_in_bytes": "9223372036854771712"},
    ],
    ids=["version 2", "version 1"],
)
def test_the_tightest_limit_of_the_cgroups_bounds_the_memory(content: dict[str, str], tmp_path: Path) -> None:
    assert usable_memory(**files(tmp_path, content)) == 64 << 20


@pytest.mark.parametrize(
    ("found", "named", "usable"),
    [
        (2, None, ["0", "1"]),
        (4, ["1", " 3"], ["1", "3"]),
        (4, ["-1"], []),
        (2, ["0", "5", "1"], ["0"]),
        (1, ["MIG-a", "MIG-b"], ["MIG-a", "MIG-b"]),
        (0, ["0"], []),
    ],
)
def test_gpus_are_those_that_cuda_shows(found: int, named: list[str] | None, usable: list[str]) -> None:
    assert visible_gpus(found, named) == usable


def test_what_is_asked_for_bounds_the_offer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "usable_gpus", lambda: ["2", "3"])
    assert offer_of(Share(cpus=3, gpus=1, memory_gib=8)) == Offer(cpus=3, gpu_ids=("2",), memory_gib=8)
    assert offer_of(Share(gpus=0)).gpu_ids == ()
    assert offer_of(Share()).gpu_ids == ("2", "3")
    with pytest.raises(ConfigError, match="--gpus 3, but this process may use GPUs 2,3"):
        offer_of(Share(gpus=3))


def test_idle_gpus_are_given_out_before_those_that_others_compute_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "usable_gpus", lambda: ["0", "1", "2"])
    monkeypatch.setattr(nodes, "seen_uuids", lambda: ["GPU-a", "GPU-b", "GPU-c"])
    monkeypatch.setattr(nodes, "computing_processes", lambda: {"GPU-a": [7, 8], "GPU-b": [], "GPU-c": []})
    busy = busy_gpus(nodes.usable_gpus())
    assert busy == {"0": [7, 8]}
    assert [offer_of(Share(gpus=number), busy=busy).gpu_ids for number in (1, 2, 3)] == [("1",), ("1", "2"), ("0", "1", "2")]
    assert offer_of(Share(), busy=busy).gpu_ids == ("0", "1", "2"), "nobody's only GPU is taken away"
    assert "(GPU 0: process 7, 8)" in busy_words(busy)


def test_what_computes_on_each_gpu_is_asked_of_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[str, Any] = {"Count": lambda: 2, "HandleByIndex": int, "UUID": lambda gpu: f"GPU-{gpu}".encode()}
    answers["ComputeRunningProcesses"] = lambda gpu: [SimpleNamespace(pid=7)] * gpu
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, f"nvmlDeviceGet{name}", answer)
    for name in ("nvmlInit", "nvmlShutdown"):
        monkeypatch.setattr(pynvml, name, lambda: None)
    assert computing_processes() == {"GPU-0": [], "GPU-1": [7]}


def test_without_nvml_no_gpu_is_known_to_be_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "seen_uuids", list)
    assert busy_gpus(["0"]) == {}
    monkeypatch.setattr(nodes, "computing_processes", lambda: {"GPU-a": [7]})
    assert busy_gpus(["0"]) == {}


def test_this_machines_node_has_the_kind_of_its_gpus_as_ray_will_find_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NvidiaGPUAcceleratorManager, "get_current_node_accelerator_type", lambda: "A100")
    assert node_of(Offer(cpus=3, gpu_ids=("2",), memory_gib=8)).total == {"CPU": 3, "GPU": 1, "accelerator_type:A100": 1}
    assert node_of(Offer(cpus=3, gpu_ids=(), memory_gib=8)).total == {"CPU": 3, "GPU": 0}


def test_an_offer_is_measured_by_what_is_asked_alone() -> None:
    offer = Offer(cpus=4, gpu_ids=("0", "1"), memory_gib=16)
    assert offer.meets(Share())
    assert offer.meets(Share(cpus=4, gpus=2))
    assert not offer.meets(Share(cpus=2))
    assert not offer.meets(Share(gpus=0))
    assert Share(gpus=0).over(Share(cpus=2, gpus=1)) == Share(cpus=2, gpus=0)
