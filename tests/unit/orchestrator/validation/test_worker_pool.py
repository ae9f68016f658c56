"""The pool of validation workers on nodes that die, are taken away or lack a share, with Ray played by a fake."""

import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError

from orchestrator.run.activity import cases_done
from orchestrator.run.status import CasesDone
from orchestrator.validation import worker_pool
from orchestrator.validation.case_queue import CaseQueue
from orchestrator.validation.cases import Stopped
from orchestrator.validation.worker_pool import Pool
from tests.fake_run import FakeRun
from trainers.contract.run_spec import WorkerSpec
from trainers.errors import ClusterError, DataError, StorageError
from trainers.storage.files import write_json_atomic
from trainers.validation.case_memory import CaseMemory

AFTER_SO_MANY_LOOKS = 50
GIB = 2**30
DIED, TAKEN_AWAY = RayActorError(), RayActorError(preempted=True)


@dataclass(eq=False)
class Call:
    """One call of an actor: loading (no case) or a case."""

    actor: "Actor"
    is_load: bool
    case_id: str | None = None

    def remote(self, *what: Any) -> "Call":
        return Call(self.actor, self.is_load, None if self.is_load else what[0])


@dataclass(eq=False)
class Actor:
    """A worker; one without a node waits for room."""

    node: str | None

    @property
    def load(self) -> Call:
        return Call(self, is_load=True)

    @property
    def validate(self) -> Call:
        return Call(self, is_load=False)


@dataclass
class FakeRay:
    """Has room for one actor per node. A call is answered in the order in which it was made, by what the test foresees, else well."""

    free: list[str]
    loadings: deque[Exception] = field(default_factory=deque)
    """How the next loadings fail."""
    cases: dict[tuple[str, str], Exception] = field(default_factory=dict)
    """(node, case) -> how its next try there fails."""
    done: list[str] = field(default_factory=list)
    killed: list[Actor] = field(default_factory=list)
    looks: int = 0
    memory: list[Any] = field(default_factory=list)
    """What each actor requested."""
    kinds: list[Any] = field(default_factory=list)
    """On which kind of GPUs."""
    alive: dict[str, int] = field(default_factory=dict)
    """Nodes that live -> their memory."""

    def nodes(self) -> list[dict[str, Any]]:
        lives = [{"Alive": True, "Resources": {"CPU": 64, "GPU": 8, "memory": memory}} for memory in self.alive.values()]
        return [*lives, {"Alive": False, "Resources": {}}]

    def remote(self, kind: object) -> "FakeRay":
        return self

    def options(self, **options: object) -> Any:
        self.memory.append(options["memory"])
        self.kinds.append(options["accelerator_type"])
        return type("Ready", (), {"remote": lambda *_: Actor(self.free.pop(0) if self.free else None)})()

    def wait(self, calls: Sequence[Call], num_returns: int, timeout: float) -> tuple[list[Call], Sequence[Call]]:
        ready = [call for call in calls if call.actor.node is not None]
        self.looks = 0 if ready else self.looks + 1
        if self.looks > AFTER_SO_MANY_LOOKS:
            pytest.fail(f"the pool waits for ever; done: {self.done}")
        return ready[:1], calls

    def get(self, call: Call) -> Any:
        node = call.actor.node
        assert node is not None
        if call.case_id is None:
            if not self.loadings:
                return node
            error = self.loadings.popleft()
            if error is TAKEN_AWAY:
                self.free.append("the next node")
            raise error
        if (node, call.case_id) in self.cases:
            raise self.cases.pop((node, call.case_id))
        self.done.append(call.case_id)
        return {"best": 0.5}

    def kill(self, actor: Actor) -> None:
        self.killed.append(actor)


def failed(cause: Exception) -> RayTaskError:
    return RayTaskError("work", "its traceback", cause)  # type: ignore[no-untyped-call] # Ray leaves it untyped


Start = Callable[..., tuple[FakeRay, Pool]]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    def started(nodes: Sequence[str], cases: Sequence[str] = ("case_2", "case_3", "case_4")) -> tuple[FakeRay, Pool]:
        run = FakeRun(tmp_path, val_cases=("done before", *cases))
        plans_file = run.spec.preprocessed_folder / "nnUNetPlans.json"
        plans = json.loads(plans_file.read_text())
        plans["configurations"]["3d_fullres"]["data_identifier"] = "cases"
        write_json_atomic(plans_file, plans)
        fake = FakeRay(list(nodes))
        monkeypatch.setattr(worker_pool, "ray", fake)
        return fake, Pool(run.folder, run.spec, {"best": "0" * 64}, CaseQueue.of(cases, tries=2), fencing_token=3)

    return started


