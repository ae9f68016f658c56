"""Heads of several people on one machine: each learns of the others, and none takes another's GPUs."""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.cluster import neighbours, nodes
from orchestrator.cluster.capacity import Offer, Share
from orchestrator.cluster.neighbours import Notice, crowding, leave_notice, remove_notice
from orchestrator.cluster.nodes import offer_of, overlap, uuids_of
from orchestrator.cluster.processes import ProcessRecord, boot_id, end, start_detached
from orchestrator.errors import ConfigError

OFFER = Offer(cpus=6, gpu_ids=("0", "1"), memory_gib=16)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, ...]:
    found = (tmp_path / "lock", tmp_path / "tmp")
    for place in found:
        place.mkdir()
    monkeypatch.setattr(neighbours, "PLACES", found)
    return found


@pytest.fixture
def head(tmp_path: Path) -> Iterator[ProcessRecord]:
    record = start_detached("Ray head", ["sleep", "60"], os.environ, tmp_path / "log", 1)
    yield record
    end(record, grace_s=0)


def test_a_head_is_known_to_other_homes_while_it_lives(places: tuple[Path, ...], head: ProcessRecord) -> None:
    leave_notice(Path("/home/ann"), head, OFFER)
    assert neighbours.neighbours(Path("/home/ann")) == []
    (seen,) = neighbours.neighbours(Path("/home/bob"))
    assert seen.offer == OFFER
    (file,) = places[0].iterdir()
    assert file.stat().st_mode & 0o777 == 0o644
    assert "/home" not in file.read_text()
    end(head, grace_s=0)
    assert neighbours.neighbours(Path("/home/bob")) == []
    remove_notice(Path("/home/ann"))
    assert list(places[0].iterdir()) == []


def test_what_strangers_leave_there_is_passed_over(places: tuple[Path, ...], head: ProcessRecord, tmp_path: Path) -> None:
    leave_notice(Path("/home/ann"), head, OFFER)
    (notice,) = places[0].iterdir()
    of_another = Notice.model_validate_json(notice.read_bytes()).model_copy(update={"uid": os.getuid() + 1})
    (places[1] / "nnfleet-head-1-a.json").write_text(of_another.model_dump_json())
    (places[1] / "nnfleet-head-2-b.json").write_text("{")
    (places[1] / "nnfleet-head-3-c.json").symlink_to(notice)
    os.mkfifo(places[1] / "nnfleet-head-4-d.json")
    assert len(neighbours.neighbours(Path("/home/bob"))) == 1


def test_a_second_place_takes_the_notice_that_the_first_refuses(
    places: tuple[Path, ...], head: ProcessRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    (places[0] / f"nnfleet-head-{os.getuid()}-{neighbours._digest(Path('/home/ann'))}.json").mkdir()  # as a file of another user's
    leave_notice(Path("/home/ann"), head, OFFER)
    assert len(neighbours.neighbours(Path("/home/bob"))) == 1


def ann(offer: Offer = OFFER) -> Notice:
    return Notice(uid=1, user="ann", home="h", pid=1, started_unix=0, boot_id="b", offer=offer)


def test_gpus_of_another_head_are_not_taken_and_free_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "usable_gpus", lambda: ["0", "1", "2"])
    with pytest.raises(ConfigError, match=r"user ann runs a head here with 6 CPUs, 2 GPUs \(0,1\).*Free are 1 GPUs \(2\).*--gpus N"):
        offer_of(Share(), [ann()])
    with pytest.raises(ConfigError, match="Free are 1 GPUs"):
        offer_of(Share(gpus=2), [ann()])
    assert offer_of(Share(gpus=1), [ann()]).gpu_ids == ("2",)
    assert offer_of(Share(gpus=0), [ann()]).gpu_ids == ()
    assert offer_of(Share(), [ann(OFFER.model_copy(update={"gpu_ids": ()}))]).gpu_ids == ("0", "1", "2")
    monkeypatch.setattr(nodes, "usable_gpus", lambda: ["2"])
    assert offer_of(Share(), [ann()]).gpu_ids == ("2",)


