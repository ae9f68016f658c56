"""Gangs that ask for GPUs of a kind, beside others that take any."""

import pytest

from orchestrator.queue.admission import MOST_KEPT_BACK_S, decide, growth
from orchestrator.queue.demand import bundles_wanted
from orchestrator.queue.forecast import expected_starts
from orchestrator.queue.gang_fit import NodeResources, Reservation, describe, fit
from orchestrator.queue.order import Waiting
from trainers.contract.run_spec import WorkerSpec

ANY = WorkerSpec(count=1, gpus=1, cpus=4)
A100, T4, H100 = (ANY.model_copy(update={"accelerator_type": kind}) for kind in ("A100", "T4", "H100"))
TWO_A100 = A100.model_copy(update={"count": 2})
CPU = WorkerSpec(count=1, gpus=0, cpus=4)


def node(name: str, *types: str, gpus: float = 1, free: float | None = None, group: str = "") -> NodeResources:
    kinds = {f"accelerator_type:{kind}": 1.0 for kind in types}
    total = {"CPU": 8 * gpus, "GPU": gpus, **kinds}
    left = gpus if free is None else free
    return NodeResources(name, total, {**total, "CPU": 8 * left, "GPU": left, **{kind: 0.999 for kind in kinds}}, group)


def waits(key: str, workers: WorkerSpec, position: int = 0, estimate_s: float | None = None) -> Waiting:
    return Waiting(run_key=key, address=key, campaign="c", workers=workers, since_unix=0, position=position, estimate_s=estimate_s)


def started(waiting: list[Waiting], nodes: list[NodeResources], reserved: list[Reservation] | None = None) -> tuple[str, ...]:
    return decide(waiting, nodes, reserved or [], [run.run_key for run in waiting]).start


MIXED = [node("a", "A100"), node("t", "T4", gpus=4)]


@pytest.mark.parametrize(
    ("workers", "nodes", "when", "because"),
    [
        (A100, MIXED, "now", "1 A100 GPU and 8 CPUs free."),
        (A100, [node("x", "A100", "A100-80G")], "now", "1 A100 GPU"),
        (ANY, MIXED, "now", "5 GPUs and 40 CPUs free."),
        (A100, [node("a", "A100", free=0), MIXED[1]], "later", "needs 1 worker x (1 A100 GPU, 4 CPUs); 0 A100 GPUs and 0 CPUs free now"),
        (TWO_A100, MIXED, "never", "the cluster has 1 A100 GPU in all. Lower workers.count"),
        (
            A100.model_copy(update={"cpus": 12}),
            MIXED,
            "never",
            "no node has 12 CPUs (the largest has 8). Lower workers.cpus",
        ),
        (
            H100,
            MIXED,
            "never",
            "needs 1 worker x (1 H100 GPU, 4 CPUs); the cluster has no H100 GPU, but A100, T4. Correct workers.",
        ),
        (ANY.model_copy(update={"accelerator_type": "a100"}), MIXED, "never", "or start a node with such a GPU. Did you mean 'A100'?"),
        (A100, [node("n")], "never", "the cluster has no A100 GPU, but GPUs of which Ray knows no accelerator type."),
        (A100, [NodeResources("n", {"CPU": 8}, {"CPU": 8})], "never", "the cluster has 0 A100 GPUs in all. Set workers.gpus: 0"),
        (A100, [node("t", "T4", group="w")], "later", "the cluster has no A100 GPU, but T4 now: the autoscaler is asked for nodes."),
    ],
)
def test_a_kind_of_gpu_fits_now_later_or_never_with_the_reason(
    workers: WorkerSpec, nodes: list[NodeResources], when: str, because: str
) -> None:
    outcome = fit(workers, nodes)
    assert outcome.when == when
    assert because in outcome.because


