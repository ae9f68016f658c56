"""The small files of a run folder: what other versions wrote reads, and what is damaged counts as not there."""

import json
from pathlib import Path

import pytest

from trainers.contract.fencing import acquire_token
from trainers.contract.records import (
    Heartbeat,
    TokenClaim,
    ValidationHeartbeat,
    claim_seen,
    read_claim,
    read_heartbeat,
    read_validation_heartbeat,
)
from trainers.contract.requests import (
    PauseRequest,
    StopRequest,
    end_asked_for,
    end_pause,
    last_pause,
    read_pause_request,
    read_stop_request,
    request_pause,
    request_save,
    request_stop,
    save_request_seen,
    stop_request_seen,
)
from trainers.contract.run_folder import RunFolder
from trainers.errors import DataError
from trainers.storage.files import write_json_atomic

DAMAGED = ["", "{", "[]", "3", '{"epoch": "x", "unix": 1}', '{"epoch": 1, "unix": NaN}', "[" * 10_000, "\x00"]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path)
    made.tokens.mkdir(parents=True)
    return made


def test_records_of_another_version_are_read(folder: RunFolder) -> None:
    write_json_atomic(folder.progress_file, {"epoch": 1, "iteration": 2, "phase": "val", "unix": 5.5, "attempt": 3, "added later": 1})
    assert read_heartbeat(folder) == Heartbeat(epoch=1, iteration=2, phase="val", unix=5.5, fencing_token=3)
    write_json_atomic(folder.progress_file, {"unix": 5.5})
    assert read_heartbeat(folder) == Heartbeat(unix=5.5)
    write_json_atomic(folder.token_file(1), {"attempt": 1, "driver": "d", "claimed_unix": 1.5, "role": "driver", "added later": None})
    assert read_claim(folder, 1) == TokenClaim(fencing_token=1, driver="d", claimed_unix=1.5, role="driver")
    write_json_atomic(folder.validating_file, {"attempt": 1, "checkpoint": "best", "done": 2, "cases": 3})
    assert read_validation_heartbeat(folder) == ValidationHeartbeat(fencing_token=1, checkpoint="best", done=2, cases=3)


def test_a_claim_keeps_the_names_that_other_versions_read(folder: RunFolder) -> None:
    acquire_token(folder, "d", {"role": "workers", "pid": 7, "node": "n", "world_size": 2})
    content = json.loads((folder.tokens / "0001.json").read_text())
    assert list(content) == ["attempt", "driver", "claimed_unix", "role", "pid", "node", "world_size"]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_record_counts_as_not_there_but_passes_no_fence(folder: RunFolder, content: str) -> None:
    for path in (folder.progress_file, folder.validating_file, folder.token_file(1)):
        path.write_text(content)
    assert (read_heartbeat(folder), read_validation_heartbeat(folder), claim_seen(folder, 1)) == (Heartbeat(), None, TokenClaim())
    with pytest.raises(DataError, match="fencing token: "):
        read_claim(folder, 1)


@pytest.mark.parametrize("content", [*DAMAGED, "{}", '{"now": false}', '{"now": []}', '{"now": null}'])
def test_a_stop_file_asks_for_the_gentle_stop_whatever_it_holds(folder: RunFolder, content: str) -> None:
    assert read_stop_request(folder) is stop_request_seen(folder) is None
    folder.stop_file.write_text(content)
    assert read_stop_request(folder) == stop_request_seen(folder) == StopRequest()


def test_a_pause_holds_until_it_is_ended_and_is_remembered(folder: RunFolder) -> None:
    assert (end_asked_for(folder), last_pause(folder)) == (None, None)
    request = PauseRequest(comparison="c", rung=2, workers_to="k", why="because")
    request_pause(folder, request)
    assert (end_asked_for(folder), read_pause_request(folder), last_pause(folder)) == ("PAUSED", request, request)
    request_stop(folder, is_now=False)
    assert end_asked_for(folder) == "STOPPED", "a person comes first"
    folder.stop_file.unlink()
    for _ in range(2):
        end_pause(folder)
        assert (end_asked_for(folder), read_pause_request(folder), last_pause(folder)) == (None, None, request)
    request_pause(folder, request.model_copy(update={"rung": 4}))
    assert (last := last_pause(folder)) is not None
    assert last.rung == 4


def test_requests_are_written_as_other_versions_read_them(folder: RunFolder) -> None:
    request_stop(folder, is_now=True)
    assert json.loads(folder.stop_file.read_text()) == {"now": True}
    assert read_stop_request(folder) == StopRequest(is_now=True)
    request_save(folder, "a resize")
    assert json.loads(folder.save_file.read_text()) == {"why": "a resize"}
    assert (request := save_request_seen(folder)) is not None
    assert request.why == "a resize"
