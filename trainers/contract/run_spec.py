"""The specification of one run: everything that its training and validation jobs need, as one frozen JSON document."""

from pathlib import Path
from typing import Annotated, Any, Literal, NewType, TypeGuard, get_args

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic.json_schema import SkipJsonSchema

from trainers.contract.names import Fold
from trainers.contract.trainer_table import TRAINERS, Recipe, TrainerSettings

LoaderPlacement = Literal["local", "cluster"]
CheckpointName = Literal["best", "final"]
"""What nnU-Net has a name for."""
CandidateName = NewType("CandidateName", str)
"""`candidate_<epoch>`: the weights of one of the best epochs by EMA pseudo-Dice, see `ValidationSpec.candidates`."""
WeightsName = CheckpointName | Annotated[CandidateName, Field(pattern=r"^candidate_[0-9]+$")]
"""What a full validation may be of."""


def is_checkpoint(name: WeightsName) -> TypeGuard[CheckpointName]:
    """True for the best and the final weights, False for those of a candidate."""
    return name in get_args(CheckpointName)


def candidate_name(epoch: int) -> CandidateName:
    """The name of a candidate; `epoch` counts from 0."""
    return CandidateName(f"candidate_{epoch}")


class Frozen(BaseModel):
    """A value: checked on construction, never changed, no unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,  # docstrings reach the JSON schema
        populate_by_name=True,
        serialize_by_alias=True,  # files keep the names that they were first written with
        ser_json_inf_nan="constants",  # NaN stays NaN in JSON, as nnU-Net writes it; the default would make it null
    )


OwnPart = Literal["network", "loss", "recipe", "trainer"]
"""What of a training code of the user's may replace: a function, or of `trainer` a class."""
NOT_EXACT = "Not exact: trained by the trainer's own loop; a restart goes on from the last epoch, with other samples than without it."
"""Of a run whose trainer is a class of the user's."""


class OwnCode(Frozen):
    """A function or a class of the user's. Its files travel with the jobs; run.json only names them, so that nothing that lies there is
    executed."""

    name: str = Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")
    """`module:function`."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the names and contents of its files."""

    @property
    def text(self) -> str:
        """For users: `my_loss:focal (SHA-256 0123456789ab...)`."""
        return f"{self.name} (SHA-256 {self.sha256[:12]}...)"


class OwnParts(Frozen):
    """Functions of the user's in the place of nnU-Net's; see docs/trainers.md."""

    network: OwnCode | None = Field(None, exclude_if=lambda code: code is None)
    loss: OwnCode | None = Field(None, exclude_if=lambda code: code is None)
    recipe: OwnCode | None = Field(None, exclude_if=lambda code: code is None)
    trainer: OwnCode | None = Field(None, exclude_if=lambda code: code is None)
    """A subclass of nnU-Net's trainer, which stands alone and trains by its own loop."""

    @property
    def named(self) -> dict[OwnPart, OwnCode]:
        """Those that there are."""
        every: dict[OwnPart, OwnCode | None] = {
            "network": self.network,
            "loss": self.loss,
            "recipe": self.recipe,
            "trainer": self.trainer,
        }
        return {part: code for part, code in every.items() if code is not None}

    @property
    def text(self) -> str:
        """For users: `trainer my_trainer:Mine (SHA-256 0123456789ab...)`; empty where there are none."""
        return ", ".join(f"{part} {code.text}" for part, code in self.named.items())


NOTHING_OWN = OwnParts()


class Schedule(Frozen):
    """How long and how fast a run trains; the defaults are nnU-Net's."""

    epochs: int = Field(1000, ge=1)
    """Epochs; nnU-Net: 1000."""
    train_iterations: int = Field(250, ge=1)
    """Optimizer steps per epoch, each on one global batch; nnU-Net: 250."""
    val_iterations: int = Field(50, ge=1)
    """Global batches of validation patches per epoch, from which the pseudo-Dice is counted; nnU-Net: 50."""
    initial_lr: float = Field(1e-2, gt=0)
    """Learning rate of epoch 0, lowered by (1 - epoch/epochs)^0.9; nnU-Net: 0.01."""
    weight_decay: float = Field(3e-5, ge=0)
    """L2 penalty of SGD on all parameters; nnU-Net: 3e-5."""
    foreground_oversampling: float = Field(0.33, ge=0, le=1)
    """Share of a global batch's samples that are centred on foreground, by position; nnU-Net: 0.33."""
    ema_decay: float = Field(0.9, ge=0, lt=1)
    """Weight of the past in the smoothed pseudo-Dice; nnU-Net: 0.9."""


