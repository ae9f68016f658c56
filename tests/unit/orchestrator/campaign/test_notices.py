"""Messages to people: which, to whom, and that nothing depends on them."""

import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from orchestrator.campaign import notices
from orchestrator.campaign.notices import body_of, send_by_apprise
from orchestrator.experiment.model import parse_experiment
from orchestrator.follow.followed_run import FollowedRun
from tests.fake_campaign import Stage, finish_on_disk, look
from trainers.contract.run_spec import Notify, RunSpec

SECRET = "json://user:hunter2@127.0.0.1:9/"
Message = tuple[str, str, str]


class Service:
    """Takes messages in the place of apprise."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.fails = 0

    def send(self, addresses: Sequence[str], title: str, body: str) -> bool:
        if self.fails:
            self.fails -= 1
            raise OSError(f"no route to {addresses[0]}")
        self.messages.append((" ".join(addresses), title, body))
        return True


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    taken = Service()
    monkeypatch.setattr(notices, "send_by_apprise", taken.send)
    monkeypatch.setattr(notices, "RETRIES_S", (0.0, 0.0))
    monkeypatch.setenv("NNFLEET_NOTIFY", f"{SECRET} json://second")
    return taken


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def listening(stage: Stage, fold: int, notify: Notify | None = None) -> RunSpec:
    return stage.run(fold).model_copy(update={"notify": notify or Notify()})


def succeed(stage: Stage, run: RunSpec) -> None:
    finish_on_disk(run)
    stage.cluster.training_ends(run)
    stage.cluster.validation_ends(run)


def test_a_failed_run_is_a_message_at_once_and_the_end_of_all_is_another(stage: Stage, service: Service) -> None:
    stage.cluster.gpus = 2
    fails, goes_on = listening(stage, 0), listening(stage, 1)
    campaign = stage.campaign(fails, goes_on)
    look(campaign)
    stage.cluster.training_ends(fails, "FAILED_CODE")
    look(campaign)
    look(campaign)
    succeed(stage, goes_on)
    assert campaign.run(poll_s=0) == 1
    (first, last) = service.messages
    assert first[0] == f"{SECRET} json://second"
    assert first[1] == f"nnfleet: {fails.address}: {campaign.runs[fails.run_key].state}"
    assert campaign.runs[fails.run_key].reason in first[2]
    assert last[1].startswith("nnfleet: campaign c1 has ended: 1 FAILED_")
    assert last[2].splitlines()[0].startswith(fails.address), "failures first"
    assert f"{goes_on.address}: SUCCEEDED, epoch" in last[2]


def test_nobody_is_told_of_runs_that_were_finished_before_or_ask_for_nothing(stage: Stage, service: Service) -> None:
    run, silent = listening(stage, 0), stage.run(1)
    stage.cluster.gpus = 2
    first = stage.campaign(run, silent)
    look(first)
    succeed(stage, run)
    succeed(stage, silent)
    first.run(poll_s=0)
    assert len(service.messages) == 1
    assert stage.campaign(run, silent, name="again").run(poll_s=0) == 0
    assert len(service.messages) == 1


def test_a_service_that_fails_is_tried_again_and_ends_nothing_and_no_secret_is_shown(
    stage: Stage, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    service.fails = 2
    run = listening(stage, 0, Notify(when=("succeeded",)))
    campaign = stage.campaign(run)
    look(campaign)
    succeed(stage, run)
    assert campaign.run(poll_s=0) == 0
    assert [title for _, title, _ in service.messages] == [f"nnfleet: {run.address}: SUCCEEDED"]
    service.fails = 99
    second = listening(stage, 1, Notify(when=("succeeded",)))
    campaign = stage.campaign(second, name="c2")
    look(campaign)
    succeed(stage, second)
    assert campaign.run(poll_s=0) == 0
    assert "notify: a message could not be sent to all addresses of NNFLEET_NOTIFY" in " ".join(stage.warnings())
    assert "hunter2" not in caplog.text + " ".join(stage.warnings())


def test_a_campaign_waits_for_all_tries_of_a_message() -> None:
    assert sum(notices.RETRIES_S) < notices.PATIENCE_S < 600


def test_each_message_that_was_not_sent_in_time_is_warned_of(stage: Stage, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()
    monkeypatch.setattr(notices, "send_by_apprise", lambda *_: answers.wait(30))
    monkeypatch.setattr(notices, "PATIENCE_S", 0.2)
    run = listening(stage, 0)
    campaign = stage.campaign(run)
    look(campaign)
    stage.cluster.training_ends(run, "FAILED_CODE")
    assert campaign.run(poll_s=0) == 1
    answers.set()
    unsent = [text for text in stage.warnings() if "was not sent to NNFLEET_NOTIFY before" in text]
    assert len(unsent) == 2
    assert f"{run.address}: FAILED_CODE" in unsent[0], "the one that was being sent"
    assert "campaign c1 has ended" in unsent[1], "the one behind it"


def test_missing_addresses_are_warned_of_before_anything_is_trained(
    stage: Stage, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NNFLEET_NOTIFY")
    run = listening(stage, 0)
    campaign = stage.campaign(run)
    assert "no message will be sent, as NNFLEET_NOTIFY is not set where the cluster's head runs" in " ".join(stage.warnings())
    look(campaign)
    succeed(stage, run)
    assert campaign.run(poll_s=0) == 0
    assert service.messages == []


def test_a_message_names_no_case_where_pseudonyms_are_asked_for(stage: Stage, service: Service) -> None:
    run = stage.run(0).model_copy(update={"notify": Notify(), "pseudonyms": True})
    campaign = stage.campaign(run)
    look(campaign)
    stage.cluster.training_ends(run, "FAILED_CODE")
    campaign.run(poll_s=0)
    assert service.messages
    assert all(campaign.runs[run.run_key].reason not in body for _, _, body in service.messages)


def test_a_folder_that_cannot_be_read_ends_no_campaign_and_keeps_no_message_back(
    stage: Stage, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = listening(stage, 0)
    campaign = stage.campaign(run)
    look(campaign)
    stage.cluster.training_ends(run, "FAILED_CODE")
    look(campaign)

    def away(_: FollowedRun) -> None:
        raise OSError("Input/output error")

    followed = campaign.runs[run.run_key]
    monkeypatch.setattr(FollowedRun, "status", away)
    assert body_of([followed]) == f"{run.address}: FAILED_CODE. {followed.reason}"


def test_the_file_names_it_by_words_that_yaml_leaves_alone() -> None:
    """`on` would be a truth value to YAML."""
    experiment = parse_experiment("dataset: 17\nconfigurations: 2d\nnotify: {when: [failed], to: NNFLEET_NOTIFY_LAB}", "e.yaml")
    assert experiment.notify == Notify(when=("failed",), to="NNFLEET_NOTIFY_LAB")


def test_only_variables_made_for_it_can_be_named() -> None:
    with pytest.raises(ValueError, match="pattern"):
        Notify(to="AWS_SECRET_ACCESS_KEY")


# ---- apprise ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A service that speaks HTTP, and what it got."""
    got: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"json://127.0.0.1:{server.server_port}/hook", got
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # apprise's own, of imghdr
def test_apprise_delivers_to_a_real_service_and_an_address_that_it_does_not_know_is_no_success(
    webhook: tuple[str, list[dict[str, str]]], caplog: pytest.LogCaptureFixture
) -> None:
    address, got = webhook
    assert send_by_apprise([address], "nnfleet: a title", "a body")
    assert [(one["title"], one["message"]) for one in got] == [("nnfleet: a title", "a body")]
    assert not send_by_apprise([address, "nonsense://hunter2"], "second", "body")
    assert got[-1]["title"] == "second", "the others get it"
    assert "hunter2" not in caplog.text
