"""The workers of a test set: how many a cluster gives, how long it waits for them, and that nobody else uses its output folder."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from orchestrator.campaign.planning import queue_of
from orchestrator.errors import ClusterError, ConfigError
from orchestrator.queue.enlarging import Enlarging
from orchestrator.queue.gang_fit import NodeResources, capacity_beside
from orchestrator.queue.order import Waiting
from orchestrator.queue.registry import Entry, HeldWorkers, Registry
from orchestrator.queue.space import Resources
from orchestrator.run.clock import Clock
from orchestrator.run.job_record import JobRecord
from orchestrator.validation.held_out_admission import AskedWorkers, QueuePlace, admitted, cpu_warning, fewer_cpus, workers_for
from trainers.contract.run_spec import WorkerSpec

ONE_GPU = WorkerSpec(count=1, gpus=1, cpus=4)


def node(cpus: float, gpus: float = 0, free_gpus: float | None = None) -> NodeResources:
    total = {"CPU": cpus, "GPU": gpus}
    return NodeResources("n", total, {**total, "GPU": gpus if free_gpus is None else free_gpus})


@pytest.mark.parametrize(
    ("asked", "nodes", "cases", "given"),
    [
        ({}, [node(2)], 20, WorkerSpec(count=1, gpus=0, cpus=2)),
        ({}, [NodeResources("head", {}, {}, "head")], 20, WorkerSpec(count=1, gpus=0, cpus=8)),
        ({}, [node(64)], 20, WorkerSpec(min=1, max=8, gpus=0, cpus=8)),
        ({}, [node(64)], 3, WorkerSpec(min=1, max=3, gpus=0, cpus=8)),
        ({}, [node(2), node(16, gpus=4)], 20, WorkerSpec(min=1, max=4, gpus=1, cpus=4)),
        ({"gpus": 0}, [node(16, gpus=4)], 20, WorkerSpec(min=1, max=2, gpus=0, cpus=8)),
        ({"count": 2}, [node(64, gpus=4)], 20, WorkerSpec(count=2, gpus=1, cpus=8)),
        ({"count": 4}, [node(64, gpus=4)], 3, WorkerSpec(count=3, gpus=1, cpus=8)),
        ({"cpus": 1, "gpus": 0}, [node(2)], 20, WorkerSpec(min=1, max=2, gpus=0, cpus=1)),
    ],
)
def test_what_is_left_open_the_cluster_decides(asked: dict[str, int], nodes: list[NodeResources], cases: int, given: WorkerSpec) -> None:
    assert workers_for(AskedWorkers(**asked), nodes, cases) == given


@pytest.mark.parametrize(
    ("asked", "nodes", "reason"),
    [
        ({"gpus": 1}, [node(2)], "needs 1 worker x .1 GPU, 8 CPUs.; the cluster has 0 GPUs in all. Set workers.gpus: 0 to run on CPUs"),
        ({"count": 8}, [node(16, gpus=2)], "the cluster has 2 GPUs in all"),
        ({"cpus": 9}, [node(8)], "the cluster has 8 CPUs in all. Lower workers.cpus"),
        ({}, [], "the cluster has no nodes"),
    ],
)
def test_what_can_never_fit_is_refused(asked: dict[str, int], nodes: list[NodeResources], reason: str) -> None:
    with pytest.raises(ClusterError, match=f"its workers fit this cluster never: it .*{reason}"):
        workers_for(AskedWorkers(**asked), nodes, 20)


@pytest.mark.parametrize(
    ("asked", "trained_gpus", "nodes", "is_warned"),
    [
        ({}, 1, [node(16)], True),
        ({"count": 2}, 1, [node(16)], True),
        ({}, 1, [node(16, gpus=1)], False),
        ({"gpus": 0}, 1, [node(16)], False),
        ({}, 0, [node(16)], False),
    ],
)
def test_cpus_that_nobody_asked_for_are_named_beside_what_training_had(
    asked: dict[str, int], trained_gpus: int, nodes: list[NodeResources], is_warned: bool
) -> None:
    trained = WorkerSpec(count=2, gpus=trained_gpus, cpus=4)
    warning = cpu_warning(AskedWorkers(**asked), workers_for(AskedWorkers(**asked), nodes, 20), trained)
    assert bool(warning) is is_warned
    used = "2 workers" if asked else "1-2 workers"
    assert is_warned is (
        f"(2 workers x (1 GPU, 4 CPUs)); no node of this cluster has one at this moment, so it runs on CPUs: {used} x" in warning
    )


A100_NODE = NodeResources("a", {"CPU": 16, "GPU": 2, "accelerator_type:A100": 1}, {"CPU": 16, "GPU": 2, "accelerator_type:A100": 1})
T4_NODE = NodeResources("t", {"CPU": 8, "GPU": 4, "accelerator_type:T4": 1}, {"CPU": 8, "GPU": 4, "accelerator_type:T4": 1})


@pytest.mark.parametrize("asked", [{}, {"count": 2}, {"gpus": 0}])
def test_a_test_set_takes_the_kind_of_gpus_that_training_asked_for(asked: dict[str, int], cluster: "Cluster", tmp_path: Path) -> None:
    """With the cores of such a node, and no more workers than it holds."""
    cluster.nodes = [T4_NODE, A100_NODE]
    workers = workers_for(AskedWorkers(**asked), cluster.nodes, 20, "A100")
    kind = "A100" if workers.gpus else ""
    assert (workers.accelerator_type, workers.cpus) == (kind, 8)
    given = granted(cluster, workers, tmp_path)
    assert given is not None
    assert (given.count, given.accelerator_type) == (2 if kind else workers.most, kind)


def test_a_test_set_of_a_kind_that_the_cluster_lacks_is_refused() -> None:
    with pytest.raises(ClusterError, match="no A100 GPU, but T4. .*Training asked for A100 GPUs alone; `--cpu` predicts on CPUs."):
        workers_for(AskedWorkers(), [T4_NODE], 20, "A100")
    assert workers_for(AskedWorkers(), [replace(T4_NODE, group="w")], 20, "A100") == WorkerSpec(gpus=1, accelerator_type="A100")


def test_one_that_waits_for_the_usual_cpus_names_fewer() -> None:
    usual = WorkerSpec(count=1, gpus=0, cpus=4)
    hint = fewer_cpus(AskedWorkers(), usual)
    assert "4 CPUs per worker are the default here; `--cpus 1` needs one" in hint
    assert fewer_cpus(AskedWorkers(cpus=4), usual) == ""
    assert fewer_cpus(AskedWorkers(), ONE_GPU) == ""
    assert fewer_cpus(AskedWorkers(), WorkerSpec(count=1, gpus=0, cpus=1)) == ""


@dataclass
class Cluster:
    """A job server with a registry. Each sleep of a waiting test set lets the next of `events` happen."""

    registry: Registry
    nodes: list[NodeResources]
    jobs: list[JobRecord] = field(default_factory=list)
    events: list[Callable[[], None]] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)

    def place(self, job: str = "test-a-0") -> QueuePlace:
        self.jobs.append(JobRecord(submission_id=job, kind="test", state="RUNNING"))
        clock = Clock(unix=lambda: 100.0, sleep=lambda _: self.events.pop(0)())
        return QueuePlace(job, "the test set imagesTs of 4/3d/t", self.registry, lambda: self.jobs, lambda: self.nodes, clock)

    def campaign(self, *, holds: WorkerSpec | None = None, waits_for: WorkerSpec | None = None) -> None:
        self.jobs.append(JobRecord(submission_id="campaign-c", kind="campaign", state="RUNNING", campaign="c"))
        waiting = [Waiting(run_key="w", address="4/2d/t/0", campaign="c", workers=waits_for, since_unix=1.0)] if waits_for else []
        holding = [HeldWorkers(run_key="h", workers=holds, is_placed=True)] if holds else []
        self.registry.post("c", Entry(waiting=tuple(waiting), holding=tuple(holding)))


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(Registry(tmp_path / "registry"), [node(16, gpus=2)])


def granted(cluster: Cluster, workers: WorkerSpec, output: Path) -> WorkerSpec | None:
    with admitted(cluster.place(), output, workers, cluster.waits.append) as found:
        return found


def test_an_elastic_number_takes_what_is_free(cluster: Cluster, tmp_path: Path) -> None:
    assert granted(cluster, WorkerSpec(min=1, max=4, gpus=1, cpus=4), tmp_path) == WorkerSpec(count=2, gpus=1, cpus=4)
    cluster.nodes = [node(16, gpus=2, free_gpus=1)]
    assert granted(cluster, WorkerSpec(min=1, max=4, gpus=1, cpus=4), tmp_path) == ONE_GPU
    assert cluster.waits == []


def test_where_the_cluster_is_busy_it_waits_and_says_for_what(cluster: Cluster, tmp_path: Path) -> None:
    cluster.campaign(holds=WorkerSpec(count=2, gpus=1, cpus=4))
    cluster.events = [lambda: None, lambda: cluster.registry.withdraw("c")]
    assert granted(cluster, ONE_GPU, tmp_path) == ONE_GPU
    assert cluster.waits == ["needs 1 worker x (1 GPU, 4 CPUs); 0 GPUs and 8 CPUs free now, 1 run ahead."]


def test_it_stands_behind_runs_that_have_waited_longer_and_leaves_them_their_room(cluster: Cluster, tmp_path: Path) -> None:
    cluster.campaign(holds=ONE_GPU, waits_for=WorkerSpec(count=2, gpus=1, cpus=4))
    cluster.events = [lambda: cluster.registry.post("c", Entry())]
    assert granted(cluster, ONE_GPU, tmp_path) == ONE_GPU
    assert cluster.waits == ["queued behind 4/2d/t/0."]
    cluster.campaign(waits_for=ONE_GPU)
    assert granted(cluster, WorkerSpec(min=1, max=4, gpus=1, cpus=4), tmp_path) == ONE_GPU, "the other GPU is for whoever waits"


def test_a_test_set_waits_minutes_for_a_kind_of_gpu_to_be_in_use(cluster: Cluster, tmp_path: Path) -> None:
    """The campaign holds an A100 GPU whose workers never begin."""
    kinds = {kind: {"GPU": 1.0, "CPU": 8.0, f"accelerator_type:{kind}": 1.0} for kind in ("A100", "T4")}
    cluster.nodes = [NodeResources(kind, total, total) for kind, total in kinds.items()]
    a100 = HeldWorkers(run_key="h", workers=ONE_GPU.model_copy(update={"accelerator_type": "A100"}))
    cluster.campaign()
    cluster.registry.post("c", Entry(holding=(a100,)))
    now = [100.0]
    cluster.events = [lambda: now.append(now[-1] + 200)] * 3
    place = replace(cluster.place(), clock=Clock(unix=lambda: now[-1], sleep=lambda _: cluster.events.pop()()))
    with admitted(place, tmp_path, ONE_GPU, cluster.waits.append) as found:
        assert (found, now[-1]) == (ONE_GPU, 500.0)
    assert cluster.waits == ["it fits, but Ray might give it a GPU of the type A100 that is reserved for another run."]


def test_a_job_server_that_does_not_answer_is_waited_for(cluster: Cluster, tmp_path: Path) -> None:
    place, asked = cluster.place(), list[int]()

    def records() -> list[JobRecord]:
        asked.append(1)
        if len(asked) == 2:
            raise ClusterError("cluster: away")
        return cluster.jobs

    cluster.events = [lambda: None]
    away = QueuePlace(place.job, place.what, place.registry, records, place.nodes, place.clock)
    with admitted(away, tmp_path, ONE_GPU, cluster.waits.append) as found:
        assert found == ONE_GPU
    assert cluster.waits == ["cluster: away"]


def test_a_test_set_asks_for_nodes_on_demand_and_leaves_what_others_want(cluster: Cluster, tmp_path: Path) -> None:
    asked: list[list[Resources]] = []
    place, ready = cluster.place(), cluster.nodes
    cluster.campaign(waits_for=WorkerSpec(count=1, gpus=1, cpus=2))
    cluster.nodes = [NodeResources("head", {}, {}, "head")]
    cluster.events = [lambda: setattr(cluster, "nodes", [replace(each, group="workers") for each in ready])]
    place = replace(place, enlarging=Enlarging(lambda bundles: asked.append(list(bundles)), place.clock))
    with admitted(place, tmp_path, ONE_GPU, cluster.waits.append) as found:
        assert found == ONE_GPU
        assert asked == [[{"CPU": 2.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}]]
    assert asked[1:] == [[{"CPU": 2.0, "GPU": 1.0}]]
    assert "the autoscaler is asked for nodes" in cluster.waits[0]


def test_what_a_test_set_holds_others_do_not_take(cluster: Cluster, tmp_path: Path) -> None:
    with admitted(cluster.place(), tmp_path, ONE_GPU, cluster.waits.append):
        held = queue_of(cluster.jobs, cluster.registry).reserved
        assert capacity_beside(ONE_GPU, cluster.nodes, held) == 1
    assert queue_of(cluster.jobs, cluster.registry).reserved == []


def test_a_test_set_on_any_gpu_takes_more_workers_only_where_a_reserved_kind_is_left(cluster: Cluster, tmp_path: Path) -> None:
    """Only Ray chooses where they lie: a campaign holds A100 GPUs that are not in use yet."""
    kinds = {"a": ("accelerator_type:A100", 4.0), "t": ("accelerator_type:T4", 2.0)}
    cluster.nodes = [NodeResources(name, total := {"CPU": 32.0, "GPU": gpus, kind: 1.0}, total) for name, (kind, gpus) in kinds.items()]
    several = WorkerSpec(min=1, max=6, gpus=1, cpus=4)
    for reserved, count in ((ONE_GPU, 5), (ONE_GPU.of_type("A100"), 3), (ONE_GPU.of_type("T4"), 1)):
        cluster.campaign(holds=reserved)
        with admitted(cluster.place(), tmp_path, several, cluster.waits.append) as found:
            assert found == ONE_GPU.model_copy(update={"count": count})


def test_two_jobs_never_predict_into_one_folder(cluster: Cluster, tmp_path: Path) -> None:
    """Not by another path either; once the first has ended or died, the next one goes on."""
    output, link = tmp_path / "output", tmp_path / "link"
    output.mkdir()
    link.symlink_to(output)
    with admitted(cluster.place("test-a-0"), output, None, cluster.waits.append) as found:
        assert found is None, "all cases are there: no worker is needed"
        with (
            pytest.raises(ConfigError, match="test-a-0 predicts into .*link at this moment. Wait until it has ended"),
            admitted(cluster.place("test-b-0"), link, ONE_GPU, cluster.waits.append),
        ):
            pytest.fail("two jobs in one folder")
        with admitted(cluster.place("test-c-0"), tmp_path / "other", ONE_GPU, cluster.waits.append) as found:
            assert found == ONE_GPU
    with admitted(cluster.place("test-d-0"), output, ONE_GPU, cluster.waits.append) as found:
        assert found == ONE_GPU
