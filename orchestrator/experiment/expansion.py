"""Which runs an experiment is, read from its data; every problem is reported, not only the first."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from orchestrator.dataset.case_readings import CaseReadings, contents_of_cases, labels_of_cases
from orchestrator.dataset.folder import cases_in, ensure_splits, find_dataset, number_of
from orchestrator.dataset.model_folder import problems_of_folders
from orchestrator.dataset.preflight import data_problems, usable_configuration
from orchestrator.dataset.problems import Problems
from orchestrator.dataset.remembered import Reading
from orchestrator.dataset.split_check import check_folds
from orchestrator.errors import DataError, NnfleetError
from orchestrator.experiment.first_weights import FirstWeights
from orchestrator.experiment.halving import with_comparisons
from orchestrator.experiment.identity import Planned, identity_in
from orchestrator.experiment.model import Experiment
from orchestrator.experiment.stages import depth, previous_of, stages_due
from orchestrator.experiment.sweep import Variant
from orchestrator.run.patients import patients_of
from trainers.contract.names import Fold
from trainers.contract.plans import Plans, Split, labels_of, load_dataset_json, load_plans, num_input_channels, split_for
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import PretrainedWeights, RunSpec

log = logging.getLogger(__name__)


def expand(experiment: Experiment, *, replaces: bool = False) -> list[RunSpec]:
    """The runs of an experiment in the order of submission (see `Experiment.axes`). Makes splits_final.json where it is missing.

    `replaces`: run folders of other runs are no problem, as they will be moved aside.
    Raises ConfigError (the request must change) or DataError (the data must change) that lists every problem found.
    """
    return _Expansion(experiment.with_folders_resolved(), replaces=replaces).runs()


def check_named(experiment: Experiment) -> None:
    """Raise ConfigError or DataError for what an experiment names and its data lack: dataset, plans, configurations, folds.

    Reads no case. Makes splits_final.json where it is missing.
    """
    expansion = _Expansion(experiment.with_folders_resolved(), replaces=False)
    expansion.named()
    expansion.problems.raise_if_any()


class _Expansion:
    """One reading of an experiment's data: each file once, each problem once."""

    def __init__(self, experiment: Experiment, *, replaces: bool) -> None:
        self.experiment, self.replaces = experiment, replaces
        self.problems = Problems()
        preprocessed, results = experiment.nnUNet_preprocessed, experiment.nnUNet_results
        assert preprocessed is not None
        assert results is not None
        self.dataset = find_dataset(preprocessed, experiment.dataset, experiment.nnUNet_raw)
        self.folder: Path = preprocessed / self.dataset
        self.results: Path = results / self.dataset
        self.dataset_json = load_dataset_json(self.folder)
        labels_of(self.dataset_json, str(self.folder / "dataset.json"))
        self.first_weights = FirstWeights(experiment.pretrained_weights, results)

    def named(self) -> tuple[dict[str, Plans], dict[tuple[str, str, Fold], Split]]:
        """What the experiment names of its dataset: plans by name, and the cases of every fold of every configuration."""
        plans = self._plans()
        return plans, self._splits(self._configurations(plans))

    def runs(self) -> list[RunSpec]:
        plans, splits = self.named()
        readings = _Readings(self.folder, self.dataset_json, self.results, {case for s in splits.values() for case in (*s.train, *s.val)})
        found: dict[int, RunSpec] = {}
        planned = dict(enumerate(self._all_planned(plans, splits)))
        for place in sorted(planned, key=lambda place: depth(planned[place].plans, planned[place].configuration)):  # first stages first
            run = self._with_previous_stage(planned[place], found.values())
            spec = found[place] = self._spec(run, readings)
            self.problems.add(*data_problems(spec, readings.of(run.plans, run.configuration, spec.case_digests is not None)))
        specs = [found[place] for place in planned]
        self.problems.add(*problems_of_folders(specs, plans, replaces=self.replaces))
        self.problems.raise_if_any()
        return with_comparisons(specs, self.experiment.halving)

    def _all_planned(self, plans: dict[str, Plans], splits: dict[tuple[str, str, Fold], Split]) -> Iterator[Planned]:
        variants = {trainer: self.experiment.variants(trainer) for trainer in self.experiment.trainer_names}
        for number, (plans_name, configuration, trainer, seed, fold) in product(
            range(self.experiment.num_variants), self.experiment.axes()
        ):
            split = splits.get((plans_name, configuration, fold))
            if split is not None:
                yield self._planned(variants[trainer][number], plans[plans_name], configuration, trainer, seed, fold, split)

    def _with_previous_stage(self, planned: Planned, earlier: Iterable[RunSpec]) -> Planned:
        try:
            return replace(planned, previous_stage=previous_of(planned, earlier, self.results))
        except NnfleetError as err:
            self.problems.add(err)
            return planned

    def _plans(self) -> dict[str, Plans]:
        found = {}
        for name in self.experiment.plans:
            try:
                found[name] = load_plans(self.folder, name)
            except NnfleetError as err:
                self.problems.add(err)
        return found

    def _configurations(self, plans: dict[str, Plans]) -> dict[tuple[str, str], dict[str, Any]]:
        found = {}
        for plans_name, content in plans.items():
            for name in self.experiment.configurations:
                try:
                    found[plans_name, name] = dict(usable_configuration(self._sized(content, name), name))
                except NnfleetError as err:
                    self.problems.add(err)
        return found

    def _sized(self, plans: Plans, configuration: str) -> Plans:
        return plans.with_sizes(configuration, self.experiment.batch_size, self.experiment.patch_size)

    def _splits(self, configurations: dict[tuple[str, str], dict[str, Any]]) -> dict[tuple[str, str, Fold], Split]:
        """Cases of every fold of every configuration, in the order that sampling draws from: sorted, as nnU-Net's dataset sorts them."""
        found = {}
        for (plans_name, name), configuration in configurations.items():
            cases = cases_in(self.folder / configuration["data_identifier"])
            if not cases:
                self.problems.add(_not_preprocessed(self.dataset, plans_name, name))
                continue
            folds = self._folds(cases)
            try:
                check_folds(folds, cases, str(self.folder / "splits_final.json"))
            except NnfleetError as err:
                self.problems.add(err)
                continue
            for fold, split in folds.items():
                found[plans_name, name, fold] = Split(tuple(sorted(split.train)), tuple(sorted(split.val)))
        return found

    def _folds(self, cases: tuple[str, ...]) -> dict[Fold, Split]:
        found = {}
        for fold in self.experiment.folds:
            try:
                splits = [] if fold == "all" else ensure_splits(self.folder, cases)
                found[fold] = split_for(splits, fold, cases, self.dataset)
            except NnfleetError as err:
                self.problems.add(err)
        return found

    def _planned(self, variant: Variant, plans: Plans, configuration: str, trainer: str, seed: int, fold: Fold, split: Split) -> Planned:
        return Planned(
            dataset=self.dataset,
            dataset_json=self.dataset_json,
            plans=self._sized(plans, configuration),
            configuration=configuration,
            trainer=trainer,
            fold=fold,
            seed=seed,
            schedule=variant.schedule,
            split=split,
            replicate=self.experiment.replicate,
            variant=variant.name,
            pretrained=self._first_weights(fold, split),
            own=self.experiment.own_parts(trainer),
            candidates=self.experiment.validation.candidates,
        )

    def _first_weights(self, fold: Fold, split: Split) -> PretrainedWeights | None:
        try:
            return self.first_weights.of(self.dataset, fold, split)
        except NnfleetError as err:
            self.problems.add(err)
            return None

    def _patients(self, split: Split) -> dict[str, str] | None:
        if not self.experiment.patients:
            return None
        try:
            return patients_of(self.experiment.patients, split.val, "patients")
        except NnfleetError as err:
            self.problems.add(err)
            return None

    def _spec(self, planned: Planned, readings: "_Readings") -> RunSpec:
        experiment, split = self.experiment, planned.split
        model_folder = self.results / planned.model_folder_name
        identity = identity_in(
            RunFolder(model_folder / f"fold_{planned.fold}"),
            planned,
            lambda is_whole: readings.of(planned.plans, planned.configuration, is_whole),
            replaces=self.replaces,
        )
        return RunSpec(
            run_key=identity.run_key,
            data_digest=identity.data_digest,
            case_digests=identity.case_digests,
            dataset=self.dataset,
            preprocessed_folder=self.folder,
            model_folder=model_folder,
            plans=planned.plans.name,
            configuration=planned.configuration,
            trainer=planned.trainer,
            fold=planned.fold,
            seed=planned.seed,
            variant=planned.variant,
            replicate=planned.replicate,
            pretrained_weights=planned.pretrained,
            own=planned.own,
            batch_size=experiment.batch_size,
            patch_size=experiment.patch_size,
            train_cases=split.train,
            val_cases=split.val,
            patients=self._patients(split),
            schedule=planned.schedule,
            deterministic=experiment.deterministic,
            compile=experiment.compile,
            workers=experiment.workers,
            loader=experiment.effective_loader,
            checkpoint=experiment.checkpoint,
            validation=experiment.validation,
            previous_stage=planned.previous_stage,
            next_stages=stages_due(planned, experiment.validation, self.folder),
            priority=experiment.priority,
            user=experiment.user,
            images=experiment.images,
            pseudonyms=experiment.pseudonyms,
            notify=experiment.notify,
            upload_interval_s=experiment.tracking.upload_interval_s,
            local_artifacts=experiment.tracking.local_artifacts,
            tracking_uri=experiment.tracking.uri,
            mlflow_experiment=experiment.tracking.experiment or self.dataset,
        )


