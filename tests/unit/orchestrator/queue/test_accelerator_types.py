"""Gangs that ask for GPUs of a kind, beside others that take any."""

import pytest

from orchestrator.queue.admission import decide
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


def test_a_gang_that_holds_a_kind_in_its_validation_keeps_it() -> None:
    held = [Reservation("validates", TWO_A100, is_placed=True)]
    nodes = [node("a", "A100", gpus=2, free=1), node("t", "T4")]
    assert started([waits("r", A100)], nodes, held) == ()
    assert started([waits("r", ANY)], nodes, held) == ("r",)


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
