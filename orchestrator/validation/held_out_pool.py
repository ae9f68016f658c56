"""The workers of a held-out test set: the pool of the full validation, whose actors hold an ensemble and read raw images."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.validation.case_worker import own_place
from orchestrator.validation.worker_pool import Pool
from trainers.contract.held_out import HeldOut, read_held_out
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import WeightsName
from trainers.contract.storage_notice import StorageNotice
from trainers.errors import CheckpointError, DataError, StorageError
from trainers.storage.faults import retry_storage
from trainers.storage.files import takes_files

if TYPE_CHECKING:
    from trainers.validation.inference import EnsemblePredictor


def loaded_ensemble(held: HeldOut, device: str = "") -> "EnsemblePredictor":
    """The networks of all folds, and those of a cascade's first stage.

    Raises CheckpointError, also for weights that are not those the job started with, DataError, StorageError.
    """
    from trainers.validation.inference import EnsemblePredictor

    workers, first = held.spec.workers, held.first_stage
    where = device or ("cuda" if workers.gpus else "cpu")
    before = None if first is None else EnsemblePredictor(first.spec, first.checkpoint_files, where, workers.cpus)
    predictor = EnsemblePredictor(held.spec, held.checkpoint_files, where, workers.cpus, before)
    if (*(before.digests if before else ()), *predictor.digests) != held.all_weights_sha256:
        raise CheckpointError("checkpoint: a fold's weights changed while the test set was predicted. Run the same command again.")
    return predictor


class HeldOutWorker:
    """The actor: holds the networks of all folds and predicts one case after the other."""

    def __init__(self, root: str, fencing_token: int = 0) -> None:
        self._output = RunFolder(Path(root))
        self._notice = StorageNotice(self._output, fencing_token)
        self._held: HeldOut | None = None
        self._predictor: EnsemblePredictor | None = None

    def load(self, digests: dict[WeightsName, str]) -> str:
        """Load the networks and return the place where they are. Raises as `loaded_ensemble`."""
        [(name, digest)] = digests.items()
        self._held = held = retry_storage(self._read, f"reading {self._output.own}", tell=self._notice.tell)
        if " ".join(held.all_weights_sha256) != digest:
            raise CheckpointError(f"test set: another command uses {self._output.root}. Name another output folder.")
        self._predictor = retry_storage(lambda: loaded_ensemble(held), f"loading the {name} checkpoints", tell=self._notice.tell)
        return own_place()

    def validate(self, case_id: str) -> dict[WeightsName, float]:
        """Predict one case, and score it where it has labels; its files are the result. Returns its mean Dice, for the log.

        Raises DataError for files that are at fault, StorageError.
        """
        assert self._held is not None
        dice = retry_storage(lambda: self._tested(case_id), f"the prediction of case {case_id}", tell=self._notice.tell)
        return {self._held.checkpoint: dice}

    def _read(self) -> HeldOut:
        try:
            return read_held_out(self._output)
        except DataError as err:
            if isinstance(err.__cause__, FileNotFoundError):
                raise StorageError(f"storage: {self._output.own} is not there on this node. Mount the shared folder.") from err
            raise

    def _tested(self, case_id: str) -> float:
        from trainers.validation.held_out_case import done_case

        assert self._predictor is not None
        assert self._held is not None
        with takes_files(self._output.own):
            return done_case(self._predictor, self._held, self._output, case_id).dice_mean


@dataclass
class HeldOutPool(Pool):
    """The pool of a test set; its `folder` is the output folder, and its `spec` lists the test cases."""

    held: HeldOut | None = field(default=None, kw_only=True)

    def actor_class(self) -> type:
        """See `Pool`."""
        return HeldOutWorker

    def load_here(self) -> None:
        """See `Pool`."""
        assert self.held is not None
        loaded_ensemble(self.held, "cpu")

    def check_inputs(self, case_id: str) -> None:
        """See `Pool`."""
        assert self.held is not None
        case = self.held.cases[case_id]
        for file in (*case.images, *([case.labels] if case.labels else [])):
            if not file.is_file():
                raise StorageError(f"storage: {file} is not to be seen here. Mount its folder on all nodes, or copy it back.")
