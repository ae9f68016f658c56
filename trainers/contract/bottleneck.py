"""What limits a training: its steps, the preparation of its batches, or the disk that they are read from. Pure, from measured epochs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from trainers.contract.commits import EpochRow
from trainers.contract.run_spec import LoaderPlacement

NOTABLE_WAIT = 0.05
"""Share of the time waiting for data from which on the steps are not what limits."""
CROWDED = 1.5
"""Loaders that take so many times the seconds that they compute and read do not have a core each."""
Name = Literal["GPU", "steps on the CPU", "CPU augmentation", "crowded cores", "disk"]


@dataclass(frozen=True)
class Limit:
    """What limited some epochs."""

    name: Name
    waited: float
    """Share of the epochs' time in which the steps waited for data, 0 to 1."""
    loaders: int
    """Loader actors of a worker."""
    enough: int
    """Loader actors, with a core each, with which no step would have waited."""
    core: float
    """Share of a core that each loader had while it prepared batches."""
    placement: LoaderPlacement = "local"
    """Where the loaders run."""

    @property
    def advice(self) -> str:
        """What to change, in a sentence; empty where the steps limit, as they should."""
        actors = "1 loader actor with a core" if self.enough == 1 else f"{self.enough} loader actors with a core each"
        have = f"{actors} would be enough for a worker, it has {self.loaders}"
        match self.name:
            case "GPU" | "steps on the CPU":
                return ""
            case "CPU augmentation" if self.enough <= self.loaders:
                return "its loader actors were starting, or single batches take long (loader.prefetch prepares more of them ahead)."
            case "CPU augmentation" if self.placement == "cluster":
                return f"{have}: raise loader.actors, which take CPUs of any node."
            case "CPU augmentation":
                return (
                    f"{have}: raise workers.cpus and loader.actors, or, where its node has no more CPUs, set loader.placement: cluster, "
                    "which takes those of other nodes."
                )
            case "crowded cores":
                return f"its loader actors get {self.core:.0%} of a core each, other processes take the rest; {have}."
            case "disk" if self.enough <= self.loaders:
                return "put nnUNet_preprocessed on a faster disk: it has loader actors enough."
            case "disk":
                return f"put nnUNet_preprocessed on a faster disk, or raise loader.actors; {have}."

    @property
    def beforehand(self) -> str:
        """`text` of a training that has not begun; where its steps are to limit it, with the loader actors that it needs."""
        if self.advice:
            return self.text
        actors = "1 loader actor with a core is" if self.enough == 1 else f"{self.enough} loader actors with a core each are"
        return f"{self.text}; {actors} enough for a worker, it has {self.loaders}."

    @property
    def text(self) -> str:
        """`limited by: CPU augmentation (31 % of the time waiting for data)`, with what to change."""
        waiting = f" ({self.waited:.0%} of the time waiting for data)" if self.advice else ""
        return f"limited by: {self.name}{waiting}" + (f"; {self.advice}" if self.advice else "")


def judged(
    total_s: float,
    waited_s: float,
    prepare_s: float,
    cpu_s: float,
    read_s: float,
    loaders: int,
    is_on_gpu: bool,
    placement: LoaderPlacement = "local",
) -> Limit:
    """What limited `total_s` seconds of steps, of which `waited_s` waited for batches that took their loaders the other seconds."""
    work_s, computing_s = cpu_s + read_s, max(total_s - waited_s, 0.01 * total_s)
    name: Name
    if waited_s < NOTABLE_WAIT * total_s:
        name = "GPU" if is_on_gpu else "steps on the CPU"
    elif prepare_s > CROWDED * work_s:
        name = "crowded cores"
    else:
        name = "disk" if read_s > cpu_s else "CPU augmentation"
    return Limit(
        name=name,
        waited=min(1.0, waited_s / total_s),
        loaders=loaders,
        enough=max(1, math.ceil(work_s / computing_s)),
        core=min(1.0, cpu_s / (prepare_s - read_s)) if prepare_s > read_s else 1.0,
        placement=placement,
    )


def limit_of(rows: Sequence[EpochRow], placement: LoaderPlacement = "local") -> Limit | None:
    """What limited these epochs together, with loaders placed so; None where it was not measured."""
    if (sums := _sums(rows)) is None:
        return None
    return judged(*sums, rows[-1].loaders, rows[-1].gpu_memory_gib > 0, placement)


def expected_limit(rows: Sequence[EpochRow], loaders: int, placement: LoaderPlacement = "local") -> Limit | None:
    """What will limit a training whose worker has so many loader actors, with a core each, by epochs of an earlier one on such a device;
    None where it was not measured.

    The steps take as long as they computed then, and the loaders share the same work; a disk that limited them reads no faster for more
    of them. Where other processes took the loaders' cores, that is expected again, unless so few loaders are too few with a core each.
    """
    sums, before = _sums(rows), limit_of(rows, placement)
    if sums is None or before is None:
        return None
    total_s, waited_s, _, cpu_s, read_s = sums
    computing_s = max(total_s - waited_s, 0.01 * total_s)
    fastest_s = total_s if before.name == "disk" else computing_s
    expected_s = max(fastest_s, (cpu_s + read_s) / loaders)
    is_on_gpu = rows[-1].gpu_memory_gib > 0
    found = judged(expected_s, expected_s - computing_s, cpu_s + read_s, cpu_s, read_s, loaders, is_on_gpu, placement)
    is_crowded_again = before.name == "crowded cores" and (loaders >= before.loaders or not found.advice)
    return replace(before, loaders=loaders) if is_crowded_again else found


def _sums(rows: Sequence[EpochRow]) -> tuple[float, float, float, float, float] | None:
    """Over epochs: seconds of steps, of the longest wait, and of the loaders in all, on their CPUs, and waiting for the disk; None where
    one of them was not measured."""
    measured = [(row.train_s + row.val_s, row.longest_wait_s, row.prepare_s, row.prepare_cpu_s, row.read_wait_s) for row in rows]
    if not measured or not all(map(math.isfinite, (value for values in measured for value in values))):
        return None
    total_s, waited_s, prepare_s, cpu_s, read_s = map(math.fsum, zip(*measured, strict=True))
    return (total_s, waited_s, prepare_s, cpu_s, read_s) if total_s > 0 else None


def describe_limit(rows: Sequence[EpochRow], placement: LoaderPlacement = "local") -> str:
    """`Limit.text` of these epochs; that it is not known where it is not."""
    found = limit_of(rows, placement)
    return found.text if found else "what limits it was not measured"
