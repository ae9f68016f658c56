"""The training log in a run's folder, as nnU-Net names it: what remains of a run's logs where its cluster does not."""

from collections.abc import Iterator
from pathlib import Path


def training_logs(run_folder: Path, *, earlier: bool = False) -> Iterator[str]:
    """The text of the newest `training_log_<time>.txt` of a run; with `earlier` of all, oldest first, each below a line with its name."""
    files = sorted(run_folder.glob("training_log_*.txt"))
    for path in files if earlier else files[-1:]:
        if earlier:
            yield f"--- {path.name}\n"
        yield path.read_text(encoding="utf-8", errors="replace")
