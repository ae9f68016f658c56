"""A campaign whose data are preprocessed first: one job of a dataset, waited for, and what becomes of its failures."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.campaign import preprocessing
from orchestrator.campaign.preprocessing import LATE_LOOKS, LOOK_S, Stage, job_workers, preprocess_first
from orchestrator.errors import ClusterError, DataError, StorageError
from orchestrator.experiment.model import experiment_from
from orchestrator.experiment.preprocess import Preprocess
from orchestrator.preprocessing.order import Progressed, Refused
from orchestrator.queue.enlarging import Enlarging
from orchestrator.queue.gang_fit import NodeResources
from orchestrator.queue.registry import Entry, Registry
from orchestrator.queue.space import Resources
from orchestrator.run.clock import Clock
from orchestrator.run.events import line_of
from orchestrator.run.job_record import JobRecord
from orchestrator.validation.held_out_admission import QueuePlace
from tests.away import share_is_away
from tests.fake_campaign import FakeCluster
from tests.raw import raw_experiment
from tests.unit.orchestrator.preprocessing.test_due import write_raw
from tests.unit.tiny_dataset import Tiny, tiny_dataset


class Script(Clock):
    """A clock: with each pause something happens."""

    def __init__(self, *happens: Callable[[], None]) -> None:
        self.happens = list(happens)

    def sleep(self, seconds: float) -> None:
        assert seconds == LOOK_S
        self.happens.pop(0)()


class Scene:
    """A raw dataset, a cluster, and a campaign `c1` that needs it."""

    def __init__(self, base: Path) -> None:
        self.tiny = Tiny(base)
        write_raw(base / "nnUNet_raw" / self.tiny.name)
        self.cluster, self.registry, self.waits = FakeCluster(), Registry(base / "registry"), list[str]()
        self.asked: list[list[Resources]] = []

    def run(self, *happens: Callable[[], None], campaign: str = "c1", preprocess: object = True) -> None:
        clock = Script(*happens)
        enlarging = Enlarging(lambda bundles: self.asked.append(list(bundles)), clock)
        place = QueuePlace(campaign, "preprocessing", self.registry, self.cluster.records, self.cluster.nodes, clock, enlarging=enlarging)
        experiment = experiment_from(raw_experiment(self.tiny.base, dataset=17, preprocess=preprocess))
        preprocess_first(Stage(experiment, place, self.cluster, self.waits.append))

    @property
    def jobs(self) -> list[JobRecord]:
        return [job for job in self.cluster.jobs.values() if job.kind == "preprocess"]

    def living(self, campaign: str) -> None:
        self.cluster.jobs[f"campaign-{campaign}"] = JobRecord(
            submission_id=f"campaign-{campaign}", kind="campaign", state="RUNNING", campaign=campaign
        )

    def reports(self, event: Progressed | Refused) -> Callable[[], None]:
        def happen() -> None:
            self.cluster.texts[self.jobs[-1].submission_id] = line_of(event) + "\n"

        return happen

    def ends(self, state: str, *, is_made: bool = False) -> Callable[[], None]:
        def happen() -> None:
            if is_made:
                tiny_dataset(self.tiny.base)
            job = self.jobs[-1]
            self.cluster.jobs[job.submission_id] = job.model_copy(update={"state": state})

        return happen


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_it_starts_one_job_and_waits_until_everything_is_there(scene: Scene) -> None:
    scene.run(scene.reports(Progressed(what="3d_fullres", done=2, total=10)), scene.ends("SUCCEEDED", is_made=True))
    (job,) = scene.jobs
    assert job.dataset_folder == str(scene.tiny.preprocessed)
    assert scene.waits == [
        f"waits for preprocessing of 3d_fullres: its job begins (nnfleet logs {job.submission_id}).",
        f"waits for preprocessing of 3d_fullres: 3d_fullres, 2 of 10 cases (nnfleet logs {job.submission_id}).",
    ]
    assert scene.registry.entries({"c1"}) == {"c1": Entry()}  # it holds nothing, and is seen to live
    scene.run()  # nothing is due any more
    assert len(scene.jobs) == 1


def test_while_the_job_lives_its_cores_are_held(scene: Scene) -> None:
    seen: list[Entry] = []
    look = lambda: seen.append(scene.registry.entries({"c1"})["c1"])  # noqa: E731
    scene.run(look, scene.ends("SUCCEEDED", is_made=True))
    (held,) = seen[0].holding
    assert (held.workers.cpus, held.workers.gpus, held.is_placed) == (8, 0, True)


def test_its_cores_are_held_apart_from_the_first_moment_on(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray does not show them as used before it has placed the job, and others decide meanwhile."""
    posted: list[bool] = []
    post = scene.registry.post

    def watched(campaign: str, entry: Entry) -> None:
        posted.extend(held.is_placed for held in entry.holding)
        post(campaign, entry)

    monkeypatch.setattr(scene.registry, "post", watched)
    scene.run(scene.ends("SUCCEEDED", is_made=True))
    assert posted == [False, True]


