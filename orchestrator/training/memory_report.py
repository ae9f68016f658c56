"""Whose memory it was: what Ray's memory monitor reports when it ends a worker because its node runs out of memory."""

import re
from dataclasses import dataclass

_NODE = re.compile(r"\bwas ([\d.]+)GB used / ([\d.]+)GB limit\b")
_WORKER = re.compile(r"\bactual memory used=([\d.]+)GB|\bidle workers USS bytes: ([\d.]+)GB")
_OBJECTS = re.compile(r"\bbytes (?:in use|evictable|unsealed): (\d+)")
_PROCESS = re.compile(r"(?<=\s)(\d+)\s+(\d+\.\d\d)\s+(\S.*?)(?=\s+\d+\s+\d+\.\d\d\s|\s+Refer to the documentation|$)")
_OURS = re.compile(r"\Aray::|-m orchestrator\.|/ray/core/src/ray/|\bray\.scripts\.scripts\b")


@dataclass(frozen=True)
class MemoryReport:
    """GiB of a node's memory at the moment of the kill."""

    used: float
    limit: float
    cluster: float
    """In workers and jobs of the Ray cluster, and in its object store."""
    largest_other: tuple[int, float] | None
    """Process id and GiB of the largest process that is not of the cluster, if it is among the ten that Ray names."""

    @property
    def is_of_others(self) -> bool:
        """True if most of what was used belonged to processes that are not of the cluster."""
        return self.cluster < self.used / 2

    @property
    def words(self) -> str:
        """For a message."""
        others = max(0.0, self.used - self.cluster)
        largest = f" (the largest is process {self.largest_other[0]}, {self.largest_other[1]:g} GiB)" if self.largest_other else ""
        return (
            f"{self.used:g} of {self.limit:g} GiB were in use: {self.cluster:.2f} by this Ray cluster's workers, jobs and object store, "
            f"{others:.2f} by other processes{largest}."
        )


def memory_report(text: str) -> MemoryReport | None:
    """What Ray's text says; None for one without numbers, as of an older Ray. Pure."""
    node = _NODE.search(text)
    if node is None:
        return None
    workers = sum(float(busy or idle) for busy, idle in _WORKER.findall(text))
    objects = sum(map(int, _OBJECTS.findall(text))) / 2**30
    named = [(int(pid), float(gib), command) for pid, gib, command in _PROCESS.findall(text.partition("Top 10 memory users:")[2])]
    jobs = sum(gib for _, gib, command in named if _OURS.search(command) and not command.startswith("ray::"))
    others = [(pid, gib) for pid, gib, command in named if not _OURS.search(command)]
    largest = max(others, key=lambda process: process[1], default=None)
    return MemoryReport(float(node[1]), float(node[2]), workers + objects + jobs, largest)
