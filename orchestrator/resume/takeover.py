"""Taking possession of a run before anything of it starts: its folder, nnU-Net's files beside it, its MLflow run."""

import contextlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.dataset.model_folder import belongs_to_another, model_folder_problems, other_plans
from orchestrator.dataset.problems import Problems
from orchestrator.follow.next_step import only_delivers
from orchestrator.publishing.reconcile import is_alive
from orchestrator.run.aside import move_aside
from orchestrator.run.crossvals import drop_crossval
from orchestrator.run.job_record import JobRecord, living_job
from orchestrator.run.outcome import Outcome, is_newest, read_outcome, write_outcome
from orchestrator.run.progress import Action, progress_of
from orchestrator.run.write_access import explained
from orchestrator.tracking.binding import TrackingServer, noted_run_id
from orchestrator.tracking.end_state import final_state
from trainers.contract.commits import commit_files, newest_committed
from trainers.contract.fencing import TAKEOVER, acquire_token, newest_token
from trainers.contract.plans import plans_of
from trainers.contract.requests import end_pause, read_stop_request, withdraw_place
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.contract.states import RunState
from trainers.errors import ConfigError, TrackingError
from trainers.storage.exclusive import create_exclusive, release_claim
from trainers.storage.faults import is_there
from trainers.storage.files import write_atomic

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Replaced:
    """A run whose folder is another's now: it had kept nothing, or was moved aside."""

    run_key: str
    mlflow_run_id: str
    end: RunState
    """How it had ended; STOPPED when it died unnoticed."""


@dataclass(frozen=True)
class Acquired:
    """A run that was taken possession of."""

    spec: RunSpec
    """The specification that holds."""
    action: Action
    """What its submission does with it."""
    stop_mark: tuple[bytes, int] | None = None
    """Which stop request its living job has from before; whoever opens the campaign withdraws that one, which the job may have seen."""
    validates_again: bool = False
    """Its living job's validation is not the one that is asked for: another one follows it."""
    replaced: Replaced | None = None

    @property
    def was_stopping(self) -> bool:
        """Its living job had been asked to stop."""
        return self.stop_mark is not None


def refuse(spec: RunSpec, jobs: Sequence[JobRecord], at_work: Collection[str] = (), leaving: Collection[Path] = ()) -> None:
    """Raise ConfigError or DataError for a run that cannot be taken possession of. Changes nothing.

    `at_work`: keys of the runs that other campaigns have not brought to their end. `leaving`: run folders that are to be moved aside.
    """
    _refuse_second_folder(spec, living_job(spec, jobs))
    living = {job.run_key for job in jobs if job.is_live and job.kind in ("train", "validate")}
    with explained(spec):
        _refuse_other_comparison(spec, {*at_work, *living})
        plans = plans_of(spec)
        problems = Problems()
        problems.add(
            *model_folder_problems(spec, plans, {*at_work, *living}, lambda fold, run: is_alive(fold, run, jobs, time.time()), leaving)
        )
        problems.raise_if_any()


def _refuse_other_comparison(spec: RunSpec, at_work: Collection[str]) -> None:
    """A run at work keeps what it is compared with, so the others of this submission would be judged without it."""
    folder = RunFolder(spec.run_folder)
    if spec.run_key not in at_work or not is_there(folder.spec_file):
        return
    present = folder.spec()
    if present.run_key == spec.run_key and present.halving != spec.halving:
        raise ConfigError(
            f"halving: {spec.address} is at work, and is compared with other models or runs there, or by other rungs, than this experiment "
            "asks for. Submit the experiment as it was, or wait until its runs have ended, or stop them first; then submit it with this "
            "`halving`."
        )


def make_way(spec: RunSpec) -> Replaced:
    """Move the folder of another run aside, with all that it has kept; `refuse` has let pass that `spec` gets its place. Deletes nothing.

    The fencing tokens go on: what may be left of the old run, unseen, commits and publishes nothing any more, there or here.
    """
    folder = RunFolder(spec.run_folder)
    with explained(spec):
        replaced = _replaced(folder, folder.spec())
        drop_crossval(folder.model_folder, spec.fold)
        token = acquire_token(folder, f"takeover by {spec.run_key}", {"role": TAKEOVER})
        target = move_aside(folder.root, "replaced", time.time())
        log.warning("%s of the run %s is %s now: %s replaces it", folder.root, replaced.run_key, target, spec.run_key)
        acquire_token(folder, f"takeover by {spec.run_key}", {"role": TAKEOVER}, least=token + 1)
    return replaced


