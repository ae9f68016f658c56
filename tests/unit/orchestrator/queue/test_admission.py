"""Who starts next: truth tables of the pure policies."""

from orchestrator.queue.admission import NODES_RETURN_S, decide, growth, ledger, schedule
from orchestrator.queue.forecast import expected_starts
from orchestrator.queue.gang_fit import NodeResources, Reservation
from orchestrator.queue.order import Waiting, ordered
from tests.fake_run import job_record as job
from trainers.contract.run_spec import WorkerSpec

GPU, TWO_GPUS, FOUR_GPUS = (WorkerSpec(count=n, gpus=1, cpus=4) for n in (1, 2, 4))
CPU, TWO_CPUS = (WorkerSpec(count=n, gpus=0, cpus=1) for n in (1, 2))


def node(name: str = "n1", *, cpus: float = 16, gpus: float = 2, free_gpus: float | None = None) -> NodeResources:
    total = {"CPU": cpus, "GPU": gpus}
    return NodeResources(name, total, {**total, "GPU": gpus if free_gpus is None else free_gpus})


def waits(
    key: str, workers: WorkerSpec = GPU, *, since: float = 0, position: int = 0, campaign: str = "c", resuming: bool = False
) -> Waiting:
    return Waiting(
        run_key=key, address=f"1/x/t/{key}", campaign=campaign, workers=workers, since_unix=since, position=position, is_resuming=resuming
    )


def queue(*workers: WorkerSpec) -> list[Waiting]:
    return [waits(f"r{i}", w, position=i) for i, w in enumerate(workers)]


def started(waiting: list[Waiting], nodes: list[NodeResources], reserved: list[Reservation] | None = None) -> tuple[str, ...]:
    return decide(waiting, nodes, reserved or [], [w.run_key for w in waiting]).start


def test_first_in_first_out_until_the_cluster_is_full() -> None:
    assert started(queue(GPU, GPU, GPU), [node(gpus=2)]) == ("r0", "r1")


def test_a_gang_starts_whole_or_not_at_all() -> None:
    assert started(queue(TWO_GPUS), [node(gpus=2)], [Reservation("other", GPU)]) == ()


def test_a_large_gang_at_the_front_holds_back_small_ones_that_would_fit() -> None:
    decision = decide(queue(TWO_GPUS, GPU), [node(gpus=2)], [Reservation("other", GPU)], ["r0", "r1"])
    assert decision.start == ()
    assert "1/x/t/r0" in decision.because["r1"]
    assert "2 workers" in decision.because["r0"]


def test_a_gang_that_no_node_can_ever_hold_holds_nobody_back() -> None:
    assert started(queue(FOUR_GPUS, GPU), [node(gpus=2)]) == ("r1",)


def test_a_gang_may_spread_over_nodes() -> None:
    assert started(queue(FOUR_GPUS), [node("a"), node("b")]) == ("r0",)


def test_a_placed_reservation_is_not_counted_twice() -> None:
    busy = [node(gpus=2, free_gpus=1)]
    assert started(queue(GPU), busy, [Reservation("other", GPU, is_placed=True)]) == ("r0",)
    assert started(queue(GPU), busy, [Reservation("other", GPU, is_placed=False)]) == ()


def test_foreign_work_on_the_cluster_is_respected() -> None:
    assert started(queue(GPU), [node(gpus=2, free_gpus=0)]) == ()


def test_cpu_gangs_need_no_gpu() -> None:
    assert started(queue(TWO_CPUS, CPU), [node(cpus=2, gpus=0)]) == ("r0",)


def test_a_run_that_lost_its_job_goes_before_everything_new() -> None:
    waiting = [waits("old", since=0), waits("lost", since=9, resuming=True)]
    assert started(waiting, [node(gpus=1)]) == ("lost",)


def test_a_resuming_run_starts_inside_its_own_reservation() -> None:
    assert started([waits("lost", TWO_GPUS, resuming=True)], [node(gpus=2)], [Reservation("lost", TWO_GPUS)]) == ("lost",)


NOW = 1e9


def idle(key: str, workers: WorkerSpec, since_s: float = 60) -> Reservation:
    """What a run holds whose last job ended so long ago."""
    return Reservation(key, workers, idle_unix=NOW - since_s)


def starts_now(waiting: list[Waiting], nodes: list[NodeResources], reserved: list[Reservation]) -> tuple[str, ...]:
    return decide(waiting, nodes, reserved, [w.run_key for w in waiting], NOW).start


