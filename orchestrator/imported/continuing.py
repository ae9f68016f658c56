"""Makes a training that nnU-Net began a run of ours that `nnfleet resume` goes on with, beside nnU-Net's folder, which stays as it is."""

import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from orchestrator.errors import ConfigError, StorageError
from orchestrator.imported.first_stage import require_all, warn_of_younger
from orchestrator.imported.fold_data import CONTINUED, read_fold_data, spec_of
from orchestrator.imported.half_done import HalfDone, read_half_done
from orchestrator.imported.importing import ImportedFold, each_fold
from orchestrator.queue.file_lock import locked
from orchestrator.run.activity import newest_stamp, owner_of
from orchestrator.run.aside import move_aside
from orchestrator.run.heartbeat import FRESH_S
from trainers.contract.fencing import TAKEOVER, acquire_token
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import LoaderSpec, RunSpec, WorkerSpec
from trainers.storage.files import expanded, write_atomic

log = logging.getLogger(__name__)


def continue_folder(
    folder: Path,
    preprocessed: Path,
    results: Path | None = None,
    tracking_uri: str = "",
    workers: Mapping[str, int] | None = None,
) -> Iterator[ImportedFold]:
    """Make runs of every half-done fold of a model folder of nnU-Net's, or the one fold that `folder` is; an error of one stops no other.

    `results`: the results folder of the runs; None: the one that nnU-Net's folder lies in. `workers`: with what it trains from here on.
    The rest as in `import_folder`. Raises ConfigError where no fold is meant.
    """
    return each_fold(folder, lambda fold: _continued(fold, preprocessed, results, tracking_uri, workers or {}))


def _continued(source: RunFolder, preprocessed: Path, results: Path | None, tracking_uri: str, workers: Mapping[str, int]) -> ImportedFold:
    if source.spec_file.is_file():
        raise ConfigError(f"import: {source.root} is the folder of the run {source.spec().run_key}. `nnfleet resume` continues ours.")
    begun = read_half_done(source)
    target = _target(begun, results)
    data = read_fold_data(begun.name, source.model_folder, preprocessed, target.model_folder.parent)
    require_all(data.first_stage)
    spec = _with_workers(spec_of(data, target, begun.schedule, tracking_uri, continued=begun.continued), workers)
    is_there = _is_there(target, spec)
    if not is_there:
        warn_of_younger(data.first_stage, begun.history)
        try:
            is_there = not _made(begun, target, spec)
        except (OSError, StorageError) as err:
            raise ConfigError(f"import: {target.root} cannot be written: {err}. Name a results folder of yours: --results FOLDER.") from err
    if is_there:
        _name_next_stages(target, spec.next_stages)
    return ImportedFold(
        folder=source.root,
        run_key=spec.run_key,
        address=spec.address,
        run_folder=target.root,
        note=f"{'already imported' if is_there else 'imported'}. {begun.continued.text} Go on: nnfleet resume {spec.run_key}",
    )


def _target(begun: HalfDone, results: Path | None) -> RunFolder:
    """Always a model folder of its own: in nnU-Net's the run would replace checkpoint_latest.pth and checkpoint_best.pth."""
    source = begun.folder
    place = source.model_folder.parent.parent if results is None else expanded(results).absolute()
    return RunFolder(place / begun.name.dataset / f"{source.model_folder.name}__{CONTINUED}" / source.root.name)


def _with_workers(spec: RunSpec, workers: Mapping[str, int]) -> RunSpec:
    """With the loaders that an experiment has which names none."""
    chosen = WorkerSpec.model_validate(workers)
    return spec.model_copy(update={"workers": chosen, "loader": LoaderSpec().within(chosen.cpus)})


def _is_there(target: RunFolder, spec: RunSpec) -> bool:
    """True when the folder holds this very run. Raises ConfigError when it belongs to another one."""
    if not target.spec_file.is_file():
        return False
    present = target.spec()
    if present.run_key != spec.run_key:
        raise ConfigError(
            f"import: {target.root} belongs to the run {present.run_key}, which began with another checkpoint or other data than "
            f"{spec.run_key}. Remove that one (nnfleet rm {present.run_key}), or name another folder: --results."
        )
    return True


def _name_next_stages(target: RunFolder, names: tuple[str, ...]) -> None:
    """Let a run that was imported before it could leave its segmentations for a next stage do so from its next validation on."""
    present = target.spec()
    if not names or present.next_stages:
        return
    if owner_of(target) is not None and time.time() - newest_stamp(target) < FRESH_S:
        log.warning("%s is at work, and names no next stage (%s) yet: import it again once it has ended", present.run_key, ", ".join(names))
        return
    write_atomic(target.spec_file, present.model_copy(update={"next_stages": names}).model_dump_json(indent=1).encode())
    log.info("%s leaves its segmentations for %s: nnfleet resume %s", present.run_key, ", ".join(names), present.run_key)


def _made(begun: HalfDone, target: RunFolder, spec: RunSpec) -> bool:
    """Make the run; False where another import has made it meanwhile. Raises ClusterError while another one is at work on it."""
    lock = target.model_folder / f".nnfleet_import_{target.root.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock, f"import: another import is at work on {target.root}", 0):
        if is_new := not _is_there(target, spec):
            _write(begun, target, spec)
        lock.unlink(missing_ok=True)  # whoever comes next finds the run, whichever file it locks
    return is_new


def _write(begun: HalfDone, target: RunFolder, spec: RunSpec) -> None:
    """The first state and all that it needs. run.json comes last, as it vouches for the rest: before, the folder is no run."""
    from trainers.training.adopt import adopt  # torch, which only this needs

    if target.root.is_dir():  # what was killed before it had a run.json; never overwritten, for it may be something else
        log.warning("%s has no run.json: it is kept as %s", target.root, move_aside(target.root, "without-run", time.time()).name)
    token = acquire_token(target, f"import of {begun.folder.root}", {"role": TAKEOVER})
    log.info("%s: %s", spec.run_key, begun.continued.text)
    adopt(spec, target, token, begun.history, begun.latest, begun.best)
    write_atomic(target.spec_file, spec.model_dump_json(indent=1).encode())
