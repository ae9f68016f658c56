"""How a user names a run."""

from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.run.status import RunStatus, match


def named(key: str, address: str, mlflow_run_id: str = "") -> RunStatus:
    return RunStatus(run_key=key, address=address, campaign="c", epochs=1, mlflow_run_id=mlflow_run_id, run_folder=Path("/r"))


@pytest.mark.parametrize("wanted", ["aa-1", "aa", "1/3d/t/0", "mlflow-id"])
def test_a_run_is_found_by_any_of_its_names(wanted: str) -> None:
    assert match(wanted, [named("aa-1", "1/3d/t/0", "mlflow-id"), named("bb-1", "1/3d/t/1")]).run_key == "aa-1"


@pytest.mark.parametrize("wanted", ["b", "1/3d/t/0", "zz"])
def test_an_ambiguous_or_unknown_name_lists_the_candidates(wanted: str) -> None:
    with pytest.raises(ConfigError, match="b-1"):
        match(wanted, [named("b-1", "1/3d/t/0"), named("b-2", "1/3d/t/0")])


@pytest.mark.parametrize(
    "wanted", ["017/3d_fullres/da5/0", "Dataset017_BTCV/3d_fullres/nnUNetTrainerDA5/fold_0", "17/3d_fullres/nnUNetTrainerDA5/0/"]
)
def test_an_address_is_understood_as_people_write_it(wanted: str) -> None:
    others = [named("b", "17/3d_fullres/nnUNetTrainer/0"), named("c", "1/3d_fullres/nnUNetTrainerDA5/0")]
    assert match(wanted, [named("a", "17/3d_fullres/nnUNetTrainerDA5/0"), *others]).run_key == "a"


@pytest.mark.parametrize("wanted", ["", " ", "/"])
def test_an_empty_name_means_no_run(wanted: str) -> None:
    with pytest.raises(ConfigError, match="its name is empty"):
        match(wanted, [named("a", "1/3d/t/0")])