def test_of_gangs_that_a_lost_node_leaves_no_capacity_for_together_the_first_goes_on() -> None:
    """Two gangs of two, their jobs dead, and two of four GPUs left: neither waits for what the other one has reserved."""
    waiting = [waits("a", TWO_GPUS, resuming=True), waits("b", TWO_GPUS, since=1, resuming=True)]
    reserved = [idle("a", TWO_GPUS), idle("b", TWO_GPUS)]
    found = schedule(waiting, [node(gpus=2)], reserved, NOW)
    assert {key: outcome.when for key, outcome in found.items()} == {"a": "now", "b": "later"}
    assert starts_now(waiting[1:], [node(gpus=2)], [Reservation("a", TWO_GPUS), reserved[1]]) == (), "a job of that one lives"
    refused = waiting[0].model_copy(update={"is_refused": True})
    assert starts_now([refused, waiting[1]], [node(gpus=2)], reserved) == ("b",)


def test_what_a_run_without_a_job_has_reserved_is_kept_from_everything_new() -> None:
    lost, new = waits("lost", TWO_GPUS, since=9, resuming=True), waits("new", GPU)
    held = idle("lost", TWO_GPUS, since_s=10 * NODES_RETURN_S)
    assert starts_now([new, lost], [node(gpus=2)], [held]) == ("lost",)
    assert starts_now([new, lost], [node(gpus=2, free_gpus=1)], [held]) == (), "other work takes a GPU of it"
    moved = waits("moved", GPU, since=1, resuming=True)
    assert starts_now([moved, lost], [node(gpus=2)], [held]) == ("lost",), "it goes before everything new, and has reserved nothing"


def test_a_gang_whose_node_boots_keeps_its_place_and_one_whose_node_is_gone_holds_nobody_back() -> None:
    waiting = [waits("lost", TWO_GPUS, resuming=True), waits("new", GPU)]
    soon, late = idle("lost", TWO_GPUS, NODES_RETURN_S - 1), idle("lost", TWO_GPUS, NODES_RETURN_S + 1)
    assert starts_now(waiting, [node(gpus=1)], [soon]) == ()
    assert starts_now(waiting, [node(gpus=1)], [late]) == ("new",)
    assert expected_starts(waiting[1:], [node(gpus=1)], [late], NOW) == {"new": NOW}
    assert starts_now(waiting, [node(gpus=1)], [Reservation("lost", TWO_GPUS)]) == (), "its job lives and waits for the node"
    assert starts_now(waiting, [node(gpus=2)], [late]) == ("lost",), "the node is back"
    assert starts_now(waiting, [node(gpus=2, free_gpus=1)], [late, Reservation("small", GPU, is_placed=True)]) == ()


def test_a_gang_whose_node_boots_keeps_no_other_from_going_on_with_what_it_has() -> None:
    waiting = [waits("lost", TWO_GPUS, resuming=True), waits("small", GPU, since=1, resuming=True)]
    assert starts_now(waiting, [node(gpus=1)], [idle("lost", TWO_GPUS), idle("small", GPU)]) == ("small",)


def test_another_campaigns_run_keeps_its_place_and_its_room() -> None:
    waiting = [waits("theirs", since=0, campaign="a"), waits("mine", since=5, campaign="b")]
    assert decide(waiting, [node(gpus=1)], [], ["mine"]).start == ()
    assert decide(waiting, [node(gpus=2)], [], ["mine"]).start == ("mine",)


def test_a_run_that_two_campaigns_want_stands_once_at_its_better_place() -> None:
    waiting = [waits("r", since=0, campaign="a"), waits("s", since=1), waits("r", since=2, campaign="b")]
    assert [w.run_key for w in ordered(waiting)] == ["r", "s"]


def test_the_ledger_holds_one_reservation_per_run_from_training_to_the_end_of_validation() -> None:
    assert [r.run_key for r in ledger([job(), job("validate")], (), ())] == ["r"]
    assert ledger([job(state="SUCCEEDED")], (), ()) == []
    assert ledger([job(state="SUCCEEDED")], (), [Reservation("r", GPU)]) == [Reservation("r", GPU)]
    assert ledger([job()], {"r"}, ()) == [Reservation("r", GPU, is_placed=True)]


ELASTIC = WorkerSpec(min=1, max=3, gpus=1, cpus=4)


def test_an_elastic_run_starts_with_its_fewest_and_others_start_beside_it() -> None:
    assert started(queue(ELASTIC, GPU, GPU), [node(gpus=2)]) == ("r0", "r1")


def held_by(key: str, size: int) -> Reservation:
    return Reservation(key, ELASTIC, is_placed=True, size=size)


def test_an_elastic_run_grows_into_what_is_free() -> None:
    assert growth({"e": 1}, [], [node(gpus=2, free_gpus=1)], [held_by("e", 1)]) == {"e": 2}
    assert growth({"e": 1}, [], [node(cpus=32, gpus=8, free_gpus=7)], [held_by("e", 1)]) == {"e": 3}
    assert growth({"e": 2}, [], [node(gpus=2, free_gpus=0)], [held_by("e", 2)]) == {"e": 2}


def test_no_elastic_run_grows_while_another_waits_that_the_cluster_can_hold() -> None:
    nodes, reserved = [node(gpus=2, free_gpus=1)], [held_by("e", 2)]  # the second was granted and not taken yet
    assert growth({"e": 1}, [waits("w", TWO_GPUS)], nodes, reserved) == {"e": 1}
    assert growth({"e": 1}, [waits("w", FOUR_GPUS)], nodes, reserved) == {"e": 2}


