"""The logs in a run's folder: nnU-Net's training log, and what the run's jobs printed. They remain where the cluster does not."""

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from orchestrator.run.events import EVENT_PREFIX
from trainers.contract.run_folder import RunFolder

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
RAYS = re.compile(
    r"\((?:raylet|gcs_server|autoscaler)\b[^)]*\) (?!.*(?:killed|memory|OOM|No available node))"
    r"|(?:\([^)]* pid=\d+[^)]*\) )?\[[\d-]+ [\d:,]+ [A-Z] \d+ \d+\] \w+\.cc:\d+: "
    r"|\S+ \S+\tINFO job_manager\.py:\d+ -- "
    r"|Running entrypoint for job "
)
"""How the lines begin that Ray prints of itself into the log of a job, without their colours."""


JOB = re.compile(r"(?P<kind>train|validate)-.+-a(?P<number>[0-9]+)(-r(?P<retry>[0-9]+))?")
"""The submission id of a job of a run, with its job number."""


def training_logs(run_folder: Path, *, earlier: bool = False) -> Iterator[str]:
    """The text of the newest `training_log_<time>.txt` of a run; with `earlier` of all, oldest first, each below a line with its name."""
    files = _training_logs(run_folder)
    for path in files if earlier else files[-1:]:
        if earlier:
            yield f"--- {path.name}\n"
        yield path.read_text(encoding="utf-8", errors="replace")


def job_logs(run_folder: Path, *, but: Collection[str] = ()) -> Iterator[str]:
    """What each ended job of a run printed, oldest first, below a line with its name; `but`: jobs that are shown otherwise."""
    files = [path for path in RunFolder(run_folder).job_logs.glob("*.txt") if path.stem not in but]
    for path in sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name)):
        yield f"--- {path.stem}\n"
        yield path.read_text(encoding="utf-8", errors="replace")


def stored_logs(run_folder: Path, *, earlier: bool = False) -> Iterator[str]:
    """The newest training log, then what the validations of that training printed; with `earlier` all training logs, then what all jobs
    printed. Without any training log the latter too. Only with `earlier` with what Ray printed of itself.
    """
    yield from training_logs(run_folder, earlier=earlier)
    if earlier:
        yield from job_logs(run_folder)
    elif not _training_logs(run_folder):
        yield from map(own_lines, job_logs(run_folder))
    else:
        yield from map(own_lines, _validation_logs(run_folder))


def _validation_logs(run_folder: Path) -> Iterator[str]:
    """What the validations of the newest training job printed, in the order of their retries."""
    named = [(match, path) for path in RunFolder(run_folder).job_logs.glob("*.txt") if (match := JOB.fullmatch(path.stem))]
    newest = max((int(match["number"]) for match, _ in named), default=0)
    own = [(int(match["retry"] or 0), path) for match, path in named if match["kind"] == "validate" and int(match["number"]) == newest]
    for _, path in sorted(own):
        yield path.read_text(encoding="utf-8", errors="replace")


def has_begun_its_log(run_folder: Path, since_unix: float) -> bool:
    """True if a training log was written since then: one that is older tells nothing of a job that ended before its workers began."""
    return any(path.stat().st_mtime >= since_unix for path in _training_logs(run_folder)[-1:])


def own_lines(text: str) -> str:
    """What a job printed without what Ray printed there of itself, and without the events that only programs read. Pure."""
    return "".join(line for line in text.splitlines(keepends=True) if not _is_noise(COLOURS.sub("", line)))


def _is_noise(line: str) -> bool:
    return line.startswith(EVENT_PREFIX) or RAYS.match(line) is not None


def _training_logs(run_folder: Path) -> list[Path]:
    return sorted(run_folder.glob("training_log_*.txt"))
