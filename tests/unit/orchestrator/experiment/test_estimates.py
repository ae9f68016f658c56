"""Expected durations come from measured epochs of the same model, or are not known."""

import json
from pathlib import Path

import pytest

from orchestrator.cli.plan import estimate_line, limit_lines
from orchestrator.experiment.estimates import EpochTime, Measured
from orchestrator.experiment.plan import plan_of_runs
from orchestrator.experiment.published import published_of
from orchestrator.queue.gang_fit import NodeResources
from orchestrator.run.estimate import estimate_error, estimate_metrics, note_expected
from tests.fake_run import FakeRun, epoch_row
from trainers.contract.commits import newest_committed
from trainers.contract.plans import plans_of
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import LoaderSpec, RunSpec, Schedule, WorkerSpec
from trainers.storage.files import write_json_atomic

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
        "Expected training, by epochs that were measured before: 8.0 to 10.0 h a run (2 runs); validation comes on top. "
        "How wrong such an expectation is was not recorded for these models yet."
    )
    other = made(tmp_path / "other", 0)
    unknown = plan_of_runs("e", [other], [NodeResources("n", CPUS, CPUS)])
    assert unknown.rows[0].training_s is None
    assert estimate_line(unknown).startswith("Expected duration: not known")


@pytest.mark.parametrize(
    ("plans", "planner", "changes", "hours"),
    [
        ("nnUNetPlans", "ExperimentPlanner", {}, 9.0),
        ("nnUNetResEncUNetLPlans", "nnUNetPlannerResEncL", {"schedule": Schedule(epochs=100)}, 3.5),
        ("nnUNetPlans", "ExperimentPlanner", {"workers": TWO_CPUS}, None),
        ("nnUNetPlans", "ExperimentPlanner", {"batch_size": 4}, None),
        ("nnUNetPlans", "nnUNetPlannerResEncL", {}, None),
        ("myPlans", "ExperimentPlanner", {}, None),
        ("nnUNetPlans", "ExperimentPlanner", {"configuration": "3d_lowres"}, None),
    ],
)
def test_where_nothing_was_measured_a_plan_names_what_is_reported_of_a_preset(
    tmp_path: Path, plans: str, planner: str, changes: dict[str, object], hours: float | None
) -> None:
    run = FakeRun(tmp_path, workers=WorkerSpec(count=1, gpus=1, cpus=1), schedule=Schedule())
    content = json.loads((run.spec.preprocessed_folder / "nnUNetPlans.json").read_text())
    large = content["configurations"]["3d_fullres"] | {"patch_size": [128, 128, 128]}
    content["configurations"] = {"3d_fullres": large, "3d_lowres": large}
    write_json_atomic(run.spec.preprocessed_folder / f"{plans}.json", {**content, "experiment_planner_used": planner})
    spec = run.spec.model_copy(update={"plans": plans, **changes})
    report = plan_of_runs("e", [spec], [NodeResources("n", {"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0})])
    assert report.rows[0].published_h == hours
    line = estimate_line(report)
    assert line.startswith("Expected duration: not known")
    assert (f"the training takes {hours} h each on one A100, and " in line) == (hours is not None)


def test_a_small_batch_is_none_of_those_that_are_reported(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, workers=WorkerSpec(count=1, gpus=1, cpus=1))
    plans = plans_of(run.spec)
    plans.content["experiment_planner_used"] = "ExperimentPlanner"
    assert published_of(run.spec, plans) is None
    plans.content["configurations"]["3d_fullres"]["patch_size"] = [128, 128, 128]
    assert published_of(run.spec, plans) is not None


def trained(base: Path, fold: int, expected_s: float, *seconds: float, device: str = "", gib: float = 0.0, asked: str = "") -> RunSpec:
    """A fold that is trained to its end, of whose epochs `expected_s` each were expected; with `gib` on GPUs that took so much."""
    workers = TWO_CPUS.model_copy(update={"gpus": 1, "accelerator_type": asked}) if gib else TWO_CPUS
    run = FakeRun(base, f"toy-{fold}", fold, workers=workers, schedule=Schedule(epochs=len(seconds)))
    note_expected(run.folder, expected_s)
    note_expected(run.folder, 99.0)  # of a later start
    measured = {"device": device, "gpu_memory_gib": gib}
    run.rows = [epoch_row(epoch).model_copy(update={"epoch_s": each, **measured}) for epoch, each in enumerate(seconds)]
    run.finish()
    return run.spec


def test_the_plan_says_how_wrong_the_expectations_of_the_last_runs_were(tmp_path: Path) -> None:
    """By hand: 10 % longer, 20 % shorter."""
    specs = [trained(tmp_path, 0, 10.0, 11.0, 11.0), trained(tmp_path, 1, 10.0, 8.0, 8.0), made(tmp_path, 2)]
    report = plan_of_runs("e", specs, [NodeResources("n", CPUS, CPUS)])
    assert sorted(report.estimate_errors) == pytest.approx([-0.2, 0.1])
    assert estimate_line(report).endswith("Such expectations were within 20% in the last 2 runs.")


def test_an_unfinished_run_and_one_of_which_nothing_was_expected_record_no_error(tmp_path: Path) -> None:
    unfinished = FakeRun(tmp_path, "a", 0)
    note_expected(unfinished.folder, 1.0)
    assert estimate_metrics(unfinished.folder, unfinished.epoch()) == {}
    other = FakeRun(tmp_path, "b", 1)
    other.epoch()
    assert estimate_error(other.folder, other.finish()) is None


def test_epochs_are_taken_of_the_kind_of_device_that_trained_last(tmp_path: Path) -> None:
    trained(tmp_path, 0, 1.0, 10.0, 10.0, device="slow")
    last = trained(tmp_path, 1, 1.0, 2.0, 2.0, device="fast")
    committed = newest_committed(RunFolder(last.run_folder))
    assert committed is not None
    rows = tuple(row.model_copy(update={"ended_unix": row.ended_unix + 1e6}) for row in committed.history)
    newer = committed.model_copy(update={"history": rows})
    (RunFolder(last.run_folder).state / f"{committed.stem}.json").write_text(newer.model_dump_json())
    spec = made(tmp_path, 2)
    assert Measured().epoch_time(spec) == EpochTime(2.0, "fast")
    report = plan_of_runs("e", [spec], [NodeResources("n", CPUS, CPUS)])
    assert "measured before on fast: " in estimate_line(report)


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("A100", EpochTime(2.0, "NVIDIA A100-SXM4-40GB", 7.5)),
        ("H20", None),
        ("H200", EpochTime(1.0, "NVIDIA H200", 9.0)),
        ("our-own", EpochTime(1.0, "NVIDIA H200", 9.0)),
        ("T4", None),
    ],
)
def test_a_kind_of_gpu_is_expected_to_take_what_that_kind_took(tmp_path: Path, kind: str, found: EpochTime | None) -> None:
    trained(tmp_path, 0, 1.0, 2.0, 2.0, device="NVIDIA A100-SXM4-40GB", gib=7.5)
    trained(tmp_path, 1, 1.0, 1.0, 1.0, device="NVIDIA H200", gib=9.0, asked="our-own")
    workers = TWO_CPUS.model_copy(update={"gpus": 1, "accelerator_type": kind})
    assert Measured().epoch_time(made(tmp_path, 2).model_copy(update={"workers": workers})) == found


@pytest.mark.parametrize(
    ("asked", "is_believed"),
    [("A100", False), ("GeForce-RTX-5090", False), ("A100-80GB", False), ("T4-16GB", True), ("fast", True)],
)
def test_what_a_run_asks_for_now_is_not_what_trained_its_epochs(tmp_path: Path, asked: str, is_believed: bool) -> None:
    """It was trained on a T4, and submitted again for another kind."""
    trained(tmp_path, 0, 1.0, 9.0, 9.0, device="Tesla T4 80GB", gib=7.5, asked=asked)
    workers = TWO_CPUS.model_copy(update={"gpus": 1, "accelerator_type": asked})
    found = Measured().epoch_s(made(tmp_path, 2).model_copy(update={"workers": workers}))
    assert found == (9.0 if is_believed else None)


def test_the_plan_shows_the_peak_of_gpu_memory_that_was_measured(tmp_path: Path) -> None:
    trained(tmp_path, 0, 1.0, 6.0, device="NVIDIA A100-SXM4-40GB", gib=7.53)
    spec = made(tmp_path, 1).model_copy(update={"workers": TWO_CPUS.model_copy(update={"gpus": 1})})
    gpus = {"CPU": 8.0, "GPU": 2.0}
    report = plan_of_runs("e", [spec], [NodeResources("n", gpus, gpus)])
    assert report.rows[0].gpu_memory_gib == 7.53
    assert "measured before on NVIDIA A100-SXM4-40GB: 1.0 min a run" in estimate_line(report)
    assert estimate_line(report).endswith("At its peak a worker took 7.5 GiB of its GPU's memory.")
    on_cpus = plan_of_runs("e", [made(tmp_path, 2, 1.0), made(tmp_path, 3)], [NodeResources("n", CPUS, CPUS)])
    assert [row.gpu_memory_gib for row in on_cpus.rows] == [None, None]


def test_a_price_per_gpu_hour_gives_the_cost(tmp_path: Path) -> None:
    report = plan_of_runs("e", [made(tmp_path, 0, 3600.0, 3600.0)], [NodeResources("n", CPUS, CPUS)])
    (row,) = report.rows
    on_gpus = row.model_copy(update={"spec": row.spec.model_copy(update={"workers": WorkerSpec(count=2, gpus=1, cpus=1)})})
    priced = report.model_copy(update={"rows": (on_gpus,), "cost_per_gpu_hour": 2.5})
    assert "16.0 GPU-hours in all (cost: 40.00, at 2.5 per GPU-hour)" in estimate_line(priced)


def waiting(base: Path, fold: int, waited_s: float, ended_unix: float) -> RunSpec:
    """A fold of whose epoch of 100 s the steps waited so long for 200 s of augmentation."""
    run = FakeRun(base, f"toy-{fold}", fold, workers=TWO_CPUS, schedule=Schedule(epochs=10))
    measured = {"train_s": 100.0, "val_s": 0.0, "longest_wait_s": waited_s, "loaders": 2, "prepare_s": 200.0, "prepare_cpu_s": 200.0}
    run.rows = [epoch_row(0).model_copy(update=measured | {"read_wait_s": 0.0, "ended_unix": ended_unix})]
    run.commit()
    return run.spec


def test_a_plan_names_what_will_limit_the_training_and_how_many_loaders_are_enough(tmp_path: Path) -> None:
    """The fold that trained last: steps of 40 s, five loaders; the other one would have needed three."""
    waiting(tmp_path, 0, waited_s=60.0, ended_unix=2e9)
    waiting(tmp_path, 1, waited_s=20.0, ended_unix=1e9)
    open_run = made(tmp_path, 2)
    few = open_run.model_copy(update={"loader": LoaderSpec(actors=2, most=4)})
    many = open_run.model_copy(update={"loader": LoaderSpec(actors=5)})
    (row,) = plan_of_runs("e", [few], [NodeResources("n", CPUS, CPUS)]).rows
    assert row.limited_by == "CPU augmentation"
    (line,) = limit_lines(plan_of_runs("e", [few], [NodeResources("n", CPUS, CPUS)]))
    assert line.startswith(
        f"Expected of {few.model}, by epochs that were measured before: limited by: CPU augmentation (20% of the time waiting for data); "
        "5 loader actors with a core each would be enough for a worker, it has 4: raise workers.cpus and loader.actors, or"
    )
    (line,) = limit_lines(plan_of_runs("e", [many], [NodeResources("n", CPUS, CPUS)]))
    assert line.endswith("limited by: steps on the CPU; 5 loader actors with a core each are enough for a worker, it has 5.")
    assert limit_lines(plan_of_runs("e", [made(tmp_path / "other", 0)], [NodeResources("n", CPUS, CPUS)])) == []
