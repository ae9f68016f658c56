"""What limits a training, from measured epochs."""

import math
import time

import pytest

from tests.fake_run import epoch_row
from trainers.contract.bottleneck import describe_limit, expected_limit, limit_of
from trainers.contract.commits import EpochRow
from trainers.data.dataset import IdleClock


def row(*, waited_s: float, cpu_s: float, read_s: float = 0.0, prepare_s: float | None = None, gpu_gib: float = 4.0) -> EpochRow:
    """An epoch of 100 s with two loaders."""
    measured = {
        "train_s": 80.0,
        "val_s": 20.0,
        "longest_wait_s": waited_s,
        "loaders": 2,
        "prepare_s": cpu_s + read_s if prepare_s is None else prepare_s,
        "prepare_cpu_s": cpu_s,
        "read_wait_s": read_s,
        "gpu_memory_gib": gpu_gib,
    }
    return epoch_row(0).model_copy(update=measured)


def test_steps_that_hardly_wait_are_what_limits() -> None:
    limit = limit_of([row(waited_s=4, cpu_s=90)])
    assert limit is not None
    assert (limit.name, limit.enough, limit.advice) == ("GPU", 1, "")
    on_cpu = limit_of([row(waited_s=4, cpu_s=190, gpu_gib=0)])
    assert on_cpu is not None
    assert (on_cpu.name, on_cpu.enough, on_cpu.text) == ("steps on the CPU", 2, "limited by: steps on the CPU")


def test_steps_that_wait_for_augmentation_are_given_the_loaders_that_would_be_enough() -> None:
    """200 CPU seconds of preparation while the steps computed for 40 s: five cores."""
    limit = limit_of([row(waited_s=60, cpu_s=200)])
    assert limit is not None
    assert (limit.name, limit.enough, limit.loaders) == ("CPU augmentation", 5, 2)
    assert limit.text == (
        "limited by: CPU augmentation (60% of the time waiting for data); 5 loader actors with a core each would be enough for a worker, "
        "it has 2: raise workers.cpus and loader.actors, or, where its node has no more CPUs, set loader.placement: cluster, which takes "
        "those of other nodes."
    )
    assert describe_limit([row(waited_s=60, cpu_s=200)], "cluster").endswith("it has 2: raise loader.actors, which take CPUs of any node.")


def test_loaders_that_are_enough_and_only_begin_are_not_to_be_more() -> None:
    limit = limit_of([row(waited_s=94, cpu_s=1)])
    assert limit is not None
    assert limit.text == (
        "limited by: CPU augmentation (94% of the time waiting for data); its loader actors were starting, or single batches "
        "take long (loader.prefetch prepares more of them ahead)."
    )


def test_a_slow_disk_and_crowded_cores_are_not_taken_for_augmentation() -> None:
    disk = limit_of([row(waited_s=50, cpu_s=40, read_s=60)])
    assert disk is not None
    assert disk.name == "disk"
    assert "faster disk" in disk.advice
    crowded = limit_of([row(waited_s=50, cpu_s=50, prepare_s=200)])
    assert crowded is not None
    assert (crowded.name, crowded.core) == ("crowded cores", 0.25)
    assert "25% of a core each" in crowded.advice


def test_epochs_are_judged_together_and_those_of_before_are_not_known() -> None:
    limit = limit_of([row(waited_s=0, cpu_s=10), row(waited_s=40, cpu_s=170)])
    assert limit is not None
    assert (limit.name, limit.waited, limit.enough) == ("CPU augmentation", 0.2, 2)
    older = epoch_row(0)
    assert math.isnan(older.prepare_s)
    assert limit_of([older]) is None
    assert limit_of([]) is None
    assert describe_limit([older]) == "what limits it was not measured"


def test_epochs_in_which_nothing_but_waiting_happened_ask_for_many_loaders_and_no_division_fails() -> None:
    limit = limit_of([row(waited_s=100, cpu_s=100)])
    assert limit is not None
    assert limit.enough == 100


