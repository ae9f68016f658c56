"""What kind of failure an error is, whose error counts, and when the workers may start again."""

import errno
import pickle
from pathlib import Path

import pytest
import torch
from ray.exceptions import OutOfMemoryError, RayActorError

from orchestrator.run.failure import Failure, FailureKind, newest_failure
from orchestrator.run.outcome import EVIDENCE_CHARACTERS, EndState
from orchestrator.training.failures import (
    RankError,
    blame,
    can_be_sent,
    keep_evidence,
    kind_of,
    kind_of_death,
    message_of,
    read_failures,
    write_failure,
)
from orchestrator.training.retry_budgets import final_failure
from trainers.contract.run_folder import RunFolder
from trainers.errors import CheckpointError, ConfigError, DataError, DivergedError, StorageError, Superseded

GLOO = "/pytorch/third_party/gloo/gloo/transport/tcp"


class NodeDied(Exception):
    """As Ray marks the death of an actor."""

    def __init__(self, text: str, preempted: bool = False) -> None:
        super().__init__(text)
        self.preempted = preempted


OUT_OF_MEMORY = OutOfMemoryError("Task was killed due to the node running low on memory.")  # type: ignore[no-untyped-call] # Ray's


def failure(kind: FailureKind, position: tuple[int, int] = (3, 0), fencing_token: int = 2, state: EndState = "FAILED_CLUSTER") -> Failure:
    return Failure(
        driver="d",
        fencing_token=fencing_token,
        kind=kind,
        state=state,
        epochs_done=position[0],
        iteration=position[1],
        message="m",
        evidence="e",
    )


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "fold_0")
    made.own.mkdir(parents=True)
    return made


@pytest.mark.parametrize(
    ("error", "kind", "state"),
    [
        (ConfigError("x"), "user", "FAILED_CONFIG"),
        (DataError("x"), "user", "FAILED_CONFIG"),
        (CheckpointError("no whole file on this node"), "code", "FAILED_CODE"),
        (DivergedError("x"), "user", "FAILED_CODE"),
        (StorageError("x"), "cluster", "FAILED_CLUSTER"),
        (OSError(errno.EIO, "Input/output error"), "cluster", "FAILED_CLUSTER"),
        (OSError(errno.ESTALE, "Stale file handle"), "cluster", "FAILED_CLUSTER"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "code", "FAILED_CODE"),
        (Superseded("x"), "superseded", "SUPERSEDED"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "user", "FAILED_CONFIG"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "user", "FAILED_CONFIG"),
        (MemoryError(), "user", "FAILED_CONFIG"),
        (torch.distributed.DistBackendError("NCCL error"), "cluster", "FAILED_CLUSTER"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234"), "cluster", "FAILED_CLUSTER"),
        (ConnectionResetError("Connection reset by peer"), "cluster", "FAILED_CLUSTER"),
        (RayActorError(error_msg="the loader died"), "cluster", "FAILED_CLUSTER"),
        (OUT_OF_MEMORY, "memory", "FAILED_CONFIG"),
        (RuntimeError("shape '[2]' is invalid"), "code", "FAILED_CODE"),
        (KeyError("gloomy"), "code", "FAILED_CODE"),
        (
            RuntimeError(f"[{GLOO}/unbound_buffer.cc:78] Timed out waiting 4000ms for recv operation to complete"),
            "cluster",
            "FAILED_CLUSTER",
        ),
        (RuntimeError(f"[enforce fail at {GLOO}/device.cc:84] ifa != nullptr. Unable to find address"), "cluster", "FAILED_CLUSTER"),
        (RuntimeError("Gloo connectFullMesh failed with [x] no error"), "cluster", "FAILED_CLUSTER"),
        (RuntimeError("Application timeout caused pair closure"), "cluster", "FAILED_CLUSTER"),
        (RuntimeError("DistNetworkError: Connection reset by peer"), "cluster", "FAILED_CLUSTER"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "cluster", "FAILED_CLUSTER"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "user", "FAILED_CONFIG"),
        (RuntimeError("CUDA error: out of memory"), "user", "FAILED_CONFIG"),
    ],
)
def test_an_error_names_the_guilty_party(error: Exception, kind: str, state: str) -> None:
    assert kind_of(error) == (kind, state)


class DistError(RuntimeError):
    """Not torch's."""


DistError.__module__ = "torchio.transforms"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("cannot read /mnt/igloo/case_1.b2nd"),
        RuntimeError("/mnt/gloo/case_1.b2nd: bad magic number"),
        RuntimeError("gloo/case_1.b2nd is broken"),
        RuntimeError("[/mnt/gloo/case_1.b2nd:12] is broken"),
        RuntimeError("the plug-in gave 'Connection reset by peer' for the label of case_1"),
        RuntimeError("no file /opt/NCCL/conf"),
        RuntimeError("NCCL_TOPO_FILE names no file"),
        RuntimeError("the room 'out of memory lane' has no label"),
        RuntimeError("plans: not enough memory_gib for norm Instance"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/mnt/gloo/Connection reset"),
        ValueError("Connection closed"),
        DistError("odd"),
    ],
)
def test_words_of_the_cluster_in_a_users_error_do_not_move_the_blame(error: Exception) -> None:
    assert kind_of(error) == ("code", "FAILED_CODE")