def test_a_worker_that_can_nowhere_be_placed_is_not_waited_for_when_all_cases_are_done(start: Start) -> None:
    """Node b dies for good with its first case; node a does the rest, while a replacement for b waits for room."""
    ray, pool = start(["a", "b"])
    ray.cases["b", "case_3"] = DIED
    pool.run(2)
    assert sorted(ray.done) == ["case_2", "case_3", "case_4"]
    assert [actor for actor in ray.killed if actor.node is None]


def test_the_pool_says_how_many_cases_of_the_fold_are_done(start: Start) -> None:
    ray, pool = start(["a"])
    ray.cases["a", "case_3"] = failed(DataError("its label file is damaged"))
    pool.run(1)
    assert cases_done(pool.folder, 3) == CasesDone(checkpoint="best", done=3, cases=4)
    assert cases_done(pool.folder, 4) is None, "of another attempt"
    pool.folder.validating_file.write_text('{"attempt": 3, "checkpoint": "../best", "done": 3, "cases": 4}')
    assert cases_done(pool.folder, 3) is None


@pytest.mark.parametrize(("content", "done"), [('{"now": false}', ["case_2"]), ("", ["case_2"]), ('{"now": true}', [])])
def test_a_stop_ends_a_validation_after_the_cases_in_work_or_at_once(
    start: Start, monkeypatch: pytest.MonkeyPatch, content: str, done: list[str]
) -> None:
    """Somebody asks while the first case is given to the worker."""
    ray, pool = start(["a"])
    answer = ray.get

    def asked_meanwhile(call: Call) -> Any:
        if call.case_id is None:
            pool.folder.stop_file.write_text(content)
        return answer(call)

    monkeypatch.setattr(ray, "get", asked_meanwhile)
    with pytest.raises(Stopped):
        pool.run(1)
    assert ray.done == done
    assert len(ray.killed) == 1
    with pytest.raises(Stopped):
        Pool(pool.folder, pool.spec, {"final": "0" * 64}, CaseQueue.of(["case_2"], tries=2), fencing_token=3).run(1)
    assert len(ray.killed) == 1, "for the next checkpoint no worker is started"


def test_a_campaign_that_stopped_the_training_does_not_stop_the_validation(start: Start) -> None:
    ray, pool = start(["a"], ["case_1", "case_2"])
    pool.folder.stop_file.write_text('{"now": false, "why": "stopped by successive halving"}')
    pool.run(1)
    assert ray.done == ["case_1", "case_2"]


def test_a_stop_while_the_last_case_is_in_work_lets_the_validation_succeed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    ray, pool = start(["a"], ["case_2"])
    answer = ray.get

    def asked_meanwhile(call: Call) -> Any:
        pool.folder.stop_file.write_text('{"now": false}')
        return answer(call)

    monkeypatch.setattr(ray, "get", asked_meanwhile)
    pool.run(1)
    assert ray.done == ["case_2"]


@pytest.mark.parametrize(("largest", "requested"), [(None, None), (CaseMemory("case_2", 3 * GIB), 3 * GIB)])
def test_workers_request_the_memory_of_the_largest_case(start: Start, largest: CaseMemory | None, requested: int | None) -> None:
    ray, pool = start(["a"], ["case_2"])
    ray.alive, pool.largest = {"a": 512 * GIB}, largest
    pool.run(1)
    assert ray.memory == [requested]


@pytest.mark.parametrize(("kind", "requested"), [("", None), ("A100", "A100")])
def test_workers_take_the_kind_of_gpu_that_training_took(start: Start, kind: str, requested: str | None) -> None:
    ray, pool = start(["a"], ["case_2"])
    pool.spec = pool.spec.model_copy(update={"workers": WorkerSpec(gpus=1, accelerator_type=kind)})
    pool.run(1)
    assert ray.kinds == [requested]


