"""How many CPUs and how much memory this process may use: by its affinity (taskset, cpuset, Slurm) and the limits of its cgroups.

Ray counts the CPUs of the machine, and knows only the limits at the root of the cgroups: a container's, not a batch job's.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil
from pydantic import BaseModel, ConfigDict

MEMBERSHIP = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")


class Share(BaseModel):
    """What a head is asked to give out of its machine; None: what the process that starts it may use."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: int | None = None
    gpus: int | None = None
    memory_gib: float | None = None

    def over(self, earlier: "Share") -> "Share":
        """What is asked now, and of what is left open what was asked earlier."""
        return Share(**{**earlier.model_dump(), **self.model_dump(exclude_none=True)})


class Offer(BaseModel):
    """What a head gives out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: int
    gpu_ids: tuple[str, ...]
    """As CUDA_VISIBLE_DEVICES names them; empty also for GPUs that are not NVIDIA's, which Ray counts by itself."""
    memory_gib: float
    """What all processes of the head may use together."""

    @property
    def words(self) -> str:
        """For a message."""
        gpus = f", {len(self.gpu_ids)} GPU{'s' * (len(self.gpu_ids) != 1)} ({','.join(self.gpu_ids)})" if self.gpu_ids else ", no GPU"
        return f"{self.cpus} CPU{'s' * (self.cpus != 1)}{gpus}, {self.memory_gib:.4g} GiB of memory"

    def meets(self, asked: Share) -> bool:
        """True if this is what is asked for, as far as that goes."""
        own = Share(cpus=self.cpus, gpus=len(self.gpu_ids), memory_gib=self.memory_gib)
        return asked.over(own) == own


def usable_cpus(membership: Path = MEMBERSHIP, cgroups: Path = CGROUPS) -> int:
    """Whole CPUs that this process may keep busy, at least one."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _folders("cpu", membership, cgroups) if (quota := _cpu_quota(folder)) is not None]
    return max(1, int(min([affinity, *quotas])))


def usable_memory(membership: Path = MEMBERSHIP, cgroups: Path = CGROUPS) -> int:
    """Bytes of memory that this process and its neighbours in its cgroup may use together."""
    limits = [limit for folder in _folders("memory", membership, cgroups) if (limit := _memory_limit(folder)) is not None]
    return min([int(psutil.virtual_memory().total), *limits])


def _folders(controller: str, membership: Path, cgroups: Path) -> Iterator[Path]:
    """The folders of this process's cgroup and of those around it, of both versions. A container may see the outermost only."""
    for line in _read(membership).splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not path or (controllers and controller not in controllers.split(",")):
            continue
        mount = cgroups / controller if controllers else cgroups
        own = PurePosixPath(path.lstrip("/"))
        inside = [] if ".." in own.parts else [own, *own.parents]
        yield from (mount / folder for folder in inside)
        yield mount


def _cpu_quota(folder: Path) -> float | None:
    """CPUs' worth of time that a cgroup gets: `cpu.max` of version 2, `cpu.cfs_*` of version 1."""
    numbers = _read(folder / "cpu.max").split() or [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    quota, period = (_number(text) for text in (numbers if len(numbers) == 2 else ("max", "")))
    return quota / period if quota is not None and period else None


def _memory_limit(folder: Path) -> int | None:
    """Bytes: `memory.max` of version 2, `memory.limit_in_bytes` of version 1."""
    return _number((_read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")).strip())


def _number(text: str) -> int | None:
    """None for `max`, for `-1` and for whatever is no number."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape")
    except (OSError, ValueError):  # ValueError: a path with a NUL
        return ""