def _not_preprocessed(dataset: str, plans: str, configuration: str) -> DataError:
    named = "" if plans == "nnUNetPlans" else f" -plans_name {plans}"
    return DataError(
        f"configurations: {configuration!r} is not preprocessed: nnUNetv2_preprocess -d {number_of(dataset)}{named} -c {configuration}, "
        "or `preprocess: true` in the experiment file."
    )


class _Readings:
    """The cases of an experiment, read by each reader of its plans and from each folder of preprocessed data once, when that is needed."""

    def __init__(self, folder: Path, dataset_json: dict[str, Any], results: Path, cases: set[str]) -> None:
        self.folder, self.dataset_json, self.results, self.cases = folder, dataset_json, results, sorted(cases)
        self._labels: dict[str, dict[str, Reading]] = {}
        self._contents: dict[str, dict[str, tuple[Reading, Reading]]] = {}

    def of(self, plans: Plans, configuration: str, is_whole: bool) -> CaseReadings:
        """The label files of all cases and, if `is_whole`, their preprocessed images and labels."""
        reader = str(plans.content.get("image_reader_writer"))
        identifier = str(plans.configuration(configuration)["data_identifier"])
        if reader not in self._labels:
            self._labels[reader] = labels_of_cases(self.folder, self.cases, self.dataset_json["file_ending"], reader, self.results)
        if is_whole and identifier not in self._contents:
            channels = num_input_channels(self.dataset_json)
            self._contents[identifier] = contents_of_cases(self.folder / identifier, self.cases, channels, self.results)
        return CaseReadings(self._labels[reader], self._contents[identifier] if is_whole else {})
