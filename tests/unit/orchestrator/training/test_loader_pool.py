"""The pool of loader actors and the loaders on other nodes, with Ray played by a fake."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from orchestrator.training import loader_pool
from orchestrator.training.loader_pool import Loader, LoaderPool
from tests.fake_run import FakeRun
from trainers.contract.run_spec import LoaderSpec, Schedule
from trainers.data.batches import Batch
from trainers.data.wire import packed
from trainers.errors import ConfigError, StorageError

BATCH = Batch(np.zeros((1, 1, 2, 2), np.float32), [np.zeros((1, 1, 2, 2), np.int16)], ("case_0",))


@dataclass(eq=False)
class FakeActor:
    """A loader; `asked` are its calls, which are answered at once."""

    answer: object
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def make_to_send(self) -> "FakeActor":
        return self

    def remote(self, *call: Any) -> object:
        self.asked.append(call)
        return SimpleReference(self.answer)


@dataclass(eq=False)
class SimpleReference:
    """What a call has for an answer."""

    answer: object


def all_ready(refs: Sequence[object], **_: object) -> tuple[Sequence[object], list[object]]:
    return refs, []


@pytest.mark.parametrize("is_remote", [False, True])
def test_loaders_know_when_batches_have_come_from_other_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_remote: bool) -> None:
    actor = FakeActor(packed(BATCH) if is_remote else BATCH)
    monkeypatch.setattr(loader_pool, "start_loader", lambda *_: actor)
    fake = SimpleNamespace(wait=all_ready, get=lambda ref: ref.answer, kill=lambda *_, **__: None)
    monkeypatch.setattr(loader_pool, "ray", fake)
    loader = LoaderSpec(actors=1, prefetch=2, placement="cluster")
    run = FakeRun(tmp_path, loader=loader, schedule=Schedule(epochs=1, train_iterations=4, val_iterations=1))
    with LoaderPool(run.spec, run.folder, [0], 0) as pool:
        assert len(list(pool.batches("train", 0))) == 4
    assert [is_proven for *_, is_proven in actor.asked] == [False, False, is_remote, is_remote, is_remote]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loader:
    """A loader on another node than its worker's, whose share comes back with the third look."""
    here = SimpleNamespace(get_node_id=lambda: "a helper")
    fake = SimpleNamespace(get_runtime_context=lambda: here, util=SimpleNamespace(get_node_ip_address=lambda: "10.0.0.7"))
    monkeypatch.setattr(loader_pool, "ray", fake)
    monkeypatch.setattr(loader_pool, "SEEN_S", 0.0)
    monkeypatch.setattr("trainers.storage.faults.FIRST_WAIT_S", 0.01)
    loader, looks = Loader(str(tmp_path), [0], "the worker's node"), []

    def opened() -> Any:
        looks.append(1)
        if len(looks) < 3:
            raise StorageError("storage: /share/run_spec.json is not there on this node.")

    monkeypatch.setattr(loader, "_open", opened)
    monkeypatch.setattr(loader, "_made", lambda *_: opened() or BATCH)
    return loader


def test_folders_that_no_other_node_has_shown_to_have_are_an_error_of_the_request(elsewhere: Loader) -> None:
    with pytest.raises(ConfigError, match=r"node 10\.0\.0\.7 cannot prepare batches"):
        elsewhere.make("train", 0, 0)


def test_a_node_that_has_just_booted_is_waited_for_once_others_have_sent_batches(elsewhere: Loader) -> None:
    assert elsewhere.make("train", 500, 0, is_proven=True) is BATCH
