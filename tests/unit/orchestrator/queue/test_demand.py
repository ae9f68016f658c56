"""What an autoscaler is asked for, and what waits for the nodes that it starts."""

import pytest

from orchestrator.queue.admission import decide, growth
from orchestrator.queue.demand import MOST_BUNDLES, bundles_wanted
from orchestrator.queue.gang_fit import NodeResources, Reservation, fit
from orchestrator.queue.order import Waiting
from trainers.contract.run_spec import WorkerSpec

ONE, TWO, ELASTIC = WorkerSpec(count=1, gpus=1, cpus=4), WorkerSpec(count=2, gpus=1, cpus=4), WorkerSpec(min=1, max=3, gpus=0, cpus=2)
HEAD = NodeResources("head", {}, {}, "ray.head.default")
SMALL = NodeResources("n1", {"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}, "gpu")
GPU, CPU = {"CPU": 4.0, "GPU": 1.0}, {"CPU": 2.0}


def waits(key: str, workers: WorkerSpec, position: int = 0) -> Waiting:
    return Waiting(run_key=key, address=key, campaign="c", workers=workers, since_unix=0, position=position)


@pytest.mark.parametrize(
    ("waiting", "held", "wanted"),
    [
        ([], [], []),
        ([waits("a", TWO)], [], [GPU, GPU]),
        ([waits("a", ELASTIC)], [Reservation("b", ELASTIC, size=2)], [CPU] * 3),
        ([waits("a", TWO)], [Reservation("a", TWO)], [GPU, GPU]),
        ([waits("a", ONE), waits("a", ONE)], [], [GPU]),
        ([waits("a", TWO.model_copy(update={"loader_cpus": 2}))], [], [GPU, GPU, *[{"CPU": 1.0}] * 4]),
    ],
)
def test_what_is_held_and_what_waits_counts_once(waiting: list[Waiting], held: list[Reservation], wanted: list[dict[str, float]]) -> None:
    assert bundles_wanted(waiting, held) == wanted


def test_a_long_queue_asks_for_a_bounded_number() -> None:
    assert len(bundles_wanted([waits(str(n), ONE) for n in range(2 * MOST_BUNDLES)], [])) == MOST_BUNDLES


def test_a_gang_waits_for_nodes_only_where_an_autoscaler_starts_them() -> None:
    outcome = fit(TWO, [HEAD, SMALL])
    assert (outcome.when, outcome.needs_nodes) == ("later", True)
    assert outcome.because == "needs 2 workers x (1 GPU, 4 CPUs); the cluster has 1 GPU in all now: the autoscaler is asked for nodes."
    assert fit(TWO, [NodeResources("n1", SMALL.total, SMALL.free)]).when == "never"


def test_what_waits_for_nodes_holds_nobody_back() -> None:
    decision = decide([waits("large", TWO), waits("small", ONE, 1)], [HEAD, SMALL], [], ["large", "small"])
    assert decision.start == ("small",)
    assert decision.why("large") == (
        "No capacity: needs 2 workers x (1 GPU, 4 CPUs); the cluster has 1 GPU in all now: the autoscaler is asked for nodes. "
        "It starts once they have come; if they never do, ask for less under `workers`."
    )


def test_what_waits_for_nodes_does_not_keep_an_elastic_run_small() -> None:
    node = NodeResources("n1", {"CPU": 6.0}, {"CPU": 4.0}, "cpu")
    held = [Reservation("e", ELASTIC, is_placed=True, size=1)]
    assert growth({"e": 1}, [waits("large", TWO)], [node], held) == {"e": 3}
