"""How long people wait for an answer: `nnfleet compare` over many folders, and MLflow with many long runs.

    python -m benchmarks.compare_reading [--models 20] [--classes 10] [--cases 500] [--runs 200] [--epochs 1000]

Made in a temporary folder, with invented numbers and no training: the run folders of models of five folds, and an MLflow store of runs with
curves. Printed are wall seconds, CPU seconds and peak memory of each question, each asked by a fresh process: the comparison with its
resamples and ranks, the reading included; the saved view of results (runs sorted by their Dice); a search by a filter; one curve of a run.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fake_run import FakeRun
from tests.validated_model import metrics_of
from trainers.contract.summary import SCORING, CaseResult

FOLDS = 5
CURVES = 8
"""Metrics of an epoch."""
BATCH = 1000
"""MLflow takes so many points at once."""
COMPARISON = "compare --results {results} --json"
QUESTIONS = {
    "results, best first": "client.search_runs([experiment], order_by=['metrics.`cv/dice_mean` DESC'], max_results=100)",
    "search by a filter": "client.search_runs([experiment], \"params.trainer = 'nnUNetTrainer' AND metrics.`cv/dice_mean` > 0.85\")",
    "a curve": "client.get_metric_history(client.search_runs([experiment], max_results=1)[0].info.run_id, 'val/ema_pseudo_dice')",
}


def write_models(base: Path, models: int, classes: int, cases: int) -> Path:
    """Run folders of `models` configurations whose folds were validated; the folder of results."""
    names = [f"class {number}" for number in range(classes)]
    for model in range(models):
        for fold in range(FOLDS):
            own = [f"case_{case:04d}" for case in range(fold, cases, FOLDS)]
            others = tuple(f"case_{case:04d}" for case in range(cases) if case % FOLDS != fold)
            _write_fold(base, model, fold, own, others, names)
    return base / "results"


def _write_fold(base: Path, model: int, fold: int, own: list[str], others: tuple[str, ...], names: list[str]) -> None:
    folder = base / "results" / "Dataset901_Toy" / f"nnUNetTrainer__nnUNetPlans__net{model:02d}"
    run = FakeRun(
        base, f"901-{model}-{fold}", fold, val_cases=tuple(own), train_cases=others, configuration=f"net{model:02d}", model_folder=folder
    )
    run.epoch()
    run.finish()
    _name_classes(run, names)
    assert run.final is not None
    run.folder.cases("final").mkdir(parents=True)
    for case in own:
        _write_case(run, case, model, names)


def _name_classes(run: FakeRun, names: list[str]) -> None:
    content = json.loads((run.spec.preprocessed_folder / "dataset.json").read_text())
    content["labels"] = {"background": 0, **{name: value for value, name in enumerate(names, start=1)}}
    (run.spec.model_folder / "dataset.json").write_text(json.dumps(content))
    shutil.copy(run.spec.preprocessed_folder / "nnUNetPlans.json", run.spec.model_folder / "plans.json")


def _write_case(run: FakeRun, case: str, model: int, names: list[str]) -> None:
    assert run.final is not None
    draw = random.Random(f"{case} {model}")
    hard = random.Random(case).uniform(0.6, 0.9)
    result = CaseResult(
        case_id=case,
        checkpoint_sha256=run.final.sha256,
        reference_file=str(run.spec.preprocessed_folder / f"{case}.nii.gz"),
        prediction_file=str(run.folder.validation("final") / f"{case}.nii.gz"),
        surface_tolerance_mm=run.spec.validation.surface_tolerance_mm,
        scoring=SCORING,
        metrics={name: metrics_of(min(1.0, max(0.0, hard + 0.002 * model + draw.gauss(0, 0.03)))) for name in names},
        seconds=1.0,
    )
    (run.folder.cases("final") / f"{case}.json").write_text(result.model_dump_json())


def write_store(uri: str, runs: int, epochs: int) -> str:
    """Runs with curves in an MLflow store; returns the id of their experiment."""
    from mlflow.entities import Param
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.create_experiment("benchmark")
    for number in range(runs):
        run_id = client.create_run(experiment, run_name=f"run {number}").info.run_id
        trainer = "nnUNetTrainerDA5" if number % 2 else "nnUNetTrainer"
        client.log_batch(run_id, params=[Param("trainer", trainer), Param("fold", str(number % FOLDS))])
        for points in _curves(number, epochs):
            client.log_batch(run_id, metrics=points)
        client.log_metric(run_id, "cv/dice_mean", 0.8 + 0.1 * random.Random(number).random(), step=0)
    return str(experiment)


def _curves(number: int, epochs: int) -> Iterator[list[Any]]:
    from mlflow.entities import Metric

    names = ["val/ema_pseudo_dice", *(f"train/curve_{curve}" for curve in range(1, CURVES))]
    points = [Metric(name, 1 - 1 / (epoch + 2 + number % 7), 1000 * epoch, epoch) for epoch in range(epochs) for name in names]
    for begin in range(0, len(points), BATCH):
        yield points[begin : begin + BATCH]


def measured(command: list[str]) -> str:
    """Wall seconds, CPU seconds and peak memory of a process. Raises CalledProcessError."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.monotonic() - began
    if status:
        raise subprocess.CalledProcessError(status, command)
    return f"{wall:6.1f} s wall {used.ru_utime + used.ru_stime:6.1f} s CPU {used.ru_maxrss / 1024:7.0f} MiB"


def ask(uri: str, experiment: str) -> None:
    """Print what each question costs a fresh process."""
    head = f"from mlflow.tracking import MlflowClient\nclient, experiment = MlflowClient({uri!r}), {experiment!r}\n"
    print(f"{'MLflow, its import alone':<30} {measured([sys.executable, '-c', head])}")
    for name, question in QUESTIONS.items():
        print(f"{'MLflow, ' + name:<30} {measured([sys.executable, '-c', head + question])}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("models", 20), ("classes", 10), ("cases", 500), ("runs", 200), ("epochs", 1000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nnfleet-compare-") as folder:
        base = Path(folder)
        print(f"{wanted.models} models x {wanted.classes} classes x {wanted.cases} cases are written ...", flush=True)
        results = write_models(base, wanted.models, wanted.classes, wanted.cases)
        command = [sys.executable, "-m", "orchestrator.cli", *COMPARISON.format(results=results).split()]
        print(f"{'nnfleet compare':<30} {measured(command)}", flush=True)
        print(f"{wanted.runs} runs x {wanted.epochs} epochs x {CURVES} curves are written ...", flush=True)
        uri = f"sqlite:///{base}/mlflow.db"
        ask(uri, write_store(uri, wanted.runs, wanted.epochs))


if __name__ == "__main__":
    main()
