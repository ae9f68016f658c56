"""Asks in a short process whether a run's network can be built and takes one patch, before any worker starts.

It takes some seconds and 0.7 GB, which are free again when the training begins; in this process torch's meta device would hold 150 MB for
as long as the run trains. Runs of the same plans ask the same question, so that a network can be trained is kept on this machine, and a
campaign asks ahead: while its first job starts, the network is being tried already.
"""

import contextlib
import hashlib
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock, Timeout

import trainers
from orchestrator.errors import NnfleetError
from trainers.contract.architecture import NetworkTrial, NetworkVerdict
from trainers.contract.cascade import network_channels
from trainers.contract.commits import newest_committed
from trainers.contract.own_code import check_files
from trainers.contract.plans import labels_of, load_dataset_json, plans_of
from trainers.contract.pretrained import check_unchanged
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.contract.split_batch import rank_sizes
from trainers.storage.files import write_atomic

log = logging.getLogger(__name__)
LIMIT_S = 180.0
DECIDING = ("torch", "dynamic-network-architectures", "nnunetv2")
"""The libraries that an answer depends on."""


def network_problem(spec: RunSpec) -> str:
    """Why the network of a run's plans cannot be trained, or not begin with its pretrained weights, or a function of the user's not be
    called as it has to be, in words; empty when it can, and when that could not be found out.

    Raises ConfigError where the file of these weights is missing or another one by now, StorageError.
    """
    check_files(spec.own)
    if spec.pretrained_weights is not None:
        check_unchanged(spec.pretrained_weights)
    found = _verdict(_trial(spec))
    if found is None or found.unknown:
        why = found.unknown if found else "the checking process ended without an answer"
        log.warning("whether the network of %s takes its patch is not known before a worker starts: %s", spec.run_key, why[:500])
    if found is None or not found.refusal:
        return found.unfit_weights if found else ""
    if found.is_own:
        return found.refusal
    where = f"configuration {spec.configuration!r} of {spec.preprocessed_folder / spec.plans}.json"
    return f"plans: {where}: {found.refusal.removeprefix('plans: ')[:2000]}"


def try_ahead(specs: Sequence[RunSpec]) -> threading.Thread:
    """Try the network of each plan that these runs begin with, in the background, and keep the answers. What goes wrong is left to each
    run's own check."""

    def try_each() -> None:
        asked: set[object] = set()
        for spec in specs:
            sizes = spec.batch_size, spec.patch_size, spec.workers.most
            question = spec.preprocessed_folder, spec.plans, spec.configuration, *sizes
            with contextlib.suppress(NnfleetError, OSError):
                if question in asked or newest_committed(RunFolder(spec.run_folder)):
                    continue
                trial = _trial(spec)
                if not trial.depends_on_files:
                    asked.add(question)
                    _verdict(trial)

    thread = threading.Thread(target=try_each, name="networks", daemon=True)
    thread.start()
    return thread


def _trial(spec: RunSpec) -> NetworkTrial:
    """What is to be tried of a run."""
    configuration = plans_of(spec).configuration(spec.configuration)
    dataset_json = load_dataset_json(spec.preprocessed_folder)
    labels = labels_of(dataset_json)
    return NetworkTrial(
        configuration=configuration,
        channels=network_channels(configuration, dataset_json, labels),
        heads=labels.num_heads,
        batch=min(rank_sizes(int(configuration["batch_size"]), spec.workers.most)),
        pretrained_weights=spec.pretrained_weights.file if spec.pretrained_weights else None,
        run=spec if spec.own.named else None,
    )


def _verdict(trial: NetworkTrial) -> NetworkVerdict | None:
    """The answer that is kept, else that of a process, which is kept if it is that all is well; None when there is none."""
    if trial.depends_on_files:
        return _asked(trial)
    with _held(_kept_file(trial)) as kept:
        if kept is None:
            return _asked(trial)
        with contextlib.suppress(OSError, ValueError):
            return NetworkVerdict.model_validate_json(kept.read_bytes())
        found = _asked(trial)
        if found == NetworkVerdict():  # a refusal may be the machine's: for want of memory, say
            with contextlib.suppress(NnfleetError, OSError):
                write_atomic(kept, found.model_dump_json().encode())
        return found


def _kept_file(trial: NetworkTrial) -> Path:
    """Where that all is well is kept: another file for other plans, libraries, or code of ours."""
    package = Path(trainers.__path__[0])
    ours = [*sorted((package / "network").glob("*.py")), package / "contract" / "architecture.py"]
    parts = [trial.model_dump_json(), *map(version, DECIDING), *(path.read_text() for path in ours)]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache, "nnfleet-networks", f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}.json")


@contextlib.contextmanager
def _held(kept: Path) -> Iterator[Path | None]:
    """Only one process at a time finds an answer. None where that file system takes no file or no lock."""
    lock = FileLock(f"{kept}.lock")
    try:
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock.acquire(timeout=LIMIT_S)
    except (OSError, NotImplementedError, Timeout):
        yield None
        return
    try:
        yield kept
    finally:
        lock.release()


def _asked(trial: NetworkTrial) -> NetworkVerdict | None:
    """What the process answers; None when it does not."""
    code = Path(trainers.__path__[0]).parent
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "trainers.network.trial"],
            input=trial.model_dump_json(),
            cwd=code,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=True,
        )
        return NetworkVerdict.model_validate_json(done.stdout.splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError) as err:
        log.warning("%s: %s", type(err).__name__, str(getattr(err, "stderr", "") or err)[-500:])
        return None
