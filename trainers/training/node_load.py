"""How busy this node is, under the names that MLflow gives its system metrics."""

import contextlib

import psutil
import torch


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
