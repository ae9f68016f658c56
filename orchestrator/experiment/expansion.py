"""Which runs an experiment is, read from its data; every problem is reported, not only the first."""

import logging
from pathlib import Path
from typing import Any

from orchestrator.dataset.digest import data_digest, run_key
from orchestrator.dataset.folder import cases_in, ensure_splits, find_dataset
from orchestrator.dataset.label_files import LabelFile
from orchestrator.dataset.preflight import labels_of_cases, problems_of, usable_configuration
from orchestrator.dataset.problems import Problems
from orchestrator.errors import NnfleetError
from orchestrator.experiment.model import Experiment
from trainers.contract.names import Fold
from trainers.contract.plans import Plans, Split, labels_of, load_dataset_json, load_plans, split_for
from trainers.contract.run_spec import RunSpec

log = logging.getLogger(__name__)


def expand(experiment: Experiment) -> list[RunSpec]:
    """The runs of an experiment in the order of submission (see `Experiment.axes`). Makes splits_final.json where it is missing.

    Raises ConfigError (the request must change) or DataError (the data must change) that lists every problem found.
    """
    return _Expansion(experiment.with_folders_resolved()).runs()


class _Expansion:
    """One reading of an experiment's data: each file once, each problem once."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.problems = Problems()
        preprocessed, results = experiment.nnUNet_preprocessed, experiment.nnUNet_results
        assert preprocessed is not None
        assert results is not None
        self.dataset = find_dataset(preprocessed, experiment.dataset, experiment.nnUNet_raw)
        self.folder: Path = preprocessed / self.dataset
        self.results: Path = results / self.dataset
        self.dataset_json = load_dataset_json(self.folder)
        labels_of(self.dataset_json, str(self.folder / "dataset.json"))

    def runs(self) -> list[RunSpec]:
        plans = self._plans()
        configurations = self._configurations(plans)
        splits = self._splits(configurations)
        labels = self._labels(plans, splits)
        specs = []
        for plans_name, configuration, trainer, seed, fold in self.experiment.axes():
            split = splits.get((plans_name, configuration, fold))
            if split is not None:
                specs.append(self._spec(plans[plans_name], configuration, trainer, seed, fold, split, labels))
        for spec in specs:
            self.problems.add(*problems_of(spec, labels))
        self.problems.raise_if_any()
        return specs

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
                    found[plans_name, name] = dict(usable_configuration(content, name))
                except NnfleetError as err:
                    self.problems.add(err)
        return found

    def _splits(self, configurations: dict[tuple[str, str], dict[str, Any]]) -> dict[tuple[str, str, Fold], Split]:
        """Cases of every fold of every configuration, in the order that sampling draws from: sorted, as nnU-Net's dataset sorts them."""
        found = {}
        for (plans_name, name), configuration in configurations.items():
            cases = cases_in(self.folder / configuration["data_identifier"])
            for fold in self.experiment.folds:
                try:
                    splits = [] if fold == "all" else ensure_splits(self.folder, cases)
                    split = split_for(splits, fold, cases, self.dataset)
                    found[plans_name, name, fold] = Split(tuple(sorted(split.train)), tuple(sorted(split.val)))
                except NnfleetError as err:
                    self.problems.add(err)
        return found

    def _labels(self, plans: dict[str, Plans], splits: dict[tuple[str, str, Fold], Split]) -> dict[str, LabelFile]:
        cases = sorted({case for split in splits.values() for case in (*split.train, *split.val)})
        if not cases:
            return {}
        reader = str(next(iter(plans.values())).content.get("image_reader_writer"))
        return labels_of_cases(self.folder, cases, self.dataset_json["file_ending"], reader, self.results)

    def _spec(
        self, plans: Plans, configuration: str, trainer: str, seed: int, fold: Fold, split: Split, labels: dict[str, LabelFile]
    ) -> RunSpec:
        experiment = self.experiment
        digest = data_digest(plans, configuration, self.dataset_json, split, {case: label.sha256 for case, label in labels.items()})
        suffix = f"__seed{seed}" if seed else ""
        return RunSpec(
            run_key=run_key(
                dataset=self.dataset,
                configuration=configuration,
                trainer=trainer,
                plans=plans.name,
                fold=fold,
                seed=seed,
                schedule=experiment.schedule,
                data_digest=digest,
                replicate=experiment.replicate,
            ),
            dataset=self.dataset,
            preprocessed_folder=self.folder,
            model_folder=self.results / f"{trainer}__{plans.name}__{configuration}{suffix}",
            plans=plans.name,
            configuration=configuration,
            trainer=trainer,
            fold=fold,
            seed=seed,
            replicate=experiment.replicate,
            train_cases=split.train,
            val_cases=split.val,
            data_digest=digest,
            schedule=experiment.schedule,
            deterministic=experiment.deterministic,
            compile=experiment.compile,
            workers=experiment.workers,
            loader=experiment.effective_loader,
            checkpoint=experiment.checkpoint,
            validation=experiment.validation,
            images=experiment.images,
            pseudonyms=experiment.pseudonyms,
            upload_interval_s=experiment.tracking.upload_interval_s,
            tracking_uri=experiment.tracking.uri,
            mlflow_experiment=experiment.tracking.experiment or self.dataset,
        )