def acquire(
    spec: RunSpec,
    jobs: Sequence[JobRecord],
    *,
    only_validate: bool = False,
    made_way: Replaced | None = None,
    campaign: str = "",
    is_at_work: bool = False,
) -> Acquired:
    """Take possession of a run folder that `refuse` let pass; the caller holds the lock under which jobs are submitted.

    The same run key always continues; its other settings (workers, loader, tracking) become those of `spec` unless a job of the run lives,
    those of its validation in any case. A run that is at work (`is_at_work`: another campaign has not brought it to its end) still leaves
    what that one's second stages wait for. The folder of another run that has kept nothing becomes this one's; `made_way`: the run that was
    moved aside for it. Whoever asked for a stop after `campaign` was submitted means that one too: the run stays stopped, and is followed
    to that end. Raises ConfigError when it belongs to another run all the same, DataError when it cannot be written.
    """
    folder, job = RunFolder(spec.run_folder), living_job(spec, jobs)
    with explained(spec):
        before = folder.spec() if is_there(folder.spec_file) else None
        is_new = before is None or before.run_key != spec.run_key
        has_kept = bool(commit_files(folder))
        if before is not None and is_new and has_kept:
            raise belongs_to_another(folder, before, spec)
        _share_model_files(spec, renews=not has_kept)
        replaced = made_way
        if before is not None and is_new:
            acquire_token(folder, f"takeover by {spec.run_key}", {"role": TAKEOVER})  # from here on nothing of the old run is committed
            if commit_files(folder):
                raise belongs_to_another(folder, before, spec)
            replaced = _set_aside(folder, before)
        create_exclusive(folder.spec_file, _content(spec))
        present = folder.spec()
        if present.run_key != spec.run_key:  # claimed at this moment, on another cluster
            raise belongs_to_another(folder, present, spec)
        if job is not None:
            return _joined(present, spec, jobs, only_validate=only_validate, campaign=campaign)
        if is_at_work:
            spec = _with_stages_of(present, spec)
        if present.priority != spec.priority:
            withdraw_place(folder)
        if present != spec:
            write_atomic(folder.spec_file, _content(spec))
        action = Action.VALIDATE if only_validate else progress_of(spec).action
        if action is not Action.NOTHING and _was_stopped_since(folder, campaign):
            action = Action.FOLLOW
        elif action is not Action.NOTHING:
            reset(folder, action)
    return Acquired(spec, action, replaced=replaced)


def _was_stopped_since(folder: RunFolder, campaign: str) -> bool:
    """True where a person asked the run to stop after this campaign, which opens now, was submitted. By the jobs that lived then: clocks
    jump."""
    request = read_stop_request(folder)
    return request is not None and campaign in request.campaigns


def _joined(present: RunSpec, asked: RunSpec, jobs: Sequence[JobRecord], *, only_validate: bool, campaign: str) -> Acquired:
    """Take possession of a run of which a job lives. What is asked of its validation holds from the next validation job on."""
    folder = RunFolder(present.run_folder)
    npz = present.validation.npz or asked.validation.npz  # who asked for probabilities of a run gets them
    validation = asked.validation.model_copy(update={"npz": npz})
    spec = _with_stages_of(present, present.model_copy(update={"validation": validation, "next_stages": asked.next_stages}))
    if spec.validation != present.validation:
        log.warning("%s: its validation was %s and is to be %s", present.run_key, present.validation, spec.validation)
    if spec != present:
        write_atomic(folder.spec_file, _content(spec))
    outcome = read_outcome(folder)
    validating = [job for job in jobs if job.is_live and job.kind == "validate" and job.run_key == spec.run_key]
    has_validated = only_validate and all(only_delivers(job, outcome) for job in validating)
    return Acquired(
        spec,
        Action.FOLLOW,
        stop_mark(folder) if read_stop_request(folder) is not None and not _was_stopped_since(folder, campaign) else None,
        validates_again=bool(validating) and (has_validated or spec != present),
    )


def _with_stages_of(present: RunSpec, asked: RunSpec) -> RunSpec:
    """What is asked of a first stage, with the next stages that it was to leave segmentations for before, and its final weights, which make
    them, validated."""
    stages = tuple(dict.fromkeys((*present.next_stages, *asked.next_stages)))
    checkpoints = asked.validation.checkpoints
    if stages and "final" not in checkpoints:
        log.warning("%s: its final weights are validated too: their segmentations for %s are awaited", asked.run_key, ", ".join(stages))
        checkpoints = (*checkpoints, "final")
    validation = asked.validation.model_copy(update={"checkpoints": checkpoints})
    return asked.model_copy(update={"next_stages": stages, "validation": validation})


def stop_mark(folder: RunFolder) -> tuple[bytes, int] | None:
    """Which stop request lies in the folder: a newer one has another time. None without one. Inodes do not tell: FUSE may renumber them."""
    try:
        return folder.stop_file.read_bytes(), folder.stop_file.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _content(spec: RunSpec) -> bytes:
    return spec.model_dump_json(indent=1).encode()