def test_waiting_counts_as_idle_and_computing_does_not() -> None:
    clock = IdleClock()
    with clock:
        time.sleep(0.05)
    slept_s = clock.seconds
    assert slept_s >= 0.045
    with clock:
        ends = time.thread_time() + 0.05
        while time.thread_time() < ends:
            pass
    computed_s = clock.seconds - slept_s
    with pytest.raises(OSError, match="away"):
        _sleep_and_fail(clock)
    assert clock.seconds >= slept_s + computed_s + 0.015


def _sleep_and_fail(clock: IdleClock) -> None:
    with clock:
        time.sleep(0.02)
        raise OSError("away")


def test_a_training_with_more_loaders_than_an_earlier_one_is_expected_to_wait_less() -> None:
    """An epoch of 100 s of which 60 waited for 200 s of CPU: steps of 40 s, so 5 loaders are enough, and 4 take 50 s."""
    earlier = [row(waited_s=60, cpu_s=200)]
    same, four, five = (expected_limit(earlier, loaders) for loaders in (2, 4, 5))
    assert same is not None
    assert four is not None
    assert five is not None
    assert [(found.name, found.enough) for found in (same, four)] == [("CPU augmentation", 5)] * 2
    assert [same.waited, four.waited] == pytest.approx([0.6, 0.2])
    assert four.beforehand.startswith("limited by: CPU augmentation (20% of the time waiting for data); 5 loader actors with a core each ")
    assert "it has 4: raise workers.cpus" in four.beforehand
    assert five.beforehand == "limited by: GPU; 5 loader actors with a core each are enough for a worker, it has 5."


def test_a_training_with_fewer_loaders_is_expected_to_wait_though_the_earlier_one_did_not() -> None:
    """Steps of 96 s and 190 s of CPU: one loader takes 190 s, of which 94 are waited for."""
    one = expected_limit([row(waited_s=4, cpu_s=190)], 1)
    assert one is not None
    assert (one.name, one.enough) == ("CPU augmentation", 2)
    assert one.waited == pytest.approx(94 / 190)


def test_cores_that_others_took_are_expected_to_be_taken_again_and_what_was_not_measured_is_not_known() -> None:
    crowded = expected_limit([row(waited_s=50, cpu_s=50, prepare_s=200)], 6)
    assert crowded is not None
    assert (crowded.name, crowded.loaders) == ("crowded cores", 6)
    disk = expected_limit([row(waited_s=50, cpu_s=40, read_s=60)], 1)
    assert disk is not None
    assert disk.name == "disk"
    assert disk.waited == pytest.approx(0.5)
    assert expected_limit([], 6) is None
    assert expected_limit([epoch_row(0)], 6) is None


def test_a_disk_reads_no_faster_for_more_loaders() -> None:
    """Steps of 50 s of 100, for which four loaders read 150 s and computed 100 s: eight would take 32 s, were it not for the disk."""
    earlier = [row(waited_s=50, cpu_s=100, read_s=150).model_copy(update={"loaders": 4})]
    two, three, four, eight = (expected_limit(earlier, loaders) for loaders in (2, 3, 4, 8))
    assert two is not None
    assert three is not None
    assert four is not None
    assert eight is not None
    assert [found.name for found in (two, three, four, eight)] == ["disk"] * 4
    assert [found.waited for found in (two, three, four, eight)] == pytest.approx([0.6, 0.5, 0.5, 0.5])
    assert "or raise loader.actors; 5 loader actors with a core each would be enough for a worker, it has 4." in four.beforehand
    assert eight.beforehand == (
        "limited by: disk (50% of the time waiting for data); put nnUNet_preprocessed on a faster disk: it has loader actors enough."
    )


def test_fewer_loaders_than_crowded_ones_may_be_too_few_with_a_core_each() -> None:
    """150 CPU seconds for 50 s of steps: two loaders take 75 s; of four the cores are expected to be taken again."""
    earlier = [row(waited_s=50, cpu_s=150, prepare_s=1000).model_copy(update={"loaders": 12})]
    two, four, twelve = (expected_limit(earlier, loaders) for loaders in (2, 4, 12))
    assert two is not None
    assert four is not None
    assert twelve is not None
    assert [(found.name, found.loaders) for found in (two, four, twelve)] == [
        ("CPU augmentation", 2),
        ("crowded cores", 4),
        ("crowded cores", 12),
    ]
    assert two.waited == pytest.approx(25 / 75)
