"""Folds of one model, one after the other: what `plan` expected each training to take, and what it took.

    python -m benchmarks.estimates [--folds 4] [--epochs 8] [--iterations 100]

Services of their own in a temporary home. Nothing is known of the first fold; each later one is expected to take what those before it took.
A duration is the sum of the epochs' seconds. The load is that of the machine over the last minute, at the end of the training.
"""

import argparse
import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.experiment.model import Experiment
    from tests.toy import Toy


@dataclass(frozen=True)
class Trained:
    """One fold."""

    fold: int
    expected_s: float | None
    """By `plan`, before it was submitted; None: not known."""
    took_s: float
    load: float

    @property
    def error(self) -> float:
        """By how much of the expectation it took longer."""
        return math.nan if self.expected_s is None else self.took_s / self.expected_s - 1


def main() -> None:
    """Train, and print a table and what `plan` shows in the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=100)
    options = parser.parse_args()
    from orchestrator import api
    from orchestrator.cli.plan import estimate_line
    from tests.integration.local_home import services_of_its_own, toy_experiment
    from tests.toy import toy_dataset

    with tempfile.TemporaryDirectory(prefix="nnf-") as base:
        toy = toy_dataset(Path(base) / "toy", cases=2 * options.folds + 2)
        write_splits(toy, options.folds + 1)  # the last fold is only planned
        workers = {"count": 1, "gpus": 0, "cpus": 1}
        settings = {"epochs": options.epochs, "train_iterations": options.iterations, "workers": workers}
        model = toy_experiment(toy, Path(base) / "results", **settings)
        with services_of_its_own():
            print_table([trained(model, fold) for fold in range(options.folds)])
            print(f"\n{estimate_line(api.plan(fold_of(model, options.folds)))}")


def write_splits(toy: "Toy", folds: int) -> None:
    """So many folds of two validation cases each."""
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (toy.raw / "labelsTr").iterdir())
    held = [cases[2 * fold : 2 * fold + 2] for fold in range(folds)]
    splits = [{"train": [case for case in cases if case not in val], "val": val} for val in held]
    (toy.preprocessed / "splits_final.json").write_text(json.dumps(splits))


def fold_of(model: "Experiment", fold: int) -> "Experiment":
    """The experiment of one fold."""
    return model.model_copy(update={"folds": (fold,)})


def trained(model: "Experiment", fold: int) -> Trained:
    """Plan, submit and follow one fold to its end."""
    from orchestrator import api
    from trainers.contract.commits import newest_committed
    from trainers.contract.run_folder import RunFolder

    expected_s = api.plan(fold_of(model, fold)).rows[0].training_s
    (status,) = api.wait(api.submit(fold_of(model, fold)).campaign_id)
    assert status.state.value == "SUCCEEDED", status.reason
    committed = newest_committed(RunFolder(Path(status.run_folder)))
    assert committed is not None
    return Trained(fold, expected_s, math.fsum(row.epoch_s for row in committed.history), os.getloadavg()[0])


def print_table(rows: Sequence[Trained]) -> None:
    """A row for each fold."""
    print("\n| fold | expected s | took s | error | load |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        expected = "not known" if row.expected_s is None else f"{row.expected_s:.1f}"
        error = "" if math.isnan(row.error) else f"{row.error:+.1%}"
        print(f"| {row.fold} | {expected} | {row.took_s:.1f} | {error} | {row.load:.1f} |")


if __name__ == "__main__":
    main()