def test_only_rays_own_words_for_a_death_blame_the_memory() -> None:
    low = OutOfMemoryError("3 worker(s) were killed due to the node running low on memory.")  # type: ignore[no-untyped-call] # of Ray
    assert kind_of_death(low)[0] == "memory"
    assert (
        kind_of_death(NodeDied("The object cannot be reconstructed: its lineage has been evicted to reduce memory pressure."))[0]
        == "cluster"
    )
    assert kind_of_death(NodeDied("class_name: NODE_OUT_OF_MEMORYLESS"))[0] == "cluster"


def test_out_of_memory_says_what_to_change() -> None:
    text = message_of(torch.OutOfMemoryError("CUDA out of memory"))
    assert "workers.count" in text
    assert "nnUNetv2_plan_experiment" in text


def raised(error: BaseException) -> RankError:
    return RankError(error, is_raised=True)


def gone(text: str, *, preempted: bool = False) -> RankError:
    return RankError(NodeDied(text, preempted), is_raised=False)


def test_one_death_outweighs_the_errors_that_it_brings_to_the_others() -> None:
    errors = {0: raised(RuntimeError("gloo: Connection closed")), 1: gone("worker died"), 2: raised(ValueError("odd"))}
    assert blame(errors).rank == 1
    assert blame({**errors, 2: raised(DataError("case x is broken"))}).rank == 2
    assert blame({0: raised(RuntimeError("gloo")), 2: raised(ValueError("odd"))}).rank == 2


def test_of_several_deaths_one_on_a_node_that_was_taken_away_counts() -> None:
    found = blame({0: gone("worker died"), 1: gone("node gone", preempted=True), 2: raised(RuntimeError("gloo"))})
    assert (found.kind, found.rank) == ("preemption", 1)


def test_what_a_rank_told_of_its_error_is_the_evidence() -> None:
    try:
        raise ValueError("odd")
    except ValueError as err:
        keep_evidence(err, "On node n", "epoch 3")
        arrived = pickle.loads(pickle.dumps(err))
    found = blame({3: raised(arrived)})
    assert found.message == "rank 3: ValueError: odd"
    assert found.evidence.startswith("On node n. Last lines of its log:\nepoch 3\nTraceback")
    assert 'raise ValueError("odd")' in found.evidence
    assert (found.kind, found.state) == ("code", "FAILED_CODE")