def test_what_one_elastic_run_may_take_is_not_offered_to_the_next() -> None:
    nodes = [node(cpus=16, gpus=4, free_gpus=2)]
    assert growth({"a": 1, "b": 1}, [], nodes, [held_by("a", 1), held_by("b", 1)]) == {"a": 3, "b": 1}


def test_growth_respects_runs_that_are_about_to_start_and_those_that_validate() -> None:
    nodes = [node(gpus=2, free_gpus=1)]
    assert growth({"e": 1}, [], nodes, [held_by("e", 1), Reservation("new", GPU)]) == {"e": 1}
    assert growth({"e": 1}, [], nodes, [held_by("e", 1), Reservation("validating", GPU, is_placed=True)]) == {"e": 1}


def test_the_ledger_holds_of_an_elastic_run_what_it_has_or_may_take() -> None:
    training = job().model_copy(update={"reserved": ELASTIC})
    assert [r.bundles for r in ledger([training], {"r"}, (), {"r": 3})] == [3]
    assert [r.bundles for r in ledger([training], {"r"}, ())] == [1]
    validating = job("validate").model_copy(update={"reserved": ELASTIC})
    assert [r.bundles for r in ledger([validating], (), (), {"r": 3})] == [1]
    assert [r.bundles for r in ledger([job()], {"r"}, (), {"r": 3})] == [1]


def cpus(name: str, count: float, *, gpus: float = 0) -> NodeResources:
    return NodeResources(name, {"CPU": count, "GPU": gpus}, {"CPU": count, "GPU": gpus})


ANYWHERE = WorkerSpec(count=2, gpus=1, cpus=2, loader_cpus=3)
"""Two workers of a GPU and two CPUs each, with six loader actors on whatever nodes."""


def test_loaders_anywhere_are_part_of_what_a_gang_needs_and_of_what_it_holds() -> None:
    nodes = [cpus("gpu", 4, gpus=2), cpus("cpu", 6)]
    assert started(queue(ANYWHERE), nodes) == ("r0",)
    assert started(queue(ANYWHERE), [nodes[0], cpus("cpu", 5)]) == ()
    assert started(queue(CPU, ANYWHERE), nodes) == ("r0",)
    assert started(queue(ANYWHERE, CPU), nodes) == ("r0",)
    assert started(queue(TWO_CPUS), nodes, [Reservation("held", ANYWHERE)]) == ()
    assert started(queue(TWO_CPUS), [*nodes, cpus("more", 2)], [Reservation("held", ANYWHERE)]) == ("r0",)


def test_loaders_take_single_cpus_of_nodes_without_gpus_first() -> None:
    """Each node has one CPU to spare for a loader; a worker of two CPUs and a GPU has a place beside them."""
    one = WorkerSpec(count=1, gpus=1, cpus=2, loader_cpus=2)
    nodes = [cpus("gpu", 4, gpus=2), cpus("a", 1), cpus("b", 1)]
    assert started(queue(WorkerSpec(count=1, gpus=1, cpus=2)), nodes, [Reservation("held", one)]) == ("r0",)
    assert started(queue(one), [cpus("gpu", 3, gpus=1), cpus("a", 1)]) == ("r0",)


def test_what_a_cluster_never_holds_with_its_loaders_is_named_with_what_to_lower() -> None:
    decision = decide(queue(ANYWHERE), [cpus("gpu", 4, gpus=2), cpus("cpu", 5)], [], ["r0"])
    assert decision.never == {"r0"}
    assert "2 workers x (1 GPU, 2 CPUs, 3 CPUs on any node for its loaders); the cluster has 9 CPUs in all." in decision.because["r0"]
    assert "Lower workers.count or workers.cpus or loader.actors, or start more nodes." in decision.because["r0"]


def test_an_elastic_gang_grows_only_as_far_as_there_are_cpus_for_its_loaders() -> None:
    elastic = WorkerSpec(min=1, max=4, gpus=0, cpus=1, loader_cpus=2)
    assert growth({"r": 1}, [], [cpus("a", 4), cpus("b", 6)], [Reservation("r", elastic, size=1)]) == {"r": 3}


def test_nothing_with_an_unknown_end_passes_a_gang_whose_loaders_may_use_any_cpu() -> None:
    held = Reservation("held", GPU)
    nodes = [cpus("gpu", 9, gpus=2), cpus("cpu", 8)]
    assert started(queue(ANYWHERE, CPU), nodes, [held]) == ()
    assert started(queue(TWO_GPUS, CPU), nodes, [held]) == ("r1",)
    loaded = WorkerSpec(count=1, gpus=0, cpus=1, loader_cpus=9)
    assert started(queue(TWO_GPUS, loaded), nodes, [held]) == ()
