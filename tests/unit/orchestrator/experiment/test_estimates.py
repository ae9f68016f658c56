"""Expected durations come from measured epochs of the same model, or are not known."""

from pathlib import Path

import pytest

from orchestrator.cli.plan import estimate_line
from orchestrator.experiment.estimates import Measured
from orchestrator.experiment.plan import plan_of_runs
from orchestrator.queue.gang_fit import NodeResources
from tests.fake_run import FakeRun, epoch_row
from trainers.contract.run_spec import RunSpec, Schedule, WorkerSpec

TWO_CPUS = WorkerSpec(count=2, gpus=0, cpus=1)
CPUS = {"CPU": 8.0}


def made(base: Path, fold: int, *seconds: float) -> RunSpec:
    """A fold that has trained one epoch of each of these seconds, with two workers without a GPU."""
    run = FakeRun(base, f"toy-{fold}", fold, workers=TWO_CPUS, schedule=Schedule(epochs=10))
    run.rows = [epoch_row(epoch).model_copy(update={"epoch_s": each}) for epoch, each in enumerate(seconds)]
    if seconds:
        run.commit()
    return run.spec


def test_the_median_epoch_of_each_fold_counts_and_of_these_the_median(tmp_path: Path) -> None:
    made(tmp_path, 0, 99.0, 10.0, 10.0)
    made(tmp_path, 1, 30.0)
    made(tmp_path, 2, 20.0)
    assert Measured().epoch_s(made(tmp_path, 3)) == 20.0


@pytest.mark.parametrize(
    "changes",
    [
        {"workers": WorkerSpec(count=1, gpus=0, cpus=1)},
        {"workers": WorkerSpec(count=2, gpus=1, cpus=1)},
        {"schedule": Schedule(epochs=10, train_iterations=7)},
        {"model_folder": Path("/nowhere")},
    ],
)
def test_other_workers_or_iterations_or_models_are_no_measure(tmp_path: Path, changes: dict[str, object]) -> None:
    made(tmp_path, 0, 10.0)
    assert Measured().epoch_s(made(tmp_path, 1).model_copy(update=changes)) is None


def test_a_folder_that_cannot_be_read_refuses_no_plan(tmp_path: Path) -> None:
    made(tmp_path, 0, 10.0)
    broken = made(tmp_path, 2, 10.0)
    (broken.run_folder / "nnfleet" / "run.json").write_text("{")
    assert Measured().epoch_s(made(tmp_path, 1)) == 10.0


def test_a_plan_shows_what_its_training_is_expected_to_take_or_that_it_is_not_known(tmp_path: Path) -> None:
    specs = [made(tmp_path, 0, 3600.0, 3600.0), made(tmp_path, 1)]
    report = plan_of_runs("e", specs, [NodeResources("n", CPUS, CPUS)])
    assert [row.training_s for row in report.rows] == [8 * 3600.0, 10 * 3600.0]
    assert estimate_line(report) == (
        "Expected training, by epochs that were measured before: 8.0 to 10.0 h a run (2 runs); validation comes on top."
    )
    other = made(tmp_path / "other", 0)
    unknown = plan_of_runs("e", [other], [NodeResources("n", CPUS, CPUS)])
    assert unknown.rows[0].training_s is None
    assert estimate_line(unknown).startswith("Expected duration: not known")
