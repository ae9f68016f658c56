"""Who may start before the first run in line: worked by hand, at the time 1000."""

from orchestrator.queue.admission import Decision, decide
from orchestrator.queue.backfill import UNKNOWN_HOLDS_S
from orchestrator.queue.gang_fit import NodeResources, Reservation
from orchestrator.queue.order import Waiting
from trainers.contract.run_spec import WorkerSpec

GPU, TWO_GPUS = WorkerSpec(count=1, gpus=1, cpus=4), WorkerSpec(count=2, gpus=1, cpus=4)
THREE_GPUS = WorkerSpec(count=3, gpus=1, cpus=4)
NOW = 1000.0


def nodes(gpus: float = 2, cpus: float = 16) -> list[NodeResources]:
    total = {"GPU": gpus, "CPU": cpus}
    return [NodeResources("n", total, total)]


def waits(key: str, workers: WorkerSpec = GPU, takes: float | None = None, front: float = 0.0) -> Waiting:
    number = int(key[1:])
    return Waiting(
        run_key=key, address=key, campaign="c", workers=workers, since_unix=number, position=number, estimate_s=takes, front_unix=front
    )


def held(ends: float | None, key: str = "x", workers: WorkerSpec = GPU) -> Reservation:
    return Reservation(key, workers, ends_unix=ends)


def decided(*waiting: Waiting, reserved: list[Reservation], gpus: float = 2, cpus: float = 16) -> Decision:
    return decide(waiting, nodes(gpus, cpus), reserved, [run.run_key for run in waiting], NOW)


def test_a_run_that_ends_before_the_first_one_can_start_passes_it() -> None:
    large = waits("r0", TWO_GPUS)
    assert decided(large, waits("r1", takes=499), reserved=[held(1500)]).start == ("r1",)
    late = decided(large, waits("r1", takes=501), reserved=[held(1500)])
    assert late.start == ()
    assert late.first == "r0"


def test_a_run_that_fits_beside_the_first_one_even_then_passes_it() -> None:
    reserved = [held(1500, workers=TWO_GPUS)]
    large = waits("r0", TWO_GPUS)
    assert decided(large, waits("r1"), reserved=reserved, gpus=3).start == ("r1",)
    assert decided(large, waits("r1"), waits("r2"), reserved=[held(1500, workers=THREE_GPUS)], gpus=4).start == ("r1",)
    only_one = decided(waits("r0", THREE_GPUS), waits("r1"), waits("r2"), reserved=reserved, gpus=4)
    assert only_one.start == ("r1",), "what the first of them has taken beside the large one is not offered to the next"


def test_nothing_passes_while_the_first_ones_start_is_not_known() -> None:
    assert decided(waits("r0", TWO_GPUS), waits("r1", takes=1), reserved=[held(None)]).start == ()
    assert decided(waits("r0", TWO_GPUS), waits("r1", takes=1), reserved=[held(999)]).start == (), "its end is overdue: not known"


def test_what_ends_before_the_first_could_start_at_best_passes_an_unknown_end_too() -> None:
    reserved = [held(None, "x"), held(1500, "y")]
    assert decided(waits("r0", THREE_GPUS), waits("r1", takes=400), reserved=reserved, gpus=3).start == ("r1",)
    assert decided(waits("r0", THREE_GPUS), waits("r1", takes=600), reserved=reserved, gpus=3).start == ()


def test_what_takes_nothing_that_the_first_one_could_use_passes_an_unknown_end() -> None:
    cores = WorkerSpec(count=1, gpus=0, cpus=4)
    assert decided(waits("r0", TWO_GPUS), waits("r1", cores), reserved=[held(None)], cpus=12).start == ("r1",)
    assert decided(waits("r0", TWO_GPUS), waits("r1", cores), reserved=[held(None)], cpus=8).start == ()


def test_an_unknown_start_holds_others_back_for_hours_and_not_for_ever() -> None:
    reserved = [held(None)]
    short, long = (waits("r0", TWO_GPUS, front=NOW - UNKNOWN_HOLDS_S + s) for s in (1, -1))
    assert decided(short, waits("r1"), reserved=reserved).start == ()
    assert decided(long, waits("r1"), reserved=reserved).start == ("r1",)
    known = [held(NOW + 10 * UNKNOWN_HOLDS_S)]
    assert decided(long, waits("r1"), reserved=known).start == (), "a start that is known, however late, is kept"


def test_the_first_one_starts_before_all_others_once_it_fits() -> None:
    assert decided(waits("r0", TWO_GPUS), waits("r1", takes=1), reserved=[]).start == ("r0",)