@pytest.mark.parametrize("log_characters", [0, 10, EVIDENCE_CHARACTERS // 2, EVIDENCE_CHARACTERS, 3 * EVIDENCE_CHARACTERS])
def test_evidence_keeps_its_bound_and_the_end_of_the_traceback(log_characters: int) -> None:
    try:
        raise ValueError("odd" * EVIDENCE_CHARACTERS + "end")
    except ValueError as err:
        keep_evidence(err, "On node n", "x" * log_characters)
        evidence = vars(err)["nnfleet_evidence"]
    assert len(evidence) <= EVIDENCE_CHARACTERS
    assert evidence.startswith("On node n. ")
    assert evidence.endswith("oddend\n")


class Unsendable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("needs two")


def test_an_error_that_cannot_reach_the_controller_is_known() -> None:
    assert can_be_sent(DataError("x"))
    assert can_be_sent(OSError(5, "Input/output error"))
    assert not can_be_sent(Unsendable(1, 2))


def test_a_death_on_a_node_that_was_taken_away_is_a_preemption_and_one_for_memory_says_so() -> None:
    assert kind_of_death(NodeDied("node gone", preempted=True))[0] == "preemption"
    kind, state, text = kind_of_death(NodeDied("The actor was killed due to memory pressure on node x"))
    assert (kind, state) == ("memory", "FAILED_CONFIG")
    assert "loader.actors" in text
    assert kind_of_death(NodeDied("socket closed"))[0] == "cluster"


def test_the_users_error_is_never_tried_again_wherever_it_happened() -> None:
    assert final_failure([failure("user", (1, 0))]) is not None


@pytest.mark.parametrize(("kind", "starts"), [("code", 2), ("memory", 2), ("cluster", 5)])
def test_other_failures_end_the_job_only_in_a_row_without_progress(kind: FailureKind, starts: int) -> None:
    row = [failure(kind, fencing_token=n) for n in range(starts)]
    assert final_failure(row[:-1]) is None
    ended = final_failure(row)
    assert ended is not None
    assert f"{starts} starts failed like this in epoch 3, without progress" in ended.message
    assert final_failure([*row[:-1], failure(kind, (3, 7))]) is None  # an iteration further is progress
    assert final_failure([failure(kind, (2, 0)), *row[1:]]) is None


def test_preemptions_cost_nothing() -> None:
    assert final_failure([failure("preemption", fencing_token=n) for n in range(100)]) is None
    mixed = [
        failure("cluster", fencing_token=1),
        *[failure("preemption", fencing_token=n) for n in range(2, 50)],
        failure("cluster", fencing_token=60),
    ]
    assert final_failure(mixed) is None


def test_every_failed_start_has_a_record_even_those_that_died_before_they_had_a_number(folder: RunFolder) -> None:
    write_failure(folder, failure("code", fencing_token=2))
    write_failure(folder, failure("cluster", fencing_token=2))
    write_failure(folder, failure("code", fencing_token=3))
    assert [(f.fencing_token, f.kind) for f in read_failures(folder)] == [(2, "code"), (2, "cluster"), (3, "code")]
    assert read_failures(folder, "another driver") == []


def test_failed_starts_are_ordered_by_number_beyond_four_digits(folder: RunFolder) -> None:
    for token in (10_000, 9_999, 1_000, 1_000):
        write_failure(folder, failure("code", fencing_token=token))
    assert [f.fencing_token for f in read_failures(folder)] == [1_000, 1_000, 9_999, 10_000]
    assert (newest := newest_failure(folder)) is not None
    assert newest.fencing_token == 10_000
    assert (folder.failures / "1000.json").is_file()


def test_a_damaged_record_is_passed_over(folder: RunFolder) -> None:
    write_failure(folder, failure("code"))
    (folder.failures / "0003.json").write_text("{")
    assert [f.fencing_token for f in read_failures(folder)] == [2]


def test_nothing_is_written_where_the_run_folder_is_not_to_be_seen(tmp_path: Path) -> None:
    away = RunFolder(tmp_path / "away")
    write_failure(away, failure("code"))
    assert not away.root.exists()