def _set_aside(folder: RunFolder, present: RunSpec) -> Replaced:
    """Keep the records of a run that has kept nothing under other names, its run.json last, and remove its requests and
    what was expected of it.

    Its fencing tokens stay, and the failures that name them. The caller has acquired a newer token: what may be left of the old run commits
    and publishes nothing any more.
    """
    replaced = _replaced(folder, present)
    log.warning("%s was the folder of %s, which had kept nothing: it is another run's now", folder.root, present.run_key)
    requests = (folder.stop_file, folder.finish_file, folder.queue_file, folder.save_file, folder.accepted_save_file, folder.pause_file)
    for file in (
        *requests,
        folder.expected_file,
        folder.halving_file,
        folder.halving_overruled_file,
        folder.paused_file,
        folder.published_file,
    ):
        file.unlink(missing_ok=True)
    release_claim(folder.spec_file)
    for file in (folder.outcome_file, folder.mlflow_file, folder.spec_file):
        if file.exists():
            os.replace(file, _aside(file, present.run_key))
    return replaced


def _replaced(folder: RunFolder, present: RunSpec) -> Replaced:
    return Replaced(present.run_key, noted_run_id(folder), final_state(read_outcome(folder)) or RunState.STOPPED)


def _aside(file: Path, run_key: str) -> Path:
    """`run.json` of the run KEY as `run.KEY.json`."""
    key = re.sub(r"[^\w.-]", "_", run_key)[:200]
    return file.with_name(f"{file.stem}.{key}{file.suffix}")


def end_replaced(acquired: Acquired, tracker: TrackingServer | None) -> None:
    """End in MLflow the run that had the folder before, if nobody has: no folder leads to it any more. A failure is only logged."""
    old = acquired.replaced
    if tracker is None or old is None:
        return
    try:
        known = tracker.known_run(old.run_key)
        if known is not None and known.run_id == old.mlflow_run_id and not known.has_ended:
            tracker.set_state(known.run_id, old.end)
            tracker.set_tags(known.run_id, {"nnfleet.reason": f"its folder belongs to the run {acquired.spec.run_key} now."})
    except TrackingError as err:
        log.warning("%s, whose folder is another run's now, was not ended in MLflow: %s", old.run_key, err)


def _refuse_second_folder(spec: RunSpec, job: JobRecord | None) -> None:
    """The same run in two results folders at once would write one MLflow run twice."""
    if job is not None and job.run_folder != str(spec.run_folder):
        raise ConfigError(
            f"results: {spec.address} is running in {job.run_folder} ({job.submission_id}), not in {spec.run_folder}. "
            "Wait for its end or stop it, or name the same nnUNet_results; to train the same once more, write `replicate: NAME` into the "
            "experiment file."
        )


def reset(folder: RunFolder, action: Action) -> None:
    """Forget how the run ended before: it was submitted again."""
    folder.stop_file.unlink(missing_ok=True)
    end_pause(folder)
    newest = newest_committed(folder)
    if newest is None or newest.early_end is None:
        folder.finish_file.unlink(missing_ok=True)  # it has had no effect
    if action is Action.TRAIN:
        folder.outcome_file.unlink(missing_ok=True)
        return
    before = read_outcome(folder)
    is_owned = before is not None and is_newest(folder, before.fencing_token)
    if before is not None and is_owned and before.state == "TRAINED":
        return
    fencing_token = before.fencing_token if before is not None and is_owned else newest_token(folder)
    write_outcome(folder, Outcome(job="training", state="TRAINED", fencing_token=fencing_token, message="trained before; validated again"))


def _share_model_files(spec: RunSpec, *, renews: bool) -> None:
    """nnU-Net's files of a model folder, shared by its folds: made once.

    `renews`: those of other plans are replaced; `refuse` has made sure that no fold has kept anything by them.
    """
    is_outdated = renews and bool(other_plans(spec, plans_of(spec)))
    for name, source in (("plans", spec.plans), ("dataset", "dataset"), ("dataset_fingerprint", "dataset_fingerprint")):
        file, target = spec.preprocessed_folder / f"{source}.json", spec.model_folder / f"{name}.json"
        if name == "dataset_fingerprint" and not file.is_file():
            continue
        content = sized_plans(spec) if name == "plans" else None
        content = file.read_bytes() if content is None else content
        if is_outdated:
            write_atomic(target, content)
        elif target.exists() or not _is_created(target, content):
            continue
        with contextlib.suppress(PermissionError):  # vfat and many an SMB share keep no permissions
            shutil.copymode(file, target)


def sized_plans(spec: RunSpec) -> bytes | None:
    """The plans with the batch size and patch size of a run, for its model folder: nnU-Net predicts by them. None: as they are."""
    if spec.batch_size is None and spec.patch_size is None:
        return None
    return json.dumps(plans_of(spec).content, indent=4, sort_keys=False).encode()


def _is_created(target: Path, content: bytes) -> bool:
    """As `create_exclusive`, of a file that may be deleted by hand."""
    is_created = create_exclusive(target, content)
    release_claim(target)
    return is_created