def test_a_kind_that_the_autoscaler_may_not_have_is_to_be_checked() -> None:
    """Misspelt, it would wait for ever; less of it comes as little."""
    nodes = [node("a", "A100", group="w")]
    wrong = ANY.model_copy(update={"accelerator_type": "a100"})
    decision = decide([waits("r", wrong), waits("two", TWO_A100, 1)], nodes, [], ["r", "two"])
    assert decision.why("r") == (
        "No capacity: needs 1 worker x (1 a100 GPU, 4 CPUs); the cluster has no a100 GPU, but A100 now: the autoscaler is asked for nodes. "
        "Did you mean 'A100'? Check workers.accelerator_type; its node type must list accelerator_type:a100. It starts once they have come."
    )
    assert decision.why("two").endswith("asked for nodes. It starts once they have come; if they never do, ask for less under `workers`.")
    from_zero = fit(T4, [NodeResources("head", {"CPU": 8}, {"CPU": 8}, "head")])
    assert from_zero.because.endswith("asked for nodes. Check workers.accelerator_type; its node type must list accelerator_type:T4.")


def test_gangs_of_different_kinds_do_not_wait_for_each_other() -> None:
    full = [node("a", "A100", free=0), MIXED[1]]
    held = [Reservation("other", A100, is_placed=True)]
    decision = decide([waits("first", A100), waits("second", T4, 1)], full, held, ["first", "second"])
    assert decision.start == ("second",), "it takes nothing that the first one could use"
    assert "1 A100 GPU, 4 CPUs" in decision.why("first")


def test_a_gang_on_any_gpu_that_lies_elsewhere_keeps_nobody_from_a_kind() -> None:
    """Ray shows the free A100: what it placed on another GPU is not counted there."""
    on_t4 = [node("a", "A100"), node("t", "T4", free=0)]
    assert started([waits("r", A100)], on_t4, [Reservation("any", ANY, is_placed=True)]) == ("r",)
    on_a100 = [node("a", "A100", free=0), node("t", "T4")]
    assert started([waits("r", A100)], on_a100, [Reservation("any", ANY, is_placed=True)]) == ()
    assert started([waits("r", T4)], on_a100, [Reservation("any", ANY, is_placed=True)]) == ("r",)


def test_a_gang_on_any_gpu_that_is_not_placed_yet_may_take_every_kind() -> None:
    idle = [node("a", "A100"), node("t", "T4")]
    assert started([waits("r", A100)], idle, [Reservation("any", ANY)]) == ()
    assert started([waits("any", ANY), waits("r", A100, 1)], idle) == ("any",)
    assert started([waits("any", ANY), waits("cpu", CPU, 1)], idle) == ("any", "cpu")


def test_a_placed_gang_on_any_gpu_whose_actors_ray_does_not_show_yet_may_take_every_kind() -> None:
    """The job of a validation, or of a test set, that has just been submitted."""
    idle = [node("a", "A100"), node("t", "T4")]
    two = ANY.model_copy(update={"count": 2})
    assert started([waits("typed", A100)], idle, [Reservation("any", ANY, is_placed=True)]) == ()
    assert started([waits("typed", T4)], idle, [Reservation("any", ANY, is_placed=True)]) == ()
    some = [node("a", "A100"), node("t", "T4", gpus=2, free=1)]
    assert started([waits("typed", A100)], some, [Reservation("any", two, is_placed=True)]) == ()
    assert started([waits("typed", A100)], [some[0], node("t", "T4", gpus=2, free=0)], [Reservation("any", two, is_placed=True)]) == (
        "typed",
    )
    three = [node("a", "A100", gpus=2), some[1]]
    assert started([waits("typed", A100)], three, [Reservation("any", two, is_placed=True)]) == ("typed",), (
        "only one of its actors is missing"
    )


def test_a_gang_that_holds_a_kind_in_its_validation_keeps_it() -> None:
    held = [Reservation("validates", TWO_A100, is_placed=True)]
    nodes = [node("a", "A100", gpus=2, free=1), node("t", "T4")]
    assert started([waits("r", A100)], nodes, held) == ()
    assert started([waits("r", ANY)], nodes, held) == ("r",), "what a validation that has begun does not use it never takes"


