"""How busy this node is, under the names that MLflow gives its system metrics."""

import contextlib
import functools
import platform
from pathlib import Path

import psutil
import torch


@functools.cache
def device_kind(device: torch.device) -> str:
    """The name of the GPU that `device` names, or of this node's CPU; empty where the system does not name it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        names = (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
        return next(names, platform.processor())
    return platform.processor()


def node_load(device: torch.device) -> dict[str, float]:
    """CPU and memory of this node since the last call, and of the GPU that `device` names."""
    memory = psutil.virtual_memory()
    load = {
        "cpu_utilization_percentage": float(psutil.cpu_percent()),
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": float(memory.percent),
    }
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        load["gpu_0_memory_usage_megabytes"] = (total - free) / 1e6
        load["gpu_0_memory_usage_percentage"] = 100.0 * (total - free) / total
        with contextlib.suppress(Exception):  # utilization() needs NVML, which containers may lack; a load figure is never worth a run
            load["gpu_0_utilization_percentage"] = float(torch.cuda.utilization(device))
    return load
