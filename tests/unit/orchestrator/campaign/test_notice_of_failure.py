"""A campaign that fails before it owns a run has none to report by; people hear of it all the same."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.campaign import job, notices
from orchestrator.cluster.jobs import Jobs
from orchestrator.errors import ClusterError, ConfigError, TrackingError
from orchestrator.queue.registry import Entry, HeldWorkers, Registry
from orchestrator.run.job_record import JobRecord
from tests.fake_campaign import FakeClock, Stage, look
from tests.unit.orchestrator.preprocessing.test_due import write_raw
from tests.unit.tiny_dataset import Tiny
from trainers.contract.run_spec import Notify, WorkerSpec

RAW = "notify: {}\npreprocess: true\nworkers: {gpus: 0, cpus: 1}\nloader: {actors: 1}"


class Scene:
    """An experiment file, and the messages that were sent."""

    def __init__(self, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.stage, self.base, self.capsys = Stage(base), base, capsys
        self.messages: list[tuple[str, str]] = []
        self.printed_before = ""
        self.entries: list[dict[str, Entry]] = []
        """Of the campaign, at each message."""

    def send(self, addresses: Sequence[str], title: str, body: str) -> bool:
        self.printed_before = self.capsys.readouterr().out
        self.messages.append((title, body))
        self.entries.append(Registry(self.base / "registry").entries({"c1"}))
        return True

    def campaign(self, *options: str, more: str = "notify: {}") -> int:
        file = self.base / "experiment.yaml"
        folders = "".join(f"nnUNet_{which}: {self.base}/nnUNet_{which}\n" for which in ("raw", "preprocessed", "results"))
        file.write_text(f"dataset: 17\nconfigurations: [2d]\n{folders}{more}\n")
        return job.main([str(file), "--campaign", "c1", *options])


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Scene:
    made = Scene(tmp_path, capsys)
    monkeypatch.setattr(Jobs, "inside_job", lambda: made.stage.cluster)
    monkeypatch.setattr(Registry, "of_cluster", lambda address: Registry(tmp_path / "registry"))
    monkeypatch.setattr(job, "cluster_nodes", made.stage.cluster.nodes)
    monkeypatch.setattr(notices, "send_by_apprise", made.send)
    monkeypatch.setenv("NNFLEET_NOTIFY", "json://somewhere")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return made


def fails(monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException) -> None:
    def raising(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(job, name, raising)


def test_an_experiment_that_the_campaign_refuses_is_one_message_and_the_error_as_before(scene: Scene) -> None:
    assert scene.campaign() == ConfigError.exit_code
    [(title, body)] = scene.messages
    assert title == "nnfleet: campaign c1 failed before its runs began"
    assert "nnUNet_preprocessed" in body
    assert '"event": "error"' in scene.printed_before, "whoever waits for it does not wait for messages"


def test_preprocessing_that_fails_at_night_is_reported_without_secrets(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    write_raw(scene.base / "nnUNet_raw" / Tiny(scene.base).name)
    fails(monkeypatch, "_preprocess", ClusterError("preprocessing: no space left, by http://u:hunter2@host"))
    assert scene.campaign("--plan-only", more=RAW) == 0
    assert scene.messages == []
    assert scene.campaign(more=RAW) == ClusterError.exit_code
    [(_, body)] = scene.messages
    assert body.startswith("preprocessing: no space left")
    assert "hunter2" not in body


def test_a_list_of_jobs_or_nodes_that_does_not_come_ends_no_preprocessing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only who is at it already is named by the first, and by the second what fits never."""
    write_raw(scene.base / "nnUNet_raw" / Tiny(scene.base).name)
    fails(monkeypatch, "_preprocess", ClusterError("preprocessing began"))
    fails(monkeypatch, "cluster_nodes", ClusterError("its nodes could not be listed"))

    def silent() -> list[JobRecord]:
        raise ClusterError("the job server does not answer")

    monkeypatch.setattr(scene.stage.cluster, "records", silent)
    assert scene.campaign(more=RAW) == ClusterError.exit_code
    assert [body for _, body in scene.messages] == ["preprocessing began"]
    assert "preprocessed_by" not in scene.printed_before