def test_a_gang_on_any_gpu_waits_until_a_kind_that_just_started_has_its_own() -> None:
    idle = [node("a", "A100"), node("t", "T4")]
    queue = [waits("typed", A100), waits("any", ANY, 1), waits("more", ANY, 2), waits("t4", T4, 3), waits("cpu", CPU, 4)]
    decision = decide(queue, idle, [], [run.run_key for run in queue])
    assert decision.start == ("typed", "cpu"), "what takes a GPU after it does not get those that it waits for"
    assert decision.kept_back == {"any"}
    assert "a GPU of the type A100 that is reserved for another run. It starts once these are in use, at the latest" in decision.why("any")
    assert started(queue[:2], [node("a", "A100"), node("t", "T4", gpus=2), node("b", "A100")]) == ("typed", "any")
    shown = [node("a", "A100", free=0), idle[1]]
    assert started([queue[1]], shown, [Reservation("typed", A100)]) == ("any",), "Ray shows it, before its first heartbeat"


def test_a_kind_is_kept_between_training_and_validation_and_until_the_validation_has_begun() -> None:
    idle = [node("a", "A100", gpus=2), node("t", "T4")]
    for is_placed in (False, True):
        assert started([waits("any", ANY)], idle, [Reservation("typed", TWO_A100, is_placed=is_placed)]) == ()
    both = [Reservation("trains", A100, is_placed=True), Reservation("validates", A100, is_placed=True)]
    assert started([waits("any", ANY)], [node("a", "A100", gpus=2, free=1), idle[1]], both) == ()
    assert started([waits("any", ANY)], [node("a", "A100", gpus=2, free=0), idle[1]], both) == ("any",)


def test_a_kind_keeps_runs_on_any_gpu_back_for_minutes_and_never_those_that_hold_theirs() -> None:
    idle, typed = [node("a", "A100"), node("t", "T4")], Reservation("typed", A100)
    for waited_s, start in ((MOST_KEPT_BACK_S - 1, ()), (MOST_KEPT_BACK_S + 1, ("any",))):
        run = waits("any", ANY).model_copy(update={"kept_back_unix": 1000.0})
        assert decide([run], idle, [typed], ["any"], 1000.0 + waited_s).start == start
    resuming = [
        waits("any", ANY).model_copy(update={"is_resuming": True}),
        waits("typed", A100, 1).model_copy(update={"is_resuming": True}),
    ]
    assert started(resuming, idle, [typed, Reservation("any", ANY)])[:1] == ("any",), "they would wait for each other"


ELASTIC = WorkerSpec(min=1, max=4, gpus=1, cpus=4)


def grown(nodes: list[NodeResources], *others: Reservation, has: int = 1, workers: WorkerSpec = ELASTIC) -> int:
    """To how many workers an elastic run may grow that has so many, beside others."""
    return growth({"e": has}, [], nodes, [Reservation("e", workers, is_placed=True, size=has), *others])["e"]


def test_an_elastic_run_on_any_gpu_grows_onto_no_gpu_of_a_kind_that_is_reserved_and_not_in_use_yet() -> None:
    """Its workers all start again as it grows, and only Ray chooses where."""
    nodes = [node("a", "A100"), node("t", "T4", gpus=2, free=1)]
    assert grown(nodes) == 3
    assert grown(nodes, Reservation("typed", A100)) == 1, "it has just started"
    assert grown(nodes, Reservation("typed", A100, is_placed=True)) == 1, "between its training and its validation"
    in_use = [node("a", "A100", free=0), nodes[1]]
    assert grown(in_use, Reservation("typed", A100, is_placed=True)) == grown(in_use, Reservation("typed", A100)) == 2


def test_an_elastic_run_grows_where_a_kind_is_left_for_all() -> None:
    few = [node("a", "A100", gpus=3), node("t", "T4", gpus=2, free=1)]
    assert grown(few, Reservation("typed", A100)) == 2, "wherever its two workers lie"
    assert grown([node("a", "A100", gpus=5), few[1]], Reservation("typed", A100)) == 4
    typed = ELASTIC.model_copy(update={"accelerator_type": "T4"})
    assert grown(few, Reservation("typed", A100), workers=typed) == 2, "of another kind it takes none of these"
    assert grown([node("a", gpus=3, free=2)], Reservation("other", ANY)) == 2, "where the cluster has one kind"


