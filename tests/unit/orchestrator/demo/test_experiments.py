"""The experiments that the demo ships."""

from pathlib import Path

import pytest

from orchestrator.demo import COMPARISON_FILE, DATASET, EXPERIMENT_FILE, DemoPaths, write_demo_experiment
from orchestrator.experiment.model import load_experiment


@pytest.mark.parametrize(("shipped", "folds"), [(EXPERIMENT_FILE, (0,)), (COMPARISON_FILE, (0, 1, 2))])
def test_a_shipped_experiment_trains_two_trainers_of_the_demo(tmp_path: Path, shipped: Path, folds: tuple[int, ...]) -> None:
    experiment = load_experiment(write_demo_experiment(DemoPaths(tmp_path), shipped, epochs=3))
    assert (experiment.dataset, len(experiment.trainers), tuple(experiment.folds)) == (DATASET, 2, folds)
    assert experiment.epochs == 3
    assert experiment.images
