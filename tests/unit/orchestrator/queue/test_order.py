"""Priorities, and fair shares between users: worked by hand."""

from orchestrator.queue.gang_fit import NodeResources, Reservation
from orchestrator.queue.order import LIFT_S, Waiting, ordered
from trainers.contract.run_spec import PRIORITY, WorkerSpec

GPU, FOUR_GPUS = WorkerSpec(count=1, gpus=1, cpus=1), WorkerSpec(count=4, gpus=1, cpus=1)
NODES = [NodeResources("n", {"GPU": 8.0, "CPU": 64.0}, {"GPU": 8.0, "CPU": 64.0})]


def waits(
    key: str,
    user: str = "ann",
    *,
    workers: WorkerSpec = GPU,
    priority: int = PRIORITY,
    since: float = 0,
    first: float = 0,
    resuming: bool = False,
) -> Waiting:
    return Waiting(
        run_key=key,
        address=key,
        campaign=user,
        workers=workers,
        since_unix=since,
        user=user,
        priority=priority,
        first_unix=first,
        is_resuming=resuming,
    )


def order(*waiting: Waiting, held: list[Reservation] | None = None, now: float = 0) -> str:
    return " ".join(run.run_key for run in ordered(waiting, NODES, held or [], now))


def test_the_higher_priority_goes_first_and_inside_it_the_older_campaign() -> None:
    assert order(waits("old"), waits("young", since=9), waits("urgent", since=99, priority=80), waits("low", priority=0)) == (
        "urgent old young low"
    )


def test_a_run_whose_job_died_goes_before_every_priority() -> None:
    assert order(waits("urgent", priority=100), waits("died", priority=0, resuming=True)) == "died urgent"


def test_users_take_turns_while_both_wait() -> None:
    early = [waits(f"a{n}", since=n) for n in range(3)]
    late = [waits(f"b{n}", "bob", since=50 + n) for n in range(2)]
    assert order(*early, *late) == "a0 b0 a1 b1 a2"


def test_what_a_user_holds_already_counts() -> None:
    held = [Reservation("x", FOUR_GPUS, user="ann")]
    assert order(waits("a"), waits("b0", "bob", since=9), waits("b1", "bob", since=10), held=held) == "b0 b1 a"


def test_a_large_gang_counts_as_what_it_takes() -> None:
    late = [waits(f"b{n}", "bob", since=50 + n) for n in range(5)]
    assert order(waits("a0", workers=FOUR_GPUS), waits("a1", since=1), *late) == "a0 b0 b1 b2 b3 a1 b4"


def test_the_scarcer_resource_counts() -> None:
    """A CPU gang on half of the cores takes half of the cluster, as half of the GPUs do."""
    cores = WorkerSpec(count=1, gpus=0, cpus=32)
    held = [Reservation("x", cores, user="ann"), Reservation("y", GPU, user="bob")]
    assert order(waits("a"), waits("b", "bob", since=9), held=held) == "b a"


def test_a_run_moved_to_the_front_passes_its_own_users_runs_alone() -> None:
    runs = [waits("a0", priority=70), waits("a1", priority=70, since=1), waits("a2", since=2, first=5), waits("b", "bob", priority=60)]
    assert order(*runs) == "a2 a0 a1 b"
    assert order(*runs, waits("c", "cid", priority=90)) == "c a2 a0 a1 b"


def test_who_is_served_by_priority_keeps_nobody_waiting_for_ever() -> None:
    held = [Reservation("x", GPU, user="ann")]
    runs = [waits("a", priority=60), waits("b", "bob", priority=50)]
    assert order(*runs, held=held, now=9 * LIFT_S) == "a b"
    assert order(*runs, held=held, now=11 * LIFT_S) == "b a"