def test_the_autoscaler_is_asked_for_the_kind() -> None:
    assert bundles_wanted([waits("a", A100)], [Reservation("b", T4)]) == [
        {"CPU": 4.0, "GPU": 1.0, "accelerator_type:T4": 0.001},
        {"CPU": 4.0, "GPU": 1.0, "accelerator_type:A100": 0.001},
    ]


def test_an_expected_start_waits_for_the_end_on_that_kind() -> None:
    held = [Reservation("a", A100, ends_unix=100.0), Reservation("t", T4, ends_unix=50.0)]
    nodes = [node("a", "A100"), node("t", "T4")]
    waiting = [waits("r", A100, estimate_s=10.0), waits("any", ANY, 1, 10.0), waits("h", H100, 2)]
    assert expected_starts(waiting, nodes, held, 0.0) == {"r": 100.0, "any": 100.0, "h": None}


def test_a_gang_of_several_kinds_is_described() -> None:
    assert describe(TWO_A100) == "2 workers x (1 A100 GPU, 4 CPUs)"


def hours_until_a_typed_gang_starts(kinds: tuple[str, ...], stays_h: float, looks: int = 200) -> float | None:
    """Of a gang that needs both GPUs of the one A100 node, beside runs on any GPU of which one always waits; a look every half hour. One of
    them has an A100 GPU at the start; each comes to lie on A100 first, the worst that Ray may do. None: it never starts."""
    on = {"any0": ("A100", 3.25)}
    names = {kind: f"{number}" for number, kind in enumerate(kinds)}
    for look in range(looks):
        now_h = look / 2
        on = {key: (kind, end) for key, (kind, end) in on.items() if end > now_h}
        used = {kind: sum(each == kind for each, _ in on.values()) for kind in kinds}
        nodes = [node(names[kind], kind, gpus=2, free=2 - used[kind]) for kind in kinds]
        held = [Reservation(key, ANY, is_placed=True, ends_unix=end * 3600) for key, (_, end) in on.items()]
        later = waits(f"any{look + 1}", ANY, look + 1, stays_h * 3600)
        starts = decide([waits("typed", TWO_A100), later], nodes, held, ["typed", later.run_key], now_h * 3600).start
        if "typed" in starts:
            return now_h
        if starts:
            on[later.run_key] = "A100" if used["A100"] < 2 else "T4", now_h + stays_h + look % 3 / 8
    return None


@pytest.mark.parametrize("kinds", [("A100", "T4"), ("T4", "A100")])
@pytest.mark.parametrize("stays_h", [1.6, 4.1, 10.1, 30.1])
def test_runs_on_any_gpu_do_not_pass_a_gang_of_a_kind_for_ever(kinds: tuple[str, ...], stays_h: float) -> None:
    starts_h = hours_until_a_typed_gang_starts(kinds, stays_h)
    assert starts_h is not None
    assert starts_h <= 4


def test_a_run_on_any_gpu_passes_where_no_gpu_of_the_kind_is_free() -> None:
    nodes = [node("a", "A100", gpus=2, free=0), node("t", "T4", gpus=2)]
    held = [Reservation("x", TWO_A100, is_placed=True, ends_unix=3600.0)]
    waiting = [waits("typed", TWO_A100), waits("any", ANY, 1)]
    assert started(waiting, nodes, held) == ("any",)
    assert started(waiting, [node("a", "A100", gpus=2, free=1), nodes[1]], [held[0], Reservation("y", T4)]) == ()


def test_what_lies_on_another_kind_does_not_put_off_the_expected_start_of_a_kind() -> None:
    nodes = [node("a", "A100", gpus=2, free=1), node("t", "T4", gpus=2, free=1)]
    held = [Reservation("on a", ANY, is_placed=True, ends_unix=3600.0), Reservation("on t", ANY, is_placed=True, ends_unix=360_000.0)]
    waiting = [waits("typed", TWO_A100), waits("any", ANY, 1, 180_000.0)]
    decision = decide(waiting, nodes, held, ["typed", "any"])
    assert (decision.start, decision.starts_unix) == ((), 3600.0)
