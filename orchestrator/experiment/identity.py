"""What names a planned run: its key, the digest of its data, and the digests of its cases."""

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.dataset.case_readings import CaseReadings
from orchestrator.dataset.digest import data_digest, run_key
from orchestrator.errors import DataError
from trainers.contract.cascade import model_folder_name
from trainers.contract.commits import commit_files
from trainers.contract.names import Fold
from trainers.contract.plans import Plans, Split
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import NOTHING_OWN, OwnParts, PretrainedWeights, PreviousStage, Schedule
from trainers.storage.faults import is_there


@dataclass(frozen=True)
class Identity:
    """Fields of the run specification."""

    run_key: str
    data_digest: str
    case_digests: dict[str, tuple[str, str, str]] | None = None


@dataclass(frozen=True)
class Planned:
    """A run of an experiment, but for its cases' contents."""

    dataset: str
    dataset_json: dict[str, object]
    plans: Plans
    configuration: str
    trainer: str
    fold: Fold
    seed: int
    schedule: Schedule
    split: Split
    replicate: str = ""
    variant: str = ""
    pretrained: PretrainedWeights | None = None
    own: OwnParts = NOTHING_OWN
    """Functions of the user's in the place of nnU-Net's."""
    candidates: int = 0
    """Of how many epochs the weights are kept, beside the best and the last."""
    previous_stage: PreviousStage | None = None
    """Of a second stage of a cascade: which segmentations of the first it sees."""

    @property
    def model_folder_name(self) -> str:
        """nnU-Net's, with what it does not know behind it."""
        return model_folder_name(self.trainer, self.plans.name, self.configuration, self.variant, self.seed)

    def identity(self, readings: CaseReadings, *, is_former: bool = False) -> Identity:
        """Its key, digest and digests of cases; `is_former`: as they were before run keys covered the preprocessed cases."""
        contents = None if is_former else readings.content_sha256
        digest = data_digest(self.plans, self.configuration, self.dataset_json, self.split, readings.label_sha256, contents)
        key = run_key(
            dataset=self.dataset,
            configuration=self.configuration,
            trainer=self.trainer,
            plans=self.plans.name,
            fold=self.fold,
            seed=self.seed,
            schedule=self.schedule,
            data_digest=digest,
            replicate=self.replicate,
            variant=self.variant,
            pretrained_sha256=self.pretrained.sha256 if self.pretrained else "",
            own=self.own,
            candidates=self.candidates,
            previous_stage=self.previous_stage,
        )
        return Identity(key, digest, None if is_former else readings.digests({*self.split.train, *self.split.val}))


def identity_in(folder: RunFolder, planned: Planned, read: Callable[[bool], CaseReadings], *, replaces: bool = False) -> Identity:
    """The identity of a run that is to have `folder`: the former one if a run from before run keys covered the preprocessed cases has it.

    Of such a run nobody knows which images it began with, so the same labels and plans make the same run. `read` gives the cases' label
    files, or with True all of them. `replaces`: another run that has kept something in the folder will not be in it any more.
    """
    former = planned.identity(read(False), is_former=True)
    return former if _holds(folder, former, replaces=replaces) else planned.identity(read(True))


def _holds(folder: RunFolder, former: Identity, *, replaces: bool) -> bool:
    """A former run of the same data, which may be wanted for more epochs now, has kept something here or is the very run."""
    if not is_there(folder.spec_file):
        return False
    try:
        present = folder.spec()
    except DataError:
        return False  # reported with the other problems of the folder
    is_same_data = present.case_digests is None and present.data_digest == former.data_digest
    return is_same_data and (present.run_key == former.run_key or (not replaces and bool(commit_files(folder))))