OWN_TRAINER_SCHEDULE = ("epochs", "train_iterations", "val_iterations")
"""Fields of the schedule that a trainer of the user's takes; the others it sets itself."""


class WorkerSpec(Frozen):
    """The gang of DDP workers of one run: `count` of them, or elastically from `min` to `max`."""

    count: int = Field(1, ge=1)
    """Number of workers of a fixed gang; the plan's batch is split over them."""
    min: int | None = Field(None, ge=1)
    """Fewest workers of an elastic gang, instead of `count`: training starts and goes on with so few when nodes leave."""
    max: int | None = Field(None, ge=1)
    """Most workers of an elastic gang: it grows to so many when nodes are free, at most to the plan's batch size."""
    gpus: int = Field(1, ge=0, le=1)
    """GPUs per worker; 0 trains on CPUs."""
    accelerator_type: str = Field("", pattern=r"^([A-Za-z0-9][\w.+-]*)?$", exclude_if=lambda name: not name)
    """Kind of the GPUs by Ray's name, such as `A100` or `H100`: training and validation take no others. Empty: any. Changes no sample."""
    cpus: int = Field(8, ge=1)
    """CPU cores per worker: step threads and those loader actors that run on its node."""
    loader_cpus: SkipJsonSchema[int] = Field(0, ge=0, exclude_if=lambda count: count == 0)
    """CPU cores of a worker's loader actors on whatever nodes. Only `RunSpec.gang` sets it, for `loader: {placement: cluster}`."""

    @model_validator(mode="after")
    def _a_kind_of_gpu(self) -> "WorkerSpec":
        if self.accelerator_type and not self.gpus:
            raise ValueError(f"`accelerator_type: {self.accelerator_type}` beside `gpus: 0`: set `gpus: 1`, or remove it to train on CPUs")
        return self

    @model_validator(mode="after")
    def _fixed_or_elastic(self) -> "WorkerSpec":
        if self.min is None and self.max is None:
            return self
        if self.min is None or self.max is None:
            there, lacking = ("max", "min") if self.min is None else ("min", "max")
            raise ValueError(f"`{there}` without `{lacking}`: name both for an elastic number of workers, or `count` for a fixed one")
        if "count" in self.model_fields_set:
            raise ValueError("`count` beside `min` and `max`: name `count` for a fixed number, or the two for an elastic one")
        if self.min > self.max:
            raise ValueError(f"`min: {self.min}` is more than `max: {self.max}`; exchange them")
        return self

    @model_serializer(mode="wrap")
    def _one_way_only(self, default: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What was chosen and nothing of the other way, so that it loads as the same."""
        unused = {"count"} if self.is_elastic else {"min", "max"}
        return {key: value for key, value in default(self).items() if key not in unused}

    @property
    def on_any_gpu(self) -> "WorkerSpec":
        """The same gang without its kind of GPUs: as versions read it that know no kinds."""
        return self.of_type("")

    def of_type(self, accelerator_type: str) -> "WorkerSpec":
        """The same gang on GPUs of a kind; '': any."""
        return self.model_copy(update={"accelerator_type": accelerator_type})

    @property
    def is_elastic(self) -> bool:
        """True if the number of workers may change while the run trains."""
        return self.min is not None

    @property
    def least(self) -> int:
        """Workers without which the run does not train."""
        return self.count if self.min is None else self.min

    @property
    def most(self) -> int:
        """Workers that the run never exceeds."""
        return self.count if self.max is None else self.max


class LoaderSpec(Frozen):
    """How batches are prepared ahead of the training steps. Never changes a sample."""

    actors: int = Field(6, ge=1)
    """Loader actors per worker."""
    most: int | None = Field(None, ge=1, exclude_if=lambda most: most is None)
    """Loader actors that a worker may come to have while its steps wait for data; null: as many as it begins with."""
    prefetch: int = Field(3, ge=1)
    """Batches per loader actor that are prepared or waiting at any time."""
    placement: LoaderPlacement = Field("local", exclude_if=lambda placement: placement == "local")
    """Where loader actors run: `local` on the worker's node, within `workers.cpus`; `cluster` on any nodes with free CPUs, one for each,
    those without GPUs first. The nodes see the datasets and results by the same paths."""

    def within(self, cpus: int) -> "LoaderSpec":
        """The same with `actors` and `most` chosen from the CPUs of a worker on whose node they run: two are left for the steps to begin
        with, and one once the steps wait for data."""
        most = self.most or max(1, cpus - 1)
        actors = max(1, min(self.actors, cpus - 2, most))
        return self.model_copy(update={"actors": actors, "most": most if most > actors else None})

    @property
    def num_local(self) -> int:
        """Loader actors that take of the worker's own CPUs to begin with."""
        return self.actors if self.placement == "local" else 0


class CheckpointSpec(Frozen):
    """When states are saved beside the end of every epoch. Never changes a result."""

    every_minutes: float | None = Field(None, gt=0)
    """Save within the epoch after so many minutes without a save, and resume from that iteration; null: at the end of epochs only."""


class ValidationSpec(Frozen):
    """The full validation over whole cases after training."""

    checkpoints: tuple[CheckpointName, ...] = ("best", "final")
    """Which checkpoints predict the fold's validation cases; nnU-Net: final."""
    surface_tolerance_mm: float = Field(1.0, gt=0)
    """Tolerance of the normalised surface Dice, in millimetres."""
    lesions: bool = Field(False, exclude_if=lambda on: not on)
    """Count lesions too, the connected components of each class: sensitivity, false positives and lesion-wise Dice of every case."""
    attempts_per_case: int = Field(3, ge=1)
    """How often a case is tried before the validation fails."""
    npz: bool = Field(False, exclude_if=lambda on: not on)
    """Keep the probabilities of every case beside its prediction, in nnU-Net's files <case>.npz and <case>.pkl, which ensembling needs;
    they take many times the space of the predictions. nnU-Net: --npz."""
    candidates: int = Field(0, ge=0, le=10, exclude_if=lambda count: count == 0)
    """Keep the weights of so many epochs of the highest EMA pseudo-Dice, and validate all of them fully beside `checkpoints`: is the best
    epoch by pseudo-Dice the best by Dice? They are chosen on their own validation fold; nnU-Net: none."""


class Notify(Frozen):
    """Messages to people about the ends of runs."""

    to: str = Field("NNFLEET_NOTIFY", pattern=r"^NNFLEET_NOTIFY[A-Z0-9_]*$")
    """Environment variable of the cluster's head that holds the addresses, as apprise writes them (`mailto://...`, `slack://...`,
    `json://...`), separated by blanks. They hold secrets, so they stand in no file."""
    when: tuple[Literal["failed", "succeeded", "ended"], ...] = ("failed", "ended")
    """What is a message: each run that fails, each that succeeds, and the end of all runs of a submission."""


class Halving(Frozen):
    """Successive halving: after so many epochs only the best models of an experiment go on, and the others are stopped."""

    at: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    """The rungs: numbers of epochs, ascending, each below the schedule's `epochs`. A rung is decided once every run that is compared has
    done so many."""
    keep: float = Field(0.5, gt=0, lt=1)
    """Which part of the models goes on after a rung, rounded up (the inverse of the reduction factor)."""
    over: Literal["trainers", "configurations"] = "trainers"
    """`trainers`: trainers and variants compete within each configuration of each plans. `configurations`: all models compete; pseudo-Dice
    of unlike patches is then compared."""

    @model_validator(mode="after")
    def _ascending(self) -> "Halving":
        if list(self.at) != sorted(set(self.at)):
            raise ValueError(f"at: {list(self.at)} does not ascend; name each rung once, the earliest first")
        return self


class HalvingOfRun(Halving):
    """The same for one run, with what it is compared with."""

    comparison: str
    """Digest of the keys of all runs that are compared, and of how."""


class PretrainedWeights(Frozen):
    """A checkpoint whose weights, but for the segmentation layers, a run begins with."""

    file: Path
    """Absolute, the same for the head and all workers."""
    sha256: str
    """Of its bytes when the run was planned; part of the run key."""
    run: str = Field("", exclude_if=lambda run: not run)
    """Key of the run of ours whose final weights these are; empty: a file was named."""


_MADE_BY = "run "


def made_by(run_key: str) -> str:
    """What `PreviousStage.sources` holds of a segmentation that a run of nnfleet makes."""
    return f"{_MADE_BY}{run_key}"


class PreviousStage(Frozen):
    """The first stage of a cascade, whose segmentations a run of the second sees; part of the run key."""

    configuration: str
    sources: dict[str, str]
    """Case id -> which segmentation: `run <run key>` of the first stage's run that makes it or, of one that nnU-Net made, the first digits
    of the SHA-256 of its values."""

    @property
    def run_keys(self) -> tuple[str, ...]:
        """The runs whose segmentations these are."""
        made = (source.removeprefix(_MADE_BY) for source in self.sources.values() if source.startswith(_MADE_BY))
        return tuple(dict.fromkeys(made))


class Imported(Frozen):
    """Where a run comes from that nnU-Net itself trained."""

    folder: Path
    """nnU-Net's folder of the fold, as it lay when the run was imported."""
    versions: dict[str, str] = Field(default_factory=dict)
    """What is known of the software and hardware that trained it, by name."""


class Continued(Frozen):
    """What nnU-Net itself had trained of a run before it went on here."""

    folder: Path
    """nnU-Net's folder of the fold, as it lay then; its files stay as they are."""
    epochs: int = Field(ge=1)
    """Epochs that were done."""
    sha256: str
    """Of the checkpoint that the run goes on from; part of the run key."""
    versions: dict[str, str] = Field(default_factory=dict)
    """What is known of the software and hardware that trained it, by name."""

    @property
    def text(self) -> str:
        """For users, in a sentence: what is exact of such a run and what is not."""
        before = "Epoch 0 was" if self.epochs == 1 else f"Epochs 0 to {self.epochs - 1} were"
        return f"{before} trained by nnU-Net itself; the run is exact from epoch {self.epochs} on."


PRIORITY = 50
"""Priority of a run that nobody gave one."""
TOP_PRIORITY = 100
"""Priority of what goes first; 0 goes last."""
USUAL_PLANS = "nnUNetPlans"
"""The plans that nnU-Net makes unless it is asked for others."""


def model_address(dataset: str, configuration: str, trainer: str, plans: str = USUAL_PLANS, variant: str = "", seed: int = 0) -> str:
    """How users call a model, see `RunSpec.model`; `dataset`: its folder's name, or its number."""
    number = dataset.removeprefix("Dataset").split("_", 1)[0]
    dataset = str(int(number)) if number.isdecimal() and len(number) < 10 else dataset
    differing = ["" if plans == USUAL_PLANS else f"@{plans}", f"+{variant}" if variant else "", f"+seed{seed}" if seed else ""]
    return f"{dataset}/{configuration}/{trainer}{''.join(differing)}"


class RunSpec(Frozen):
    """One training of one dataset x plans x configuration x trainer x fold x seed, with its validation."""

    model_config = ConfigDict(hide_input_in_errors=True)  # a tracking address may hold a password

    run_key: str
    """Readable parts plus a digest of everything that determines the result; names this run everywhere."""
    dataset: str
    """Folder name, e.g. Dataset017_BTCV."""
    preprocessed_folder: Path
    """<nnUNet_preprocessed>/<dataset>, absolute."""
    model_folder: Path
    """<nnUNet_results>/<dataset>/<trainer>__<plans>__<configuration>, absolute, with `__<variant>` and `__seed<S>` behind it where there
    are such; the run folder is fold_<k> in it."""
    plans: str
    configuration: str
    trainer: str
    fold: Fold
    seed: int = Field(0, ge=0, lt=2**63)
    variant: str = ""
    """Name of other settings on the same data; empty: none, and run.json does not mention it."""
    replicate: str = ""
    """Which repetition of the same training this is; empty: the first, whose run.json does not mention it."""
    train_cases: tuple[str, ...]
    """Case ids of the training split, in the order that sampling draws from."""
    val_cases: tuple[str, ...]
    """Case ids of the validation split."""
    patients: dict[str, str] | None = None
    """Validated case -> patient, as the experiment named them; null: it named none, and run.json does not mention it. No part of the run
    key: training does not know patients."""
    pretrained_weights: PretrainedWeights | None = None
    """What the first epoch begins with; null: random weights, and run.json does not mention it."""
    own: OwnParts = Field(NOTHING_OWN, exclude_if=lambda own: not own.named)
    """Functions of the user's in the place of nnU-Net's network, loss or augmentation; part of the run key."""
    batch_size: int | None = Field(None, ge=1, exclude_if=lambda size: size is None)
    """Global batch size in the place of the plans'; null: theirs. Part of the data digest, as the plans are."""
    patch_size: tuple[int, ...] | None = Field(None, exclude_if=lambda size: size is None)
    """Patch size in the place of the plans', voxels; null: theirs. Likewise."""
    data_digest: str
    """SHA-256 over plans, dataset.json, split, label files and, where `case_digests` are known, the values of the preprocessed cases."""
    case_digests: dict[str, tuple[str, str, str]] | None = None
    """Case id -> first digits of the SHA-256 of its label file, of its preprocessed image and of its preprocessed labels, by which a
    changed case is named; null in runs that were planned before run keys covered the preprocessed cases."""
    schedule: Schedule = Schedule()
    deterministic: bool = False
    """Ask for deterministic kernels on GPUs (no compilation, slower): a resumed run ends with the same weights there too. The same bits
    are promised for a fixed number of workers; an elastic run agrees with it up to float rounding."""
    compile: bool = True
    """Compile the network with torch.compile on GPUs, as nnU-Net does; never on CPUs."""
    previous_stage: PreviousStage | None = None
    """Of a second stage of a cascade; null, and not in run.json: it stands alone."""
    next_stages: tuple[str, ...] = Field((), exclude_if=lambda names: not names)
    """Configurations whose cascade begins with this one: the full validation of the final weights leaves its segmentations for them."""
    imported: Imported | None = None
    """Of a run that nnU-Net itself trained; null, and not in run.json: it was trained here."""
    continued: Continued | None = None
    """Of a run that nnU-Net itself began; null, and not in run.json: it began here."""
    workers: WorkerSpec = WorkerSpec()
    loader: LoaderSpec = LoaderSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    validation: ValidationSpec = ValidationSpec()
    priority: int = Field(PRIORITY, ge=0, le=TOP_PRIORITY, exclude_if=lambda priority: priority == PRIORITY)
    """Place in the queue, from 0 (last) to 100 (first)."""
    user: str = Field("", exclude_if=lambda user: not user)
    """Whose share of the cluster it takes; empty: not known."""
    images: bool = False
    """Send pictures of validation cases to MLflow."""
    pseudonyms: bool = False
    """Replace case ids by pseudonyms in what goes to MLflow."""
    halving: HalvingOfRun | None = Field(None, exclude_if=lambda halving: halving is None)
    """Where its model may be stopped for the sake of better ones; null, and not in run.json: nowhere. No part of the run key."""
    notify: Notify | None = Field(None, exclude_if=lambda notify: notify is None)
    """Messages to people; null: none."""
    upload_interval_s: float = Field(60.0, ge=0)
    """Least time between two uploads of a best checkpoint."""
    local_artifacts: bool = Field(False, exclude_if=lambda on: not on)
    """MLflow's artifacts may go to a path, which the head and the server share."""
    tracking_uri: str = ""
    """MLflow tracking server as the driver on the head node reaches it."""
    mlflow_experiment: str = ""
    """MLflow experiment name; by default the dataset's."""

    @model_serializer(mode="wrap")
    def _as_it_was_planned(self, default: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Written as by the version that planned it, which can read it: without what it has not of the fields that came later."""
        found = default(self)
        later = ("previous_stage", "case_digests", "patients", "pretrained_weights", "imported", "continued")
        optional = (("variant", ""), ("replicate", ""), *((name, None) for name in later))
        absent = {name for name, nothing in optional if found.get(name) == nothing}
        return {key: value for key, value in found.items() if key not in absent}

    @property
    def gang(self) -> WorkerSpec:
        """What a training asks of the cluster: its workers, and the CPUs of loader actors that run anywhere, as many as there may be."""
        return gang_of(self.workers, self.loader)

    @property
    def recipe(self) -> Recipe:
        """The augmentation recipe of the trainer."""
        return self.settings.recipe

    @property
    def settings(self) -> TrainerSettings:
        """What the name of the trainer sets; of a class of the user's nothing is known, and nnUNetTrainer's stand there."""
        return TrainerSettings() if self.own.trainer is not None else TRAINERS[self.trainer]

    @property
    def inexactness(self) -> str:
        """For users, in a sentence: why the run is not exact; empty: it is."""
        return NOT_EXACT if self.own.trainer is not None else ""

    @property
    def run_folder(self) -> Path:
        """nnU-Net's folder of this fold, absolute."""
        return self.model_folder / f"fold_{self.fold}"

    @property
    def is_imported_in_place(self) -> bool:
        """True for a run that nnU-Net itself trained in the very folder of the run."""
        return self.imported is not None and self.imported.folder == self.run_folder

    @property
    def model(self) -> str:
        """How users call the model that this run is a fold of: dataset number/configuration/trainer, with `@plans`, `+variant` and
        `+seedN` at the trainer where they are not the usual ones.
        """
        return model_address(self.dataset, self.configuration, self.trainer, self.plans, self.variant, self.seed)

    @property
    def address(self) -> str:
        """How users call this run: its model/fold, such as `17/3d_fullres/nnUNetTrainer/0`."""
        return f"{self.model}/{self.fold}"


def gang_of(workers: WorkerSpec, loader: LoaderSpec) -> WorkerSpec:
    """Workers with the CPUs of their loader actors that run anywhere, as many as there may be."""
    most = loader.most or loader.actors
    return workers.model_copy(update={"loader_cpus": most}) if loader.placement == "cluster" else workers
