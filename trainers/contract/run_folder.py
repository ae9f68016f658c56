"""The run folder: nnU-Net's `fold_k` with one sub-folder of ours. The only class that knows the paths of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainers.contract.run_spec import CheckpointName, RunSpec, WeightsName, is_checkpoint
from trainers.errors import ConfigError, DataError, StorageError
from trainers.storage.faults import check_dataset_is_there
from trainers.storage.files import read_json

CROSSVAL_PREFIX = "crossval_results_folds_"


def crossval_name(folds: Sequence[str]) -> str:
    """nnU-Net's name for the cross-validation over these folds, a folder in their model folder: `crossval_results_folds_0_1`."""
    return f"{CROSSVAL_PREFIX}{'_'.join(folds)}"


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run below `root` = <nnUNet_results>/<Dataset>/<TRAINER>__<PLANS>__<CONFIGURATION>/fold_<k>."""

    root: Path

    @property
    def model_folder(self) -> Path:
        """nnU-Net's model folder: plans.json, dataset.json and the folds."""
        return self.root.parent

    @property
    def own(self) -> Path:
        """Everything in the fold folder that nnU-Net does not know."""
        return self.root / "nnfleet"

    @property
    def spec_file(self) -> Path:
        """The RunSpec; whoever creates it first has claimed the folder for its run key."""
        return self.own / "run.json"

    @property
    def tokens(self) -> Path:
        """One exclusively created file per fencing token: 0001.json, 0002.json, ..."""
        return self.own / "attempts"

    def token_file(self, fencing_token: int) -> Path:
        """Who acquired a fencing token; exclusively created."""
        return self.tokens / f"{fencing_token:04d}.json"

    @property
    def state(self) -> Path:
        """Committed states: e<epochs done>_a<fencing token>.pth and .json; the .json is the commit."""
        return self.own / "state"

    @property
    def best(self) -> Path:
        """Best checkpoints, and those of candidates, durable here before the epoch that made them is committed."""
        return self.own / "best"

    @property
    def progress_file(self) -> Path:
        """Heartbeat of rank 0."""
        return self.own / "progress.json"

    @property
    def previous_stage_file(self) -> Path:
        """Of a second stage of a cascade: digests of the segmentations that its training began with."""
        return self.own / "previous_stage.json"

    @property
    def validating_file(self) -> Path:
        """How far the full validation is."""
        return self.own / "validating.json"

    @property
    def stop_file(self) -> Path:
        """Present when somebody asked this run to stop."""
        return self.own / "stop.json"

    @property
    def pause_file(self) -> Path:
        """Present when a campaign asked the training of this run to pause at a rung of successive halving, until it is continued."""
        return self.own / "pause.json"

    @property
    def paused_file(self) -> Path:
        """The last pause that is over: a run is paused once at a rung."""
        return self.own / "paused.json"

    @property
    def finish_file(self) -> Path:
        """Present when somebody asked this run to end before its schedule, as a trained run."""
        return self.own / "finish.json"

    @property
    def expected_file(self) -> Path:
        """How long an epoch was expected to take when the run began, if anything was known of it."""
        return self.own / "expected.json"

    @property
    def halving_file(self) -> Path:
        """What successive halving decided of the models that the run is compared with; present once a rung was decided."""
        return self.own / "halving.json"

    @property
    def halving_overruled_file(self) -> Path:
        """Present when a person continued this run after successive halving had stopped it; only that writes it."""
        return self.own / "halving_overruled.json"

    @property
    def queue_file(self) -> Path:
        """Present when somebody asked for another place in the queue."""
        return self.own / "queue.json"

    @property
    def mlflow_file(self) -> Path:
        """Which MLflow run this is."""
        return self.own / "mlflow.json"

    @property
    def published_file(self) -> Path:
        """What the publisher knows to have delivered."""
        return self.own / "published.json"

    @property
    def outcome_file(self) -> Path:
        """How the newest job of this run ended."""
        return self.own / "outcome.json"

    @property
    def undelivered(self) -> Path:
        """What MLflow does not take at present, and why: a file per channel of the publisher."""
        return self.own / "undelivered"

    @property
    def uploading(self) -> Path:
        """Second names of checkpoints that are on their way to MLflow."""
        return self.own / "uploading"

    @property
    def failures(self) -> Path:
        """One file per failed start of the workers, by its fencing token: what the retry budgets are charged with."""
        return self.own / "failures"

    @property
    def job_logs(self) -> Path:
        """What its jobs printed, a bounded file each, kept once the job has ended."""
        return self.own / "logs"

    def job_log(self, submission_id: str) -> Path:
        """The kept log of one job."""
        return self.job_logs / f"{submission_id}.txt"

    @property
    def save_file(self) -> Path:
        """Present when somebody asked for a state within the epoch in flight."""
        return self.own / "save.json"

    @property
    def accepted_save_file(self) -> Path:
        """What `save_file` becomes while the state that answers it is written; removed once that is committed."""
        return self.own / "save_accepted.json"

    @property
    def storage_file(self) -> Path:
        """What the newest job waits for while its disk takes nothing."""
        return self.own / "storage.json"

    def checkpoint(self, name: CheckpointName) -> Path:
        """checkpoint_best.pth or checkpoint_final.pth, where nnU-Net looks for it."""
        return self.root / f"checkpoint_{name}.pth"

    def validation(self, name: WeightsName) -> Path:
        """Predictions and summary.json: nnU-Net's `validation` for the final checkpoint, `validation_best` for the best,
        `validation_candidates/<name>` for a candidate."""
        if name == "final":
            return self.root / "validation"
        return self.root / "validation_best" if name == "best" else self.root / "validation_candidates" / name

    def probabilities(self, name: WeightsName, case_id: str) -> tuple[Path, Path]:
        """nnU-Net's files of a case's probabilities: the array and the geometry that goes with it."""
        return self.validation(name) / f"{case_id}.npz", self.validation(name) / f"{case_id}.pkl"

    def has_probabilities_due(self, name: WeightsName, spec: RunSpec, case_id: str) -> bool:
        """True unless the run is to keep the probabilities of a case and they are not there. Those of candidates are not kept."""
        return not spec.validation.npz or not is_checkpoint(name) or all(file.is_file() for file in self.probabilities(name, case_id))

    def summary(self, name: WeightsName) -> Path:
        """nnU-Net's summary.json of a full validation."""
        return self.validation(name) / "summary.json"

    def shared_summary(self, name: CheckpointName) -> Path:
        """The same with pseudonyms in place of case ids, where the run has them."""
        return self.own / "pseudonyms" / name / "summary.json"

    def extended_summary(self, name: WeightsName) -> Path:
        """What summary.json has no place for: distances, numbers of cases, per-case rows."""
        return self.own / f"validation_{name}.json"

    @property
    def candidates_file(self) -> Path:
        """What the full validation says of the candidates, beside best and final."""
        return self.own / "candidates.json"

    def cases(self, name: WeightsName) -> Path:
        """Per-case results of the full validation, one JSON file each."""
        return self.own / "cases" / name

    def spec(self) -> RunSpec:
        """The run that this folder belongs to. Raises DataError when there is none."""
        content = read_json(self.spec_file, "run folder")
        try:
            return RunSpec.model_validate(content)
        except ValueError as err:
            raise DataError(f"run folder: {self.spec_file} is not a run specification of this version: {err}") from err

    def check_is_own(self, spec: RunSpec) -> None:
        """Raise DataError when this is not the folder that `spec`, which was read here, was written for."""
        if spec.run_folder.resolve() != self.root.resolve():
            raise DataError(
                f"results: {self.spec_file} is of a run in {spec.run_folder}: the folder was moved or copied. "
                "Bring it back, or submit its experiment with this nnUNet_results."
            )

    def spec_of(self, run_key: str, verb: str) -> RunSpec:
        """As `spec`, of the run that somebody means by this folder; with an empty key whatever run it is of.

        Raises ConfigError, which begins with `verb`, when the folder belongs to another run by now.
        """
        spec = self.spec()
        if run_key not in ("", spec.run_key):
            raise ConfigError(
                f"{verb}: {self.root} belongs to the run {spec.run_key} now, not to {run_key}; nothing was done. "
                f"Bring the folder of {run_key} back, or name the run {spec.run_key} if that one is meant."
            )
        return spec

    def living_spec(self) -> RunSpec:
        """As `spec`, for a job of the run on whatever node; its driver has found run and dataset.

        Raises StorageError where one of them is not to be seen: its share is not mounted there, or away. Raises DataError where one is
        refused to this user or broken.
        """
        try:
            spec = self.spec()
        except DataError as err:
            if isinstance(err.__cause__, FileNotFoundError):
                raise StorageError(f"storage: {self.spec_file} is not there on this node. Mount the shared folder.") from err
            raise
        check_dataset_is_there(spec.preprocessed_folder)
        return spec