def test_the_worker_after_a_node_that_died_requests_no_more_than_a_node_that_lives_has(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would ever place a worker that asks for the memory of the node that is gone."""
    ray, pool = start(["a", "b"], ["case_2"])
    ray.alive, pool.largest = {"a": 512 * GIB, "b": 64 * GIB}, CaseMemory("case_2", 100 * GIB)
    ray.cases["a", "case_2"] = DIED
    answer = ray.get

    def dies(call: Call) -> Any:
        if call.actor.node == "a" and call.case_id:
            del ray.alive["a"]
        return answer(call)

    monkeypatch.setattr(ray, "get", dies)
    pool.run(1)
    assert ray.memory == [100 * GIB, 64 * GIB]
    assert ray.done == ["case_2"]


def test_a_worker_that_waits_for_the_memory_of_a_node_that_died_is_replaced_by_one_that_requests_less(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_pool, "WAIT_REPORT_S", 0.0)
    ray, pool = start([])
    ray.alive, pool.largest = {"a": 512 * GIB, "b": 64 * GIB}, CaseMemory("case_2", 100 * GIB)
    waited = ray.wait

    def wait(*arguments: Any, **named: Any) -> Any:
        if ray.looks == 2:  # the node with the memory dies before the worker is placed; the other one has room
            del ray.alive["a"]
            ray.free.append("b")
        return waited(*arguments, **named)

    monkeypatch.setattr(ray, "wait", wait)
    pool.run(1)
    assert ray.memory == [100 * GIB, 64 * GIB]
    assert len(ray.done) == 3


def test_a_case_in_work_is_waited_for_when_no_other_waits(start: Start) -> None:
    ray, pool = start(["a", "b"], ["case_2", "case_3"])
    pool.run(2)
    assert sorted(ray.done) == ["case_2", "case_3"]


def test_the_workers_of_a_checkpoint_go_on_with_the_next_one(start: Start) -> None:
    """Node c's worker is still loading when the first checkpoint is done."""
    ray, pool = start(["a", "b"])
    spare: list[Any] = []
    pool.spare, pool.is_last = spare, False
    pool.run(3)
    assert len(spare) == 3
    assert not ray.killed
    first, ray.done = ray.done, []
    Pool(pool.folder, pool.spec, {"final": "1" * 64}, CaseQueue.of(first, tries=2), 3, spare).run(3)
    assert sorted(ray.done) == sorted(first)
    assert not spare
    assert len(ray.killed) == 3, "the same ones"


def test_a_spare_worker_that_has_died_is_replaced(start: Start) -> None:
    ray, pool = start(["a", "b"], ["case_2"])
    spare: list[Any] = []
    pool.spare, pool.is_last = spare, False
    pool.run(1)
    ray.loadings.append(DIED)
    Pool(pool.folder, pool.spec, {"final": "1" * 64}, CaseQueue.of(["case_2"], tries=2), 3, spare).run(1)
    assert ray.done == ["case_2", "case_2"]


def test_without_cases_nobody_is_waited_for(start: Start) -> None:
    ray, pool = start([], [])
    pool.run(1)
    assert len(ray.killed) == 1


def test_a_node_that_is_taken_away_while_the_network_loads_counts_for_nothing(start: Start) -> None:
    ray, pool = start(["a"])
    ray.loadings.extend([TAKEN_AWAY] * 10)
    pool.run(1)
    assert sorted(ray.done) == ["case_2", "case_3", "case_4"]
    assert not pool.queue.failures


def test_workers_that_die_again_and_again_while_the_network_loads_end_the_validation(start: Start) -> None:
    ray, pool = start(["a", "b", "c", "d"])
    ray.loadings.extend([DIED] * 10)
    with pytest.raises(ClusterError, match="workers were lost 3 times while loading the network"):
        pool.run(1)
    assert not ray.done


def test_a_run_folder_that_is_away_from_everywhere_ends_the_validation(start: Start) -> None:
    ray, pool = start(["a", "b"])
    ray.loadings.append(failed(StorageError("storage: away")))
    pool.folder.root.rename(pool.folder.root.with_name("away"))
    with pytest.raises(StorageError, match=r"Mount the shared folder\."):
        pool.run(2)


def test_a_dataset_that_is_away_from_everywhere_is_an_outage(start: Start) -> None:
    ray, pool = start(["a"])
    ray.cases["a", "case_2"] = failed(StorageError("storage: away"))
    pool.spec.preprocessed_folder.rename(pool.folder.root / "dataset")
    with pytest.raises(StorageError, match=r"Mount the folder of the preprocessed datasets\."):
        pool.run(1)
    assert not pool.queue.failures


def test_a_dataset_that_is_away_from_one_node_costs_a_case_one_try(start: Start) -> None:
    ray, pool = start(["a", "b"])
    ray.cases["a", "case_2"] = failed(StorageError("storage: away"))
    pool.run(1)
    assert sorted(ray.done) == ["case_2", "case_3", "case_4"]
    assert [failure.kind for failure in pool.queue.failures["case_2"]] == ["lost"]