def test_the_job_is_submitted_once_its_memory_is_free(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would keep it pending, where nothing ends it but its time limit."""
    total = {"CPU": 8.0, "memory": 16.0 * 2**30}
    nodes = [NodeResources("a", total, {**total, "memory": 4.0 * 2**30}), NodeResources("b", total, {"memory": 16.0 * 2**30})]
    monkeypatch.setattr(scene.cluster, "nodes", lambda: nodes)
    seen: list[tuple[int, int]] = []

    def freed() -> None:
        seen.append((len(scene.jobs), len(scene.registry.entries({"c1"})["c1"].holding)))
        nodes[0] = NodeResources("a", total, total)

    scene.run(freed, scene.ends("SUCCEEDED", is_made=True), preprocess={"cpus": 4, "memory_gib": 8})
    assert seen == [(0, 0)]  # no job, and no cores are held for it
    assert scene.waits[0] == (
        "waits for preprocessing of 3d_fullres, which waits: needs 8 GiB of memory on a node with 4 free CPU cores; 4.0 GiB free now. "
        "Other work holds the rest."
    )


def test_two_campaigns_at_once_do_it_once(scene: Scene) -> None:
    key = f"preprocessing of {scene.tiny.preprocessed}"
    scene.living("c2")
    scene.registry.post("c2", Entry(runs=(key,)))  # is about to start it

    def other_starts() -> None:
        place = {"campaign": "c2", "dataset_folder": str(scene.tiny.preprocessed)}
        scene.cluster.submit_preprocessing("preprocess-0123456789ab-r0", "{}", place, 1, None)

    scene.run(other_starts, lambda: None, scene.ends("SUCCEEDED", is_made=True))
    assert [job.campaign for job in scene.jobs] == ["c2"]
    assert scene.waits[0] == "waits for preprocessing of 3d_fullres, which campaign c2 begins."


@pytest.mark.parametrize("breaks", ["due_of", "share"])
def test_a_share_that_is_away_for_a_moment_ends_no_campaign(scene: Scene, monkeypatch: pytest.MonkeyPatch, breaks: str) -> None:
    """Neither while another is about to begin, nor after the job."""

    def goes_away() -> None:
        if breaks == "share":
            share_is_away(monkeypatch, "nnUNet_raw")
            monkeypatch.setattr(os, "listdir", _refusing(os.listdir, "nnUNet_raw"))
        else:
            monkeypatch.setattr(preprocessing, "due_of", _unreadable)

    key = f"preprocessing of {scene.tiny.preprocessed}"
    scene.living("c2")
    scene.registry.post("c2", Entry(runs=(key,)))  # is about to start it

    def other_has_ended() -> None:
        monkeypatch.undo()
        scene.registry.withdraw("c2")

    def ends() -> None:
        scene.ends("FAILED")()
        goes_away()

    scene.run(goes_away, other_has_ended, ends, monkeypatch.undo, scene.ends("SUCCEEDED", is_made=True))
    assert [job.campaign for job in scene.jobs] == ["c1", "c1"]
    assert sum("waits for preprocessing: storage: " in text for text in scene.waits) == 2


def _unreadable(experiment: object) -> None:
    raise StorageError("storage: unavailable")


def _refusing(look: Callable[..., Any], name: str) -> Callable[..., Any]:
    def refuse(path: Any) -> Any:
        if os.path.basename(os.fspath(path)) == name:
            raise OSError(errno.EIO, "Input/output error")
        return look(path)

    return refuse


def test_a_job_server_that_does_not_answer_ends_no_campaign(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where the job is submitted, nor under the lock, nor where nodes are listed."""
    monkeypatch.setattr(scene.cluster, "records", _failing(scene.cluster.records, (1,)))
    monkeypatch.setattr(scene.cluster, "nodes", _failing(scene.cluster.nodes, (1,)))
    monkeypatch.setattr(scene.cluster, "submit_preprocessing", _failing(scene.cluster.submit_preprocessing, (0,)))
    scene.run(*[lambda: None] * 3, scene.ends("SUCCEEDED", is_made=True))
    assert [job.campaign for job in scene.jobs] == ["c1"]
    assert [text for text in scene.waits if "away" in text] == [
        "waits for preprocessing of 3d_fullres: cluster: away",
        "waits for preprocessing: cluster: away",
        "waits for preprocessing of 3d_fullres: cluster: away",
    ]


def _failing(ask: Callable[..., Any], calls: tuple[int, ...]) -> Callable[..., Any]:
    """As `ask`, where the calls of these numbers are not answered."""
    count = iter(range(1000))

    def asked(*values: Any) -> Any:
        if next(count) in calls:
            raise ClusterError("cluster: away")
        return ask(*values)

    return asked


def test_a_refusal_of_the_job_ends_the_campaign_with_its_reason_and_its_log(scene: Scene) -> None:
    refused = Refused(error="DataError", message="dataset: nnU-Net's integrity check refuses it.")
    with pytest.raises(DataError, match=r"integrity check refuses it. Its log: nnfleet logs preprocess-[0-9a-f]{12}-r0\."):
        scene.run(scene.reports(refused), scene.ends("FAILED"))


def test_a_job_that_died_is_started_again_and_not_for_ever(scene: Scene) -> None:
    scene.run(scene.ends("FAILED"), scene.ends("FAILED"), scene.ends("SUCCEEDED", is_made=True))
    assert [job.submission_id[-3:] for job in scene.jobs] == ["-r0", "-r1", "-r2"]


THREE_DEATHS = "preprocessing: 3 jobs in a row died without a reason of their own and got no further; the last, died with its node"


def test_the_third_death_is_an_error(scene: Scene) -> None:
    with pytest.raises(ClusterError, match=THREE_DEATHS):
        scene.run(*[scene.ends("FAILED")] * 3)


def test_a_death_counts_anew_where_the_job_has_made_more_cases(scene: Scene) -> None:
    """As on a node that is taken away every hour: each job goes on from the whole cases of the one before."""
    scene.run(*_dying(scene, 100, 200, 280), scene.ends("SUCCEEDED", is_made=True))
    assert len(scene.jobs) == 4


def test_three_deaths_at_the_same_case_are_an_error(scene: Scene) -> None:
    with pytest.raises(ClusterError, match=THREE_DEATHS):
        scene.run(*_dying(scene, 100, 200, 200, 200))
    assert len(scene.jobs) == 4


def test_a_node_that_dies_with_the_job_and_reboots_is_waited_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an autoscaler; a head often has no cores."""
    node = NodeResources("a", {"CPU": 16.0}, {"CPU": 16.0})
    nodes = [NodeResources("head", {}, {}), node]
    monkeypatch.setattr(scene.cluster, "nodes", lambda: list(nodes))

    def dies() -> None:
        scene.ends("FAILED")()
        nodes.remove(node)

    def reboots() -> None:
        assert scene.registry.entries({"c1"}) == {"c1": Entry()}, "meanwhile it holds nothing of what is left"
        nodes.append(node)

    scene.run(dies, reboots, scene.ends("SUCCEEDED", is_made=True), preprocess={"cpus": 16})
    assert [job.submission_id[-3:] for job in scene.jobs] == ["-r0", "-r1"]
    assert "waits for preprocessing of 3d_fullres: preprocessing: no node of this cluster has 16 CPU cores" in scene.waits[1]


def test_before_its_first_job_what_no_node_has_ends_the_campaign(scene: Scene) -> None:
    with pytest.raises(ClusterError, match="no node of this cluster has 999 CPU cores"):
        scene.run(preprocess={"cpus": 999})
    assert scene.jobs == []


def test_how_far_a_job_came_counts_though_its_node_took_the_log_along(scene: Scene) -> None:
    happens: list[Callable[[], None]] = []
    for done in (100, 200, 280):
        reported, died = _dying(scene, done)
        happens += [reported, scene.cluster.texts.clear, died]
    scene.run(*happens, scene.ends("SUCCEEDED", is_made=True))
    assert [("job begins" in text) for text in scene.waits] == [True, False] * 3 + [True]


def _dying(scene: Scene, *done: int) -> list[Callable[[], None]]:
    """Jobs that die, each after so many cases."""
    happens = []
    for each in done:
        happens += [scene.reports(Progressed(what="3d_fullres", done=each, total=300)), scene.ends("FAILED")]
    return happens


def test_a_job_that_was_stopped_ends_its_campaign_and_not_the_other_that_waits(scene: Scene) -> None:
    with pytest.raises(ClusterError, match="was stopped. Submit again: what is whole is kept"):
        scene.run(scene.ends("STOPPED"))
    scene.cluster.submit_preprocessing("preprocess-x", "{}", {"campaign": "c2", "dataset_folder": str(scene.tiny.preprocessed)}, 1, None)
    scene.run(scene.ends("STOPPED"), scene.ends("SUCCEEDED", is_made=True))
    assert [job.campaign for job in scene.jobs] == ["c1", "c2", "c1"]


def test_a_job_that_has_ended_and_made_nothing_is_an_error(scene: Scene) -> None:
    with pytest.raises(ClusterError, match="still lacks 3d_fullres as seen from the head"):
        scene.run(*[scene.ends("SUCCEEDED"), *[lambda: None] * LATE_LOOKS] * 2)
    assert len(scene.jobs) == 2


def test_files_that_a_share_shows_late_are_waited_for(scene: Scene) -> None:
    """NFS remembers what a folder lacks for up to a minute."""
    scene.run(scene.ends("SUCCEEDED"), *[lambda: None] * 30, scene.ends("SUCCEEDED", is_made=True))
    assert len(scene.jobs) == 1, "no second job is started meanwhile"
    assert "has ended, and the head does not see all its files yet" in scene.waits[-1]


def test_after_the_job_of_another_the_rest_is_made_at_once(scene: Scene) -> None:
    """That one may have made other configurations."""
    where = {"campaign": "c2", "dataset_folder": str(scene.tiny.preprocessed)}
    scene.cluster.submit_preprocessing("preprocess-x", "{}", where, 1, None)
    scene.run(scene.ends("SUCCEEDED"), scene.ends("SUCCEEDED", is_made=True))
    assert [job.campaign for job in scene.jobs] == ["c2", "c1"]


@pytest.mark.parametrize(
    ("asked", "given"),
    [({}, 8), ({"cpus": 3}, 3), ({"cpus": 16}, 16)],
)
def test_the_job_takes_what_was_asked_for_else_nnunets_number(asked: dict[str, int], given: int) -> None:
    nodes = [NodeResources("a", {"CPU": 2.0}, {}), NodeResources("b", {"CPU": 16.0}, {})]
    assert job_workers(Preprocess(**asked), nodes).cpus == given


def test_where_nodes_come_on_demand_they_are_asked_for_and_let_go(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [NodeResources("head", {}, {}, "head")]
    monkeypatch.setattr(scene.cluster, "nodes", lambda: nodes)
    comes = lambda: nodes.append(NodeResources("w", {"CPU": 16.0}, {"CPU": 16.0}, "workers"))  # noqa: E731
    scene.run(comes, scene.ends("SUCCEEDED", is_made=True))
    assert scene.asked == [[{"CPU": 8.0}], []]
    assert "the cluster has 0 CPUs in all now: the autoscaler is asked for nodes." in scene.waits[0]


def test_more_cores_than_any_node_has_may_come_on_demand() -> None:
    nodes = [NodeResources("a", {"CPU": 2.0}, {}, "workers")]
    assert [job_workers(Preprocess(), nodes).cpus, job_workers(Preprocess(cpus=16), nodes).cpus] == [2, 16]


def test_what_no_node_has_is_refused() -> None:
    nodes = [NodeResources("a", {"CPU": 2.0, "memory": 4.0 * 2**30}, {})]
    assert job_workers(Preprocess(), nodes).cpus == 2
    with pytest.raises(ClusterError, match="no node of this cluster has 3 CPU cores"):
        job_workers(Preprocess(cpus=3), nodes)
    with pytest.raises(ClusterError, match="no node of this cluster has 8 GiB of memory"):
        job_workers(Preprocess(memory_gib=8), nodes)


def test_cores_are_those_of_a_node_that_has_the_memory() -> None:
    nodes = [_node("a", cpus=16, memory_gib=8), _node("b", cpus=4, memory_gib=64), _node("c", cpus=2, memory_gib=64)]
    assert [job_workers(Preprocess(memory_gib=gib), nodes).cpus for gib in (32, 8)] == [4, 8]
    assert job_workers(Preprocess(cpus=4, memory_gib=32), nodes).cpus == 4


def test_cores_and_memory_that_no_one_node_has_are_refused(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [_node("a", cpus=16, memory_gib=8), _node("b", cpus=4, memory_gib=64)]
    monkeypatch.setattr(scene.cluster, "nodes", lambda: nodes)
    with pytest.raises(ClusterError, match=r"no node of this cluster has 5 CPU cores and 32 GiB of memory \(.* the largest has 4 cores\)"):
        scene.run(preprocess={"cpus": 5, "memory_gib": 32})


def _node(name: str, cpus: int, memory_gib: int) -> NodeResources:
    total = {"CPU": float(cpus), "memory": memory_gib * 2.0**30}
    return NodeResources(name, total, total)