def test_gpus_are_told_apart_by_uuid_as_two_batch_jobs_number_their_own_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "usable_gpus", lambda: ["0"])
    monkeypatch.setattr(nodes, "seen_uuids", lambda: ["GPU-b"])
    anns = ann(OFFER.model_copy(update={"gpu_ids": ("0",)}))
    assert offer_of(Share(), [anns.model_copy(update={"gpu_uuids": ("GPU-a",)})]).gpu_ids == ("0",)
    with pytest.raises(ConfigError, match="Free are 0 GPUs"):
        offer_of(Share(), [ann(OFFER.model_copy(update={"gpu_ids": ("1",)})).model_copy(update={"gpu_uuids": ("GPU-b",)})])
    with pytest.raises(ConfigError, match="Free are 0 GPUs"):
        offer_of(Share(), [anns])  # of a version that left numbers only
    monkeypatch.setattr(nodes, "seen_uuids", list)
    with pytest.raises(ConfigError, match="Free are 0 GPUs"):
        offer_of(Share(), [anns.model_copy(update={"gpu_uuids": ("GPU-a",)})])


@pytest.mark.parametrize(
    ("ids", "seen", "uuids"),
    [
        (["1", "0"], ["GPU-a1", "GPU-b2"], ("GPU-b2", "GPU-a1")),
        (["GPU-b"], ["GPU-a1", "GPU-b2"], ("GPU-b2",)),
        (["GPU-"], ["GPU-a1", "GPU-b2"], ()),
        (["0", "2"], ["GPU-a1", "GPU-b2"], ()),
        (["MIG-c3"], ["GPU-a1"], ()),
        ([], ["GPU-a1"], ()),
    ],
)
def test_names_of_gpus_become_uuids_where_each_means_one(ids: list[str], seen: list[str], uuids: tuple[str, ...]) -> None:
    assert uuids_of(ids, seen) == uuids


@pytest.mark.parametrize(("answer", "is_alive"), [(PermissionError(), True), (ProcessLookupError(), False), (None, False)])
def test_a_head_whose_process_is_hidden_is_alive(monkeypatch: pytest.MonkeyPatch, answer: Exception | None, is_alive: bool) -> None:
    def hidden(pid: int) -> None:
        raise psutil.NoSuchProcess(pid)

    def kill(pid: int, signal: int) -> None:
        assert signal == 0
        if answer is not None:
            raise answer

    monkeypatch.setattr(psutil, "Process", hidden)
    monkeypatch.setattr(os, "kill", kill)
    assert ann().model_copy(update={"boot_id": boot_id()}).is_alive is is_alive


@pytest.mark.parametrize(
    ("some", "others", "may_be_same"),
    [(["0"], ["1"], False), (["0", "1"], ["1"], True), (["GPU-a"], ["GPU-b"], False), (["GPU-a"], ["0"], True), ([], ["0"], False)],
)
def test_gpus_that_cannot_be_told_apart_count_as_the_same(some: list[str], others: list[str], may_be_same: bool) -> None:
    assert overlap(some, others) is may_be_same


def test_more_cpus_than_the_machine_has_are_told_and_no_fewer() -> None:
    mine = Offer(cpus=4, gpu_ids=(), memory_gib=8)
    assert crowding(mine, [], 2) == ""
    assert crowding(mine, [ann()], 10) == ""
    assert "user ann runs a head here with 6 CPUs" in crowding(mine, [ann()], 8)
    assert "--cpus N" in crowding(mine, [ann()], 8)
    small = ann(Offer(cpus=2, gpu_ids=(), memory_gib=10))
    assert crowding(mine, [small] * 3, 2).startswith("user ann runs 3 heads here with together 6 CPUs, no GPU, 30 GiB of memory. With")
