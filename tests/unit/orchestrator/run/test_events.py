"""The one protocol of events on stdout: what is written is read back, also by and from other versions; the rest is passed over."""

import json
from pathlib import Path

import pytest

from orchestrator.campaign.events import CAMPAIGN_EVENTS, CampaignLog, Done, Failed, Planned, StatusChanged, Waiting, Warned
from orchestrator.drill.order import DRILL_EVENTS, Mend, Phase, Recovered, Refused, Report, Reported, Strike, Struck
from orchestrator.experiment.plan import PlanReport
from orchestrator.publishing.reconcile import SYNC_EVENTS, Synced, SyncedEvent
from orchestrator.run.events import EVENT_PREFIX, Event, emit, events_in, line_of

PLAN = PlanReport(experiment="e", cluster="c", rows=(), n_now=0, n_later=0, n_never=0, n_finished=0)
STRIKE = Strike(part="worker", what="process 1", moment="in epoch 2 of 9", recovery_s=1.5)
CAMPAIGN = [
    Planned(plan=PLAN),
    StatusChanged(status={"run_key": "k", "ema_pseudo_dice": None}),
    Waiting(message="m"),
    Warned(message="m"),
    Failed(error="DataError", message="line\nline\u2028line \x85"),
    Done(exit_code=1),
]
DRILL = [Phase(text="t"), Struck(part="node", what="w"), Mend(), Recovered(strike=STRIKE), Reported(report=Report()), Refused(message="m")]


def log_of(*events: Event) -> str:
    return "".join(f"INFO something else\n{line_of(event)}\n" for event in events)


def test_events_are_read_back_from_a_log_among_other_lines() -> None:
    synced = SyncedEvent(synced=Synced(run_key="k", run_folder=Path("/r"), delivered=("2 epochs",)))
    assert list(events_in(log_of(*CAMPAIGN), CAMPAIGN_EVENTS)) == CAMPAIGN
    assert list(events_in(log_of(*DRILL), DRILL_EVENTS)) == DRILL
    assert list(events_in(log_of(synced), SYNC_EVENTS)) == [synced]


def test_each_event_is_one_ascii_line(capsys: pytest.CaptureFixture[str]) -> None:
    for event in (*CAMPAIGN, *DRILL):
        emit(event)
        out = capsys.readouterr().out
        assert out.isascii()
        assert len(out.splitlines()) == 1


def test_the_keys_of_campaign_events_are_those_of_every_version() -> None:
    """A laptop and a cluster may run different versions of nnfleet."""
    lines = [json.loads(line_of(event).removeprefix("NNFLEET ")) for event in CAMPAIGN]
    keys = {"plan": {"plan"}, "status": {"status"}, "waiting": {"message"}, "warning": {"message"}, "error": {"error", "message"}}
    assert {line.pop("event"): {*line} for line in lines} == keys | {"done": {"exit_code"}}


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "of tomorrow", "message": "m"}',
        '{"event": "done", "exit_code": "one"}',
        '{"event": "done"}',
        '{"event": "error", "error": 1, "message": "m"}',
        '{"event": "plan", "plan": {"experiment": "e", "of tomorrow": 1}}',
        '{"event": "status", "status": {"run_key": "k", "state": "OF_TOMORROW"}}',
        '{"event": "status", "status": 1}',
        '{"no": "event"}',
        "[]",
        "1e999",
        "[" * 100_000,
        '{"event": "waiting", "message": "half a character \\ud83d"}',
        '{"event": "done", "exi',
    ],
)
def test_a_line_of_another_version_is_passed_over(line: str) -> None:
    log = CampaignLog().update(f"{EVENT_PREFIX}{line}\n{line_of(Waiting(message='next'))}\n")
    assert log == CampaignLog(waits="next", _read=log._read)


def test_what_a_newer_version_adds_to_an_event_is_passed_over() -> None:
    assert CampaignLog().update(EVENT_PREFIX + '{"event": "done", "exit_code": 3, "of tomorrow": {}}\n').exit_code == 3


def test_what_a_newer_campaign_adds_to_a_state_does_not_hide_the_run() -> None:
    state = {"run_key": "k", "address": "1/3d/t/0", "campaign": "c", "run_folder": "/r", "epochs": 5, "epochs_done": 2, "new": 1}
    log = CampaignLog().update(f"{line_of(StatusChanged(status=state))}\n")
    assert log.statuses["k"].epochs_done == 2


def test_a_file_name_that_is_no_text_does_not_hide_the_error() -> None:
    failed = Failed(error="DataError", message="/data/caf\udce9 is missing.")
    log = CampaignLog().update(f"{line_of(failed)}\n")
    assert str(log.error) == "/data/caf? is missing."


def test_numbers_that_are_not_finite_survive() -> None:
    (event,) = events_in(log_of(StatusChanged(status={"full_dice": {"best": float("nan")}})), CAMPAIGN_EVENTS)
    assert isinstance(event, StatusChanged)
    assert str(event.status["full_dice"]["best"]) == "nan"
