"""What comes back with an experiment that is taken out of MLflow's bin."""

from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.tracking.deleted import deleted_before, restore_experiment
from orchestrator.tracking.records import RUN_KEY_TAG


def run(run_id: str, start_time: int, key: str = "k", params: dict[str, str] | None = None) -> Any:
    data = SimpleNamespace(tags={RUN_KEY_TAG: key}, params={"fold": "0"} if params is None else params)
    return SimpleNamespace(info=SimpleNamespace(run_id=run_id, start_time=start_time), data=data)


class Unknown(Exception):
    """As MLflow's own exception."""

    error_code = "RESOURCE_DOES_NOT_EXIST"


class Client:
    """MLflow's, of an experiment in the bin with its runs."""

    def __init__(self, *runs: Any) -> None:
        self.runs = {each.info.run_id: each for each in runs}
        self.refuses = False
        self.experiment = SimpleNamespace(experiment_id="7", name="x", lifecycle_stage="deleted")

    def get_experiment(self, experiment_id: str) -> Any:
        return self.experiment

    def restore_experiment(self, experiment_id: str) -> None:
        if self.experiment.lifecycle_stage != "deleted" or self.refuses:
            raise Unknown("No Experiment with id=7 exists")
        self.experiment.lifecycle_stage = "active"

    def search_runs(self, experiments: list[str], clause: str, page_token: str | None = None) -> Any:
        class Page(list[Any]):
            token = None

        return Page(self.runs.values())

    def delete_run(self, run_id: str) -> None:
        del self.runs[run_id]


def test_of_several_runs_with_one_key_only_the_last_that_was_recorded_from_comes_back() -> None:
    duplicate = run("duplicate", 3, params={})
    assert deleted_before([run("second", 2), duplicate, run("first", 1), run("other", 0, key="o")]) == ["duplicate", "first"]
    assert deleted_before([run("alone", 1), run("other", 2, key="o", params={})]) == []


def test_runs_that_were_deleted_before_their_experiment_stay_deleted() -> None:
    client: Any = Client(run("first", 1), run("second", 2), run("other", 3, key="o"))
    restore_experiment(client, client.experiment)
    assert list(client.runs) == ["second", "other"]
    restore_experiment(client, client.experiment)
    assert list(client.runs) == ["second", "other"]


def test_an_experiment_that_another_caller_restores_at_this_moment_is_restored() -> None:
    client: Any = Client()
    as_it_was_read = SimpleNamespace(**vars(client.experiment))
    client.restore_experiment("7")
    restore_experiment(client, as_it_was_read)
    client.experiment.lifecycle_stage, client.refuses = "deleted", True
    with pytest.raises(Unknown):
        restore_experiment(client, as_it_was_read)
