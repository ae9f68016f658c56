"""Drills: what may be asked, and what counts as lost."""

from pathlib import Path

import pytest

from orchestrator.cluster.processes import ProcessRecord
from orchestrator.drill.dataset import CONFIGURATION, PLANS, write_drill_dataset
from orchestrator.drill.order import Report, Strike, differences, order_of
from orchestrator.errors import ConfigError
from trainers.contract.commits import EpochRow

MLFLOW = ProcessRecord(name="MLflow server", pid=1, started_unix=0.0, mark="x", port=1)


def row(epoch: int, train_loss: float = 0.5, mean: float = 0.7) -> EpochRow:
    return EpochRow(
        epoch=epoch,
        fencing_token=1,
        started_unix=0,
        ended_unix=1,
        train_loss=train_loss,
        val_loss=0.4,
        pseudo_dice=(mean,),
        pseudo_dice_mean=mean,
        ema_pseudo_dice=0.6,
        learning_rate=0.01,
        world_size=2,
        epoch_s=1,
        train_s=1,
        val_s=0,
        wait_data_s=0,
        save_s=0,
        samples_per_s=1,
        gpu_memory_gib=0,
    )


def test_a_worker_and_the_driver_are_killed_unless_something_else_is_named() -> None:
    assert order_of([]).parts == ("worker", "driver")
    assert order_of(["node", "node"]).parts == ("node",)


def test_the_toy_run_has_epochs_before_between_and_after_the_strikes() -> None:
    order = order_of(["worker", "driver"])
    assert order.epochs == 9
    assert [order.epoch_of(0), order.epoch_of(1)] == [2, 5]


def test_only_the_local_mlflow_server_may_be_killed() -> None:
    with pytest.raises(ConfigError, match="only the MLflow server that `nnfleet up` started"):
        order_of(["tracking"])
    assert order_of(["tracking"], mlflow=MLFLOW).parts == ("tracking",)
    assert order_of(["tracking", "worker"], mlflow=MLFLOW).parts == ("worker", "tracking"), "training goes on without it, to its end"


def test_an_unknown_part_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match="'head' is nothing that a drill kills. Name any of: worker, node, driver, tracking"):
        order_of(["head"])


def test_whatever_differs_is_named() -> None:
    whole = [row(0), row(1)]
    assert differences(whole, whole, "a", "a") == []
    assert differences([row(0), row(1, train_loss=0.6)], whole, "a", "a") == ["epoch 1: train_loss 0.6 instead of 0.5"]
    assert differences([row(0)], whole, "a", "a") == ["epochs [0] instead of [0, 1]"]
    assert differences(whole, whole, "a", "b") == ["weights a instead of b (SHA-256)"]


def test_an_epoch_without_foreground_is_no_difference() -> None:
    assert differences([row(0, mean=float("nan"))], [row(0, mean=float("nan"))], "a", "a") == []


def test_nothing_is_lost_only_if_every_part_recovered_and_all_is_equal() -> None:
    fine = Strike(part="worker", what="", moment="", recovery_s=9.0)
    assert Report(strikes=(fine,)).is_nothing_lost
    assert not Report(strikes=(fine,), differences=("x",)).is_nothing_lost
    assert not Report(strikes=(fine.model_copy(update={"recovery_s": None}),)).is_nothing_lost
    assert not Report(strikes=(fine.model_copy(update={"lost": "a state"}),)).is_nothing_lost


def test_two_drill_datasets_hold_the_same_numbers_and_can_be_planned(tmp_path: Path) -> None:
    from orchestrator.dataset.preflight import check_run
    from orchestrator.experiment.expansion import expand
    from orchestrator.experiment.model import single_training

    for dataset in ("Dataset998_A", "Dataset999_B"):
        write_drill_dataset(tmp_path / "pre", dataset)
    a, b = (tmp_path / "pre" / dataset / f"{PLANS}_{CONFIGURATION}" / "drill_0.b2nd" for dataset in ("Dataset998_A", "Dataset999_B"))
    assert a.read_bytes() == b.read_bytes()
    experiment = single_training(
        "Dataset999_B",
        CONFIGURATION,
        0,
        workers={"count": 2, "gpus": 0, "cpus": 1},
        loader={"actors": 1},
        nnUNet_preprocessed=str(tmp_path / "pre"),
        nnUNet_results=str(tmp_path / "results"),
    )
    (spec,) = expand(experiment)
    assert check_run(spec) == []