def test_nothing_is_preprocessed_for_workers_that_never_fit_or_a_tracking_server_that_is_away(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_raw(scene.base / "nnUNet_raw" / Tiny(scene.base).name)
    fails(monkeypatch, "_preprocess", AssertionError("preprocessing began"))
    assert scene.campaign(more=RAW.replace("cpus: 1", "cpus: 1000")) == ClusterError.exit_code
    fails(monkeypatch, "_ping", TrackingError("tracking: no answer"))
    assert scene.campaign(more=RAW) == TrackingError.exit_code
    never, away = (body for _, body in scene.messages)
    assert "it can never hold" in never
    assert away == "tracking: no answer"


def test_after_hours_of_preprocessing_servers_that_are_away_are_waited_for_and_others_errors_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = FakeClock()
    away: list[Exception] = [ClusterError("the nodes are not listed"), TrackingError("no answer")]

    def begin() -> str:
        if away:
            raise away.pop(0)
        return "begun"

    assert job.begun_patiently(begin, clock.clock) == "begun"
    assert "is preprocessed, and waits to begin its runs: no answer" in capsys.readouterr().out
    away += [ConfigError("another request")]
    with pytest.raises(ConfigError):
        job.begun_patiently(begin, clock.clock)
    away += [TrackingError("no answer")] * 1000
    with pytest.raises(TrackingError):
        job.begun_patiently(begin, clock.clock)
    assert 1000 - len(away) == pytest.approx(job.PATIENCE_S / job.RETRY_S, abs=2)


def test_while_its_message_is_sent_a_failed_campaign_holds_nothing_and_begins_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it had left an entry or not."""
    assert scene.campaign() == ConfigError.exit_code
    write_raw(scene.base / "nnUNet_raw" / Tiny(scene.base).name)
    held = HeldWorkers(run_key="preprocess", workers=WorkerSpec(count=1, gpus=0, cpus=8))
    Registry(scene.base / "registry").post("c1", Entry(holding=(held,), runs=("preprocess",)))
    fails(monkeypatch, "_preprocess", ClusterError("preprocessing: no space left"))
    assert scene.campaign(more=RAW) == ClusterError.exit_code
    assert scene.entries == [{"c1": Entry(has_failed=True)}] * 2


def test_an_error_that_nobody_foresaw_is_reported_too(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, "expand", RuntimeError("surprise"))
    assert scene.campaign() == 1
    assert [body for _, body in scene.messages] == ["campaign: RuntimeError: surprise. See its log."]


def test_an_interrupt_sends_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, "expand", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        scene.campaign()
    assert scene.messages == []


@pytest.mark.parametrize("more", ["", "notify: {when: [succeeded]}"])
def test_nobody_hears_of_it_who_did_not_ask(scene: Scene, more: str) -> None:
    assert scene.campaign(more=more) == ConfigError.exit_code
    assert scene.messages == []


def test_a_plan_sends_nothing(scene: Scene) -> None:
    assert scene.campaign("--plan-only") == ConfigError.exit_code
    assert scene.messages == []


def test_with_pseudonyms_the_reason_stays_in_the_log(scene: Scene) -> None:
    assert scene.campaign(more="notify: {}\npseudonyms: true") == ConfigError.exit_code
    assert [body for _, body in scene.messages] == ["The reason may name cases; it is in the log of the job campaign-c1."]


def test_runs_of_which_the_campaign_cannot_take_possession_are_reported_by_what_they_ask_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = scene.stage.run(0).model_copy(update={"notify": Notify()})
    look(scene.stage.campaign(run))
    monkeypatch.setattr(job, "checked", lambda *_, **__: run)
    fails(monkeypatch, "refuse_orphan_workers", ClusterError("workers that no job owns"))
    assert job.main(["--validate", str(run.run_folder), "--campaign", "c2"]) == ClusterError.exit_code
    assert scene.messages == [("nnfleet: campaign c2 failed before its runs began", "workers that no job owns")]
