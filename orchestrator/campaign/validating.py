"""Whether a run can be validated by hand: the same for the campaign and for whoever submits it."""

from collections.abc import Collection, Sequence

from orchestrator.run.job_record import JobRecord
from orchestrator.run.progress import Action, progress_of
from orchestrator.validation.cases import checkpoints_to_validate
from trainers.contract.commits import newest_committed
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.errors import ConfigError


def checked(folder: RunFolder, run_key: str, jobs: Sequence[JobRecord], *, best: bool) -> RunSpec:
    """The specification of a run that can be validated by hand. Raises ConfigError for any other, and where the folder is another run's;
    DataError where it is no run folder."""
    spec = folder.spec_of(run_key, "validate")
    check_not_imported(spec)
    check_trained(folder, spec, jobs, best=best)
    return spec


def check_not_imported(spec: RunSpec) -> None:
    """Raise ConfigError for a run that nnU-Net trained and validated: a validation here would replace nnU-Net's own files."""
    if spec.imported is not None:
        raise ConfigError(
            f"validate: {spec.address} was validated by nnU-Net in {spec.imported.folder}, whose files stay as they are. Run "
            "nnUNetv2_train with --val there (and --npz for probabilities), then `nnfleet import` it again."
        )


def check_not_waiting(spec: RunSpec, at_work: Collection[str]) -> None:
    """Raise ConfigError for a run that waits for workers to train on: what a validation of its best checkpoint leaves would be its end.

    `at_work`: keys of the runs that other campaigns have not brought to their end.
    """
    if spec.run_key in at_work and progress_of(spec).action is Action.TRAIN:
        raise ConfigError(
            f"validate: {spec.address} waits in a campaign to train on; its validation follows by itself. To end it here and validate its "
            f"best checkpoint, stop it first: nnfleet stop {spec.run_key}"
        )


def check_trained(folder: RunFolder, spec: RunSpec, jobs: Sequence[JobRecord], *, best: bool = False) -> None:
    """Raise ConfigError for a run that cannot be validated by hand: it is not trained to its end, or it is being trained.

    `best`: where it is not trained to its end, a best checkpoint is enough.
    """
    reached = newest_committed(folder)
    if any(job.is_live and job.kind == "train" and job.run_key == spec.run_key for job in jobs):
        raise ConfigError(f"validate: {spec.address} is being trained; its validation follows by itself.")
    is_enough = reached is not None and reached.run_key == spec.run_key and (reached.final or (best and reached.best))
    if not is_enough:
        done = f"{reached.epochs_done} of {spec.schedule.epochs} epochs are done" if reached else "no epoch is done"
        advice = ", or validate its best checkpoint (--best)" if reached and reached.best and not best else ""
        raise ConfigError(
            f"validate: {spec.address} in {folder.root} is not trained to its end: {done}. "
            f"Continue it first (`nnfleet resume {spec.address}`){advice}."
        )
    checkpoints_to_validate(folder, spec)
