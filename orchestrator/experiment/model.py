"""The experiment file: one YAML document that describes many runs, as frozen, checked models.

Nothing here looks at data or a cluster; `orchestrator/experiment/plan.py` turns an experiment into runs.
"""

import math
import os
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import ConfigDict, Field, ValidationError, model_validator

from orchestrator.errors import ConfigError
from orchestrator.experiment.fields import (
    LONGEST_REPLICATE,
    SINGULAR,
    DatasetName,
    Folder,
    Folds,
    NameList,
    Patients,
    Printable,
    ReplicateName,
    Seeds,
    TrackingUri,
    Trainers,
    VariantName,
    distinct,
)
from orchestrator.experiment.first_weights import names_run
from orchestrator.experiment.halving import fault_of_halving
from orchestrator.experiment.own_code import Loss, Network, OwnSource, Recipe, with_code_beside
from orchestrator.experiment.own_trainers import fault_beside
from orchestrator.experiment.preprocess import PreprocessField, fault_of_preprocess, with_plans_of_planner
from orchestrator.experiment.sweep import Sweep, Variant, fault_of_names, fields_of, num_variants, swept_fields, variants_of
from orchestrator.experiment.yaml_errors import config_error, parse_yaml, read_yaml, refuse_empty
from orchestrator.run.patients import is_table
from orchestrator.tracking.address import holds_secret
from trainers.contract.architecture import MAX_SIZE
from trainers.contract.names import Fold, fault_of_variant
from trainers.contract.run_spec import (
    PRIORITY,
    TOP_PRIORITY,
    CheckpointSpec,
    Frozen,
    Halving,
    LoaderSpec,
    Notify,
    OwnPart,
    OwnParts,
    Schedule,
    ValidationSpec,
    WorkerSpec,
)
from trainers.contract.trainer_table import TRAINERS
from trainers.storage.files import expanded

NAME_LENGTH = 80
"""Most characters of an experiment's name; names that are made from a file's or a dataset's are cut to it."""
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
"""Keys of the experiment file and names of nnU-Net's environment variables."""
PATHS = (*FOLDERS, "pretrained_weights")
"""Keys that name something on the disk of whoever has the data."""

MAX_RUNS = 10_000
"""Most runs of one experiment."""


class Tracking(Frozen):
    """Where measurements and models go in MLflow."""

    model_config = ConfigDict(hide_input_in_errors=True)  # an address may hold a password

    uri: TrackingUri = ""
    """MLflow server (http or https) as the cluster's head node reaches it, without credentials; empty: the one that `nnfleet up` starts."""
    experiment: Printable = ""
    """MLflow experiment; empty: the dataset's name."""
    upload_interval_s: float = Field(60.0, ge=0, allow_inf_nan=False)
    """Least time in seconds between two uploads of a best checkpoint."""
    local_artifacts: bool = False
    """Allow an MLflow server whose clients write artifacts to a path (--no-serve-artifacts, --default-artifact-root): a folder that the
    cluster's head and the server must share at this very path."""


class Experiment(Schedule):
    """One experiment: every combination of variants, plans, configurations, trainers, seeds and folds of one dataset becomes a run.

    The schedule (`epochs`, `train_iterations`, ...) stands among the other keys of the file, hence the base class.
    """

    model_config = ConfigDict(allow_inf_nan=False, hide_input_in_errors=True)  # `config_error` shows what may be shown

    name: Printable = Field("", max_length=NAME_LENGTH)
    """Name of the experiment in lists; empty: the file's name."""
    dataset: DatasetName
    """Preprocessed nnU-Net dataset: its number (`17`, `017`) or its whole name (`Dataset017_BTCV`)."""
    nnUNet_raw: Folder | None = None
    """nnU-Net's folder of raw datasets; default: the environment variable of this name. Training does not need it."""
    nnUNet_preprocessed: Folder | None = None
    """nnU-Net's folder of preprocessed datasets, as the cluster's nodes see it; default: the environment variable of this name."""
    nnUNet_results: Folder | None = None
    """nnU-Net's folder of trained models, shared by the cluster's nodes; default: the environment variable of this name."""
    preprocess: PreprocessField = None
    """Plan and preprocess first what of the configurations is not preprocessed, by nnU-Net itself, in a job on CPU cores: `true`, or with
    `planner`, `cpus` and others. What is there already is taken as it is. nnU-Net: nnUNetv2_plan_and_preprocess."""
    plans: NameList = ("nnUNetPlans",)
    """One or several plans, by file name without `.json`; nnU-Net: nnUNetPlans."""
    configurations: NameList
    """One or several configurations of the plans, such as `3d_fullres`."""
    trainers: Trainers = ("nnUNetTrainer",)
    """Trainers: nnUNetTrainer, nnUNetTrainerDA5, nnUNetTrainerDA5_classic, or short: default, da5, da5_classic; and those variants of
    nnU-Net's that docs/trainers.md lists, such as nnUNetTrainer_250epochs; nnU-Net: nnUNetTrainer. Or a subclass of nnU-Net's trainer of
    your own, `module:Class` of a Python file beside this file, which trains by its own loop: such runs are not exact (docs/trainers.md)."""
    network: Network = None
    """A function of your own that builds the network, `module:function` of a Python file beside this file (docs/trainers.md). Without a
    `variant`, its name is part of the model's."""
    loss: Loss = None
    """A function of your own that makes the loss, likewise."""
    recipe: Recipe = None
    """A function of your own that makes the augmentation of training samples, likewise."""
    batch_size: int | None = Field(None, ge=1, le=MAX_SIZE)
    """Samples of one optimizer step over all workers, in the place of the plans'. Whether they fit into GPU memory is not checked."""
    patch_size: tuple[Annotated[int, Field(ge=1, le=MAX_SIZE)], ...] | None = Field(None, min_length=2, max_length=3)
    """Voxels of a patch along each axis of the plans' configuration, in the place of the plans'; each divisible by the product of the
    network's strides along it. Memory grows with it, likewise."""
    folds: Folds = (0, 1, 2, 3, 4)
    """Folds of splits_final.json by number, or `0-4`; `all` is nnU-Net's fold that trains and validates on every case; default: 0 to 4."""
    seeds: Seeds = (0,)
    """Seeds of weights and samples, or `0-2`. Seed 0 uses nnU-Net's folder names, others add `__seed<S>`; nnU-Net trains unseeded."""
    variant: VariantName = ""
    """Other settings on the same data, such as another learning rate, by this name: these runs have model folders of their own,
    `<trainer>__<plans>__<configuration>__<variant>`, beside those of the usual settings."""
    sweep: Sweep = None
    """Several variants: fields of the schedule with the values that each is to have (`initial_lr: [0.01, 0.001]`), of which every
    combination is a variant that is named by them (`initial_lr-0.001`); or names with fields (`low: {initial_lr: 0.001}`)."""
    replicate: ReplicateName = Field("", max_length=LONGEST_REPLICATE)
    """Train the same once more for a replication, as runs of their own by this name, in another nnUNet_results; MLflow may be the same."""
    pretrained_weights: Folder | None = None
    """A checkpoint of nnU-Net or nnfleet (.pth) of the same network, with whose weights every run begins, but for the segmentation layers;
    the nodes see it by this path. Or a run below nnUNet_results, by address (`17/3d_fullres/nnUNetTrainer/0`) or run key, whose final
    weights are meant; a model without its fold: each fold begins with the same fold. nnU-Net: -pretrained_weights."""
    workers: WorkerSpec = WorkerSpec()
    """The gang of workers of each run: `count` of them, or elastically from `min` to `max`."""
    loader: LoaderSpec = LoaderSpec()
    """How batches are prepared ahead. Without `actors`, a worker's CPUs less two for the training step, and at most six to begin with;
    a worker whose steps wait for data starts more while it has CPUs, up to `most`. With `placement: cluster` six, and no more than `most`,
    which is reserved."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    """When states are saved beside the end of every epoch."""
    validation: ValidationSpec = ValidationSpec()
    """The full validation after training."""
    patients: Patients = ""
    """Patients of the cases, where some have several: a regular expression over case ids whose group is the patient (`^(sub-\\d+)_`), or
    a CSV file with the columns `case,patient`, relative to this file. Comparisons then draw patients; empty: each case is one."""
    tracking: Tracking = Tracking()
    """Where measurements go."""
    notify: Notify | None = None
    """Messages to people when runs fail or all have ended; needs the extra `nnfleet[notify]`. Without it none are sent."""
    halving: Halving | None = None
    """Stop the models that fall behind others of this experiment, never single folds of one: `{at: [100, 300], keep: 0.5}`. They are
    compared by the smoothed pseudo-Dice of patches, meaned over folds and seeds. Without it none is stopped; nnU-Net has no such thing."""
    priority: int = Field(PRIORITY, ge=0, le=TOP_PRIORITY)
    """Place in the cluster's queue, from 0 (last) to 100 (first); of equal priority, users share the cluster evenly, and each one's runs
    start in the order of their submission."""
    user: Printable = Field("", max_length=NAME_LENGTH)
    """Whose share of the cluster the runs take; empty: the login name of the person who submits."""
    cost_per_gpu_hour: float | None = Field(None, gt=0)
    """What an hour of one GPU costs, in any currency: `plan` then gives the cost of the expected training. Changes no run."""
    images: bool = False
    """Send pictures of validation cases to MLflow. Patients' images leave the data folder only if this is true."""
    pseudonyms: bool = False
    """Replace case ids by pseudonyms in MLflow."""
    deterministic: bool = False
    """Ask for deterministic kernels on GPUs: a resumed run is then bit-equal there too, at some cost in speed. Elastic runs agree with
    that up to float rounding only: the same bits are promised for a fixed number of workers."""
    compile: bool = True
    """Compile the network with torch.compile on GPUs; nnU-Net: true."""

    @model_validator(mode="before")
    @classmethod
    def _one_key_for_one_or_many(cls, content: Any) -> Any:
        """`fold` and `seed`, as people write them for one, are `folds` and `seeds`."""
        if not isinstance(content, dict):
            return content
        for many, one in SINGULAR.items():
            if one in content and many in content:
                raise ValueError(f"`{one}` stands beside `{many}`, which means the same; write one of the two")
            if one in content:
                content = {many if key == one else key: value for key, value in content.items()}
        return with_plans_of_planner(content)

    @model_validator(mode="after")
    def _plans_that_a_planner_makes(self) -> "Experiment":
        if fault := fault_of_preprocess(self.preprocess, self.plans):
            raise ValueError(fault)
        return self

    @model_validator(mode="after")
    def _loader_within_cpus(self) -> "Experiment":
        if self.workers.loader_cpus:
            raise ValueError("workers.loader_cpus: follows from `loader: {actors: N, placement: cluster}`; remove it, and write that")
        if self.loader.placement == "cluster":
            return self._loader_anywhere()
        if "actors" in self.loader.model_fields_set and self.loader.actors > self.workers.cpus:
            raise ValueError(
                f"loader.actors: {self.loader.actors} loader actors do not fit into workers.cpus: {self.workers.cpus}; "
                "raise cpus or lower actors"
            )
        if self.loader.most is not None:
            least = self.loader.actors if "actors" in self.loader.model_fields_set else 1
            if not least <= self.loader.most <= self.workers.cpus:
                raise ValueError(
                    f"loader.most: {self.loader.most} is not between {least} loader actor{'s' if least > 1 else ''} and "
                    f"workers.cpus: {self.workers.cpus}; raise cpus, or change most"
                )
        return self

    def _loader_anywhere(self) -> "Experiment":
        most = self.loader.most or self.loader.actors
        if "actors" in self.loader.model_fields_set and most < self.loader.actors:
            raise ValueError(f"loader.most: {most} is less than loader.actors: {self.loader.actors}; lower actors, or raise most")
        return self

    @model_validator(mode="after")
    def _as_the_trainers_say(self) -> "Experiment":
        swept = fields_of(self.sweep or {})
        for trainer in self.trainer_names:
            for field, value in self._set_by(trainer).items():
                if field in swept:
                    raise ValueError(
                        f"sweep: {field} contradicts trainers: {trainer}, which sets {field} to {value}; remove one of the two"
                    )
                if field in self.model_fields_set and getattr(self, field) != value:
                    raise ValueError(
                        f"{field}: {getattr(self, field)} contradicts trainers: {trainer}, which sets {field} to {value}; "
                        f"remove `{field}`, or name a trainer that leaves it open"
                    )
        return self

    @model_validator(mode="after")
    def _as_own_trainers_allow(self) -> "Experiment":
        distinct(self.trainer_names)
        if (own := next(iter(self.own_trainers), "")) and (fault := fault_beside(own, self, fields_of(self.sweep or {}))):
            raise ValueError(fault)
        return self

    @model_validator(mode="after")
    def _within_bounds(self) -> "Experiment":
        numbers = {
            "checkpoint.every_minutes": self.checkpoint.every_minutes,
            "validation.surface_tolerance_mm": self.validation.surface_tolerance_mm,
        }
        if endless := [f"{key}: {value}" for key, value in numbers.items() if not math.isfinite(value or 0.0)]:
            raise ValueError(f"{endless[0]} is not a finite number")
        count = math.prod(len(axis) for axis in (self.plans, self.configurations, self.trainers, self.seeds, self.folds))
        count *= self.num_variants
        if count > MAX_RUNS:
            raise ValueError(f"it asks for {count} runs, at most {MAX_RUNS} are allowed; write several experiments")
        return self

    @model_validator(mode="after")
    def _one_way_to_name_variants(self) -> "Experiment":
        if self.sweep is None:
            return self
        if self.variant:
            raise ValueError(f"`variant: {self.variant}` beside `sweep`, which makes variants of its own; write one of the two")
        if twice := [field for field in swept_fields(self.sweep) if field in self.model_fields_set]:
            raise ValueError(f"`{twice[0]}` stands in `sweep` and beside it; write it in one place")
        if fault := fault_of_names(self.sweep):
            raise ValueError(f"sweep: {fault}")
        return self

    @model_validator(mode="after")
    def _comparable(self) -> "Experiment":
        if fault := fault_of_halving(self):
            raise ValueError(f"halving: {fault}")
        return self

    @model_validator(mode="after")
    def _nameable(self) -> "Experiment":
        if self.variant or not self.own_name:
            return self
        if fault := next((fault for variant in self.variants(self.trainer_names[0]) if (fault := fault_of_variant(variant.name))), ""):
            raise ValueError(f"the variant's name, which would be {self.own_name}, {fault}; name it yourself: `variant: NAME`")
        return self

    def schedule_of(self, trainer: str) -> Schedule:
        """The schedule alone, as a run of `trainer` takes it: what the trainer's name sets stands above the defaults."""
        return Schedule(**{field: getattr(self, field) for field in Schedule.model_fields} | self._set_by(trainer))

    def _set_by(self, trainer: str) -> dict[str, float]:
        """Fields of the schedule that the name of a trainer sets; a class of the user's sets none."""
        return {} if trainer in self.own_trainers else TRAINERS[trainer].schedule

    def variants(self, trainer: str) -> list[Variant]:
        """The variants of the sweep, else the one of the whole file; without a name the usual settings. Each has all of `axes`."""
        schedule = self.schedule_of(trainer)
        if self.sweep is None:
            return [Variant(self.variant or self.own_name, schedule)]
        swept = variants_of(self.sweep, schedule)
        return [variant._replace(name=f"{self.own_name}_{variant.name}") for variant in swept] if self.own_name else swept

    @property
    def own_sources(self) -> dict[OwnPart, OwnSource]:
        """Functions of the user's, with their files."""
        every: dict[OwnPart, OwnSource | None] = {"network": self.network, "loss": self.loss, "recipe": self.recipe}
        return {part: source for part, source in every.items() if source is not None}

    @property
    def trainer_names(self) -> tuple[str, ...]:
        """The trainers by name; of a class of the user's the class's."""
        return tuple(trainer.symbol if isinstance(trainer, OwnSource) else trainer for trainer in self.trainers)

    @property
    def own_trainers(self) -> dict[str, OwnSource]:
        """Those that are classes of the user's, with their files."""
        return {trainer.symbol: trainer for trainer in self.trainers if isinstance(trainer, OwnSource)}

    @property
    def all_sources(self) -> list[OwnSource]:
        """All code of the user's, which goes with the experiment."""
        return [*self.own_sources.values(), *self.own_trainers.values()]

    def own_parts(self, trainer: str) -> OwnParts:
        """The code of the user's that runs of `trainer` have, as their specifications name it."""
        if trainer in self.own_trainers:
            return OwnParts(trainer=self.own_trainers[trainer].code)
        return OwnParts(**{part: source.code for part, source in self.own_sources.items()})

    @property
    def own_name(self) -> str:
        """What distinguishes such runs from the usual ones in the name of their variant; empty: nothing."""
        functions = [f"{part}-{source.name.replace(':', '.')}" for part, source in self.own_sources.items()]
        batch = [f"batch_size-{self.batch_size}"] if self.batch_size else []
        patch = [f"patch_size-{'x'.join(map(str, self.patch_size))}"] if self.patch_size else []
        return "_".join([*functions, *batch, *patch])

    @property
    def num_variants(self) -> int:
        """How many variants there are, of each trainer."""
        return num_variants(self.sweep) if self.sweep else 1

    @property
    def effective_loader(self) -> LoaderSpec:
        """The loader with `actors` and `most` chosen from the worker's CPUs where the file does not name `actors` and loaders run there."""
        if "actors" in self.loader.model_fields_set:
            return self.loader
        if self.loader.placement == "cluster":
            return self.loader.model_copy(update={"actors": min(self.loader.actors, self.loader.most or self.loader.actors)})
        return self.loader.within(self.workers.cpus)

    def axes(self) -> list[tuple[str, str, str, int, Fold]]:
        """(plans, configuration, trainer, seed, fold) of every run of a variant, in the order of submission: the last changes fastest."""
        return list(product(self.plans, self.configurations, self.trainer_names, self.seeds, self.folds))

    def with_folders_resolved(self, *, required: bool = True, environment: Mapping[str, str] | None = None) -> "Experiment":
        """This experiment with absolute paths; folders are those of the file, else of the environment variables.

        Raises ConfigError when a folder that training needs is named nowhere and `required`.
        """
        environment = os.environ if environment is None else environment
        named: dict[str, Path | str | None] = {key: getattr(self, key) or environment.get(key) for key in FOLDERS}
        missing = [key for key in FOLDERS[1:] if not named[key]]
        if missing and required:
            raise ConfigError(
                f"{' and '.join(missing)}: neither in the experiment file nor in the environment. "
                f"Set them as for nnU-Net (export {missing[0]}=/path) or name them in the file ({missing[0]}: /path)."
            )
        named["pretrained_weights"] = self.pretrained_weights
        paths = {key: value for key, value in named.items() if value and not (key == "pretrained_weights" and names_run(value))}
        return self.model_copy(update={key: expanded(Path(value)) for key, value in paths.items()})

    def refuse_relative_paths(self) -> None:
        """Raise ConfigError for paths that begin nowhere on another machine; `~` is the home there. A file's own begin in its folder."""
        named = {key: value for key in PATHS if (value := getattr(self, key)) is not None}
        named = {key: value for key, value in named.items() if not (key == "pretrained_weights" and names_run(value))}
        relative = [f"{key}: {value}" for key, value in named.items() if not value.is_absolute() and not str(value).startswith("~")]
        if relative:
            start = "starts" if len(relative) == 1 else "start"
            raise ConfigError(f"{', '.join(relative)} {start} at no folder of the cluster. Write whole paths, as its nodes see them.")

    def to_yaml(self) -> str:
        """YAML that loads as this same experiment, on any machine; defaults are left out."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True)


def load_experiment(path: Path | str, *, is_sent: bool = False) -> Experiment:
    """Read an experiment file. Relative folders are relative to the file. Raises ConfigError with every fault that it has.

    `is_sent`: by a submission, not written by a user, whose empty lists are refused as they would be a surprise.
    """
    path = Path(path)
    content, root = read_yaml(path)
    beside = with_code_beside(path.parent, _with_table_beside(path, content))
    experiment = _checked(beside, str(path), root).model_copy(update=_from_file(path, content))
    if not is_sent:
        refuse_empty(content, str(path), root)
    return experiment


def parse_experiment(text: str, source: str = "experiment") -> Experiment:
    """Read an experiment from YAML text, such as `Experiment.to_yaml` gives. Raises ConfigError."""
    content, root = parse_yaml(text, source)
    return _checked(content, source, root)


def experiment_from(source: "Experiment | Mapping[str, Any] | str | os.PathLike[str]") -> Experiment:
    """The experiment that a script means: as it is, from its keys, or from the file at this path. Raises ConfigError."""
    if isinstance(source, Experiment):
        return source
    if isinstance(source, Mapping):
        experiment = _checked(dict(source), "experiment", None)
        refuse_empty(dict(source), "experiment")
        return experiment
    return load_experiment(Path(source))


def with_keys(experiment: Experiment, **keys: Any) -> Experiment:
    """The experiment with other values of these keys, but for those that are None. Raises ConfigError."""
    named = {key: value for key, value in keys.items() if value is not None}
    return _checked(experiment.model_dump(mode="json", exclude_unset=True) | named, "command line", None) if named else experiment


def single_training(
    dataset: int | str,
    configuration: str,
    fold: int | str,
    trainer: str = "nnUNetTrainer",
    plans: str = "nnUNetPlans",
    **overrides: Any,
) -> Experiment:
    """The experiment of one run, as `nnUNetv2_train DATASET CONFIGURATION FOLD -tr TRAINER -p PLANS` names it.

    `overrides` are further keys of the experiment file (`epochs=5`, `workers={"gpus": 0}`). Raises ConfigError.
    """
    content = {
        "name": f"train-{dataset}-{configuration}-{fold}"[:NAME_LENGTH],
        "dataset": dataset,
        "configurations": [configuration],
        "folds": [fold],
        "trainers": [trainer],
        "plans": [plans],
        **overrides,
    }
    return _checked(content, "command line", None)


def experiment_schema() -> dict[str, Any]:
    """JSON schema of the experiment file, for editors; shipped as docs/experiment.schema.json."""
    schema = Experiment.model_json_schema()
    known = schema["properties"]
    known |= {one: {**known[many], "title": one.capitalize(), "description": f"The same as `{many}`."} for many, one in SINGULAR.items()}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _checked(content: Any, source: str, root: yaml.Node | None) -> Experiment:
    if content is None:
        raise ConfigError(f"{source}: the file is empty. It needs at least `dataset` and `configurations`.")
    try:
        return Experiment.model_validate(content)
    except ValidationError as err:
        raise config_error(err, Experiment, source, root) from (None if holds_secret(err) else err)  # a traceback prints the cause too
    except RecursionError as err:
        raise ConfigError(f"{source}: a YAML alias contains itself. Write the values out.") from err


def _with_table_beside(path: Path, content: Any) -> Any:
    """The content of a file, with the table of patients found from where the file lies."""
    named = content.get("patients") if isinstance(content, dict) else None
    if not isinstance(named, str) or not is_table(named) or named.startswith("~"):
        return content
    return {**content, "patients": str(path.parent.absolute() / named)}


def _from_file(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """What a file's place says: its name, and where its relative paths begin (`~` is left to the machine that has the data)."""
    base: Callable[[Any], Path] = lambda value: Path(value) if str(value).startswith("~") else path.parent.absolute() / str(value)  # noqa: E731
    name = "".join(letter if letter.isprintable() else "_" for letter in path.stem)
    named = {key: content[key] for key in PATHS if content.get(key)}
    paths = {key: base(value) for key, value in named.items() if not (key == "pretrained_weights" and names_run(value))}
    return {**paths, **({} if content.get("name") else {"name": name[:NAME_LENGTH]})}
